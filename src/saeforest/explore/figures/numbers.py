"""The value of an edge beside what chance gives: no number about a hierarchy is shown without its null."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from ..index import Index

_LOW, _MIDDLE, _HIGH = 0.05, 0.5, 0.95


@dataclass(frozen=True)
class EdgeScale:
    """A column of edges to show, and what chance gives: the same value of pairs whose parents were shuffled.

    name, title, description: of the column (`columns.py`).
    low, middle, high: 5th, 50th and 95th percentile of the null pairs.
    least, most: ends of the scale to draw: 0 and 1 for a fraction, else the range of edges and null pairs.
    """

    name: str
    title: str
    description: str
    low: float
    middle: float
    high: float
    least: float
    most: float

    def share(self, value: float) -> float:
        """The place of a value on the scale, 0 to 1."""
        return min(max((value - self.least) / (self.most - self.least), 0.0), 1.0)


def edge_scale(index: Index) -> EdgeScale | None:
    """The first column that says something of a pair, whatever a gate does, and has nulls; None if there is none."""
    for about in index.about.columns:
        if about.mechanical or not about.of_pair:
            continue
        null = _defined(index.null_columns[about.name])
        edges = _defined(index.columns[about.name])
        if not len(null) or not len(edges):
            continue
        levels = torch.tensor([_LOW, _MIDDLE, _HIGH], dtype=torch.float64)
        low, middle, high = torch.quantile(null, levels).tolist()
        least, most = 0.0, 1.0
        if about.unit != "fraction":
            both = torch.cat([null, edges])
            least, most = float(both.min()), float(both.max())
        if most > least:
            return EdgeScale(about.name, about.title, about.description, low, middle, high, least, most)
    return None


def edge_value(index: Index, scale: EdgeScale | None, child: int) -> float | None:
    """The value of the edge of a child; None if it is undefined or there is no scale."""
    if scale is None:
        return None
    value = float(index.columns[scale.name][child])
    return value if math.isfinite(value) else None


def _defined(values: torch.Tensor) -> torch.Tensor:
    """The numbers that are not NaN, in float64."""
    return values[~values.isnan()].double()
