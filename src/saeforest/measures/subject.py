"""What measures are given that look at an SAE as a whole, or at all of the measured text at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from ..activations import ActivationReader
from ..saes import SAE
from ..structure.forest import Forest
from ..structure.pairs import PairStatistics
from ..text import Tokens
from .probes import Probes


@dataclass(frozen=True, eq=False)
class Subject:
    """An SAE to be measured, with the forest, the language model and the text it is measured with.

    forest:   its own or, for a flat SAE, one inferred from text that is not measured.
    reader:   reads the SAE's site, on which it was trained.
    tokens:   the measured text.
    settings: of every record: what was measured, on what.
    folder:   where a measure may keep what it can go on from when it is stopped; None: nowhere.
    log:      the folder of its training's log.jsonl; None: unknown.
    """

    sae: SAE
    forest: Forest
    reader: ActivationReader
    tokens: Tokens
    settings: Mapping[str, Any]
    folder: Path | None
    log: Path | None


@dataclass(frozen=True, eq=False)
class Seen(Subject):
    """A subject, and what one pass over the measured text has shown of it. `n` activations were measured.

    rows:   `[n]` the flat position in `tokens` of every activation, ascending.
    x:      `[n, d_in]` the activations, on the CPU, in the language model's dtype.
    pairs:  on which of the `n` activations each feature fires, and how features fire together.
    probes: the directions of the concepts of features.
    """

    rows: Int[Tensor, "n"]
    x: Float[Tensor, "n d_in"]
    pairs: PairStatistics
    probes: Probes
