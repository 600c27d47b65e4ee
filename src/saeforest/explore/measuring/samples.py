"""The distribution of each feature's activations: a histogram, and samples from equal parts of its range."""

from __future__ import annotations

import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from ..index.form import BINS, EACH, INTERVALS
from .firings import Part, hashes
from .strongest import PassageOf, Strongest

# Number of firings looked at together.
_SLICE = 1 << 18
_PRIORITY_BITS = 24


def priority(rows: Int64[Tensor, "n"]) -> Float32[Tensor, "n"]:
    """The rank of each row in a draw: a whole number from 1 to 2^24, exact in float32."""
    return ((hashes(rows) >> (63 - _PRIORITY_BITS)) + 1).float()


class Samples:
    """The histogram of every feature, and up to 4 rows from each of 5 equal parts of the range of its activations.

    A part of the range holds its lower edge, the highest part both. The rows are those of the highest priority, at most
    one of a part from each passage. The highest part comes first.
    """

    def __init__(self, value_max: Float[Tensor, "d_sae"], passage: PassageOf) -> None:
        self._max = value_max.double().clamp(min=1e-30)
        d_sae = len(value_max)
        self.histogram = torch.zeros(d_sae, BINS, dtype=torch.int64)
        self._drawn = Strongest(d_sae * INTERVALS, EACH, passage, torch.device("cpu"))

    @property
    def rows(self) -> Int64[Tensor, "d_sae 20"]:
        """The rows that were drawn, -1 where there is none."""
        return self._drawn.row.view(len(self._max), INTERVALS * EACH)

    def add(self, part: Part) -> None:
        """Add the firings of a part."""
        all_ = zip(
            part.ids.split(_SLICE), part.values.split(_SLICE), part.row_of().split(_SLICE), strict=True
        )
        for ids, value, row in all_:
            feature = ids.long()
            share = value.double() / self._max[feature]
            at = feature * BINS + (share * BINS).long().clamp(max=BINS - 1)
            self.histogram += torch.bincount(at, minlength=self.histogram.numel()).view(self.histogram.shape)
            interval = INTERVALS - 1 - (share * INTERVALS).long().clamp(max=INTERVALS - 1)
            self._drawn.add(feature * INTERVALS + interval, priority(row), row)


def by_value(value: Float[Tensor, "d_sae 20"]) -> Int64[Tensor, "d_sae 20"]:
    """The order of samples in which those of each part of the range descend; of equals, the first stays first."""
    groups = value.view(len(value), INTERVALS, EACH)
    order = groups.sort(dim=2, descending=True, stable=True).indices
    return (order + torch.arange(INTERVALS)[:, None] * EACH).view(value.shape)
