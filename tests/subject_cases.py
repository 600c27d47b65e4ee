"""Subjects made up for a measure: it is given what a test gives, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from saeforest.measures.needs import Need
from saeforest.measures.subject import Firings, Subject
from saeforest.saes import SAE
from saeforest.structure.pairs import PairStatistics


def given(sae: SAE, settings: dict[str, Any] | None = None, **supplied: Any) -> Subject:
    """With a value for each need. `firings` may be pairs alone, those of all activations from the first on."""
    return but(Subject(sae, settings or {}, {}), **supplied)


def but(subject: Subject, **supplied: Any) -> Subject:
    """The subject with other values for some needs."""
    more = {name: _supply(value) for name, value in supplied.items()}
    return replace(subject, supplies={**subject.supplies, **more})


def lazily(subject: Subject, need: Need, supply: Callable[[], Any]) -> Subject:
    """The subject with a need that is supplied by a function."""
    return replace(subject, supplies={**subject.supplies, need: supply})


def never() -> Any:
    raise AssertionError("this was not to be asked for")


def _supply(value: Any) -> Callable[[], Any]:
    if isinstance(value, PairStatistics):
        value = Firings(torch.arange(value.n_tokens), value)
    return lambda: value
