"""What the tests of the systems share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from saeforest.saes import SYSTEMS, SystemConfig


def floats(terms: Sequence[Tensor | None]) -> list[float | None]:
    """The terms of a loss as numbers."""
    return [None if term is None else float(term) for term in terms]


def small(architecture: str, **settings: Any) -> SystemConfig:
    """Any system's defaults with few features: as many layers, and k, as it has by default."""
    default: Any = SYSTEMS[architecture].config_class()
    sizes, k = (8, 64, 128, 256)[: len(default.layer_sizes)], (3,) * len(default.k_per_layer)
    return replace(default, layer_sizes=sizes, k_per_layer=k, **settings)
