"""Golden runs: the same settings and seeds give the same bits as when the values in this folder were written."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from everything_cases import MakeOnce
from saeforest.saes import SYSTEMS

from .runs import HERE, RUNS, SAES, make_all, run_of
from .values import differences, values_of

#: With another PyTorch sums are rounded in other ways: then losses and FVE alone are compared, and only roughly.
EXACT_WITH = "2.13.0"


def golden(sae: str) -> dict[str, Any]:
    return json.loads((HERE / f"{sae}.json").read_text(encoding="utf-8"))


def test_every_system_has_a_run() -> None:
    assert {settings["architecture"] for settings in SAES.values()} == set(SYSTEMS)
    assert sorted(sae for run in RUNS.values() for sae in run) == sorted(SAES)


@pytest.mark.parametrize("sae", SAES)
def test_golden(sae: str, make_once: MakeOnce) -> None:
    folder = make_once("golden", make_all)
    exact = torch.__version__.startswith(EXACT_WITH)
    lines = differences(golden(sae), values_of(folder / run_of(sae), sae, folder / "world"), exact=exact)
    if lines:
        text = "\n  ".join([f"{sae}: {len(lines)} values differ from tests/golden/{sae}.json", *lines])
        pytest.fail(text, pytrace=False)


@pytest.mark.parametrize("sae", SAES)
def test_the_run_goes_where_things_happen(sae: str) -> None:
    """A run without dead features or moves would guard little."""
    numbers = golden(sae)["numbers"]
    if sae != "matching_pursuit":  # it takes whatever atom is nearest, so that none dies
        assert sum(numbers["dead"]) > 10
    if not sae.startswith(("tree", "hsae")):
        return
    assert numbers["moved"] > 100
