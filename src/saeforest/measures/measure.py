"""What a measure is, and what it is shown."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int
from torch import Tensor

from ..sparse_code import SparseCode
from .bootstrap import FloatArray
from .record import Record

# Slots of a token are compared with each other in slices of so many comparisons.
_COMPARISONS = 1 << 24


@dataclass(frozen=True)
class WindowLosses:
    """Summed next-token losses of some windows, in nats, over the positions that count.

    count: predictions summed, those of a token that is there: not the last of a window. clean: of the model as it is;
    spliced: with the SAE's reconstruction at the site; ablated: with zeros at the site.
    kl_count: all predictions. kl_...: their divergence from the clean ones, sum_v p_clean log(p_clean / p).
    """

    count: Int[Tensor, "w"]
    clean: Float64[Tensor, "w"]
    spliced: Float64[Tensor, "w"]
    ablated: Float64[Tensor, "w"]
    kl_count: Int[Tensor, "w"]
    kl_spliced: Float64[Tensor, "w"]
    kl_ablated: Float64[Tensor, "w"]


@dataclass(frozen=True)
class EvalBatch:
    """Activations of a batch of windows, without the excluded positions, and what the SAE makes of them.

    x, x_hat: `[n, d]` what is reconstructed (of a transcoder, its target), and reconstructions.
    rows:     `[n]` flat positions in the `Tokens`, ascending.
    window:   `[n]` the window of each row. windows: `[w]` all windows of the batch, ascending.
    code:     `[n, k]`.
    losses:   of the first windows of the batch, where losses are measured on it.
    """

    x: Float32[Tensor, "n d"]
    rows: Int[Tensor, "n"]
    window: Int[Tensor, "n"]
    windows: Int[Tensor, "w"]
    code: SparseCode
    x_hat: Float32[Tensor, "n d"]
    losses: WindowLosses | None = None

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def _membership(self) -> Float64[Tensor, "w n"]:
        return (self.windows[:, None] == self.window).double()

    def sums(self, column: Tensor) -> Tensor:
        """float64 sums of `column [n]` or `[n, m]` over the rows of each window: `[w]` or `[w, m]`."""
        # A product, because index_add_ sums in any order on a GPU: two runs would differ.
        return self._membership @ column.double()


class WindowTable:
    """Named float64 columns, `[windows]` or `[windows, m]`, that grow by the windows of each batch."""

    def __init__(self) -> None:
        self._parts: dict[str, list[FloatArray]] = {}
        self.batch_starts: list[int] = []
        self._n_windows = 0

    def add(self, **columns: Tensor) -> None:
        for name, column in columns.items():
            self._parts.setdefault(name, []).append(column.double().cpu().numpy())
        self.batch_starts.append(self._n_windows)
        self._n_windows += len(next(iter(columns.values())))

    def __getitem__(self, name: str) -> FloatArray:
        if name not in self._parts:
            return np.zeros(0)
        if len(self._parts[name]) > 1:
            self._parts[name] = [np.concatenate(self._parts[name])]
        return self._parts[name][0]

    def __len__(self) -> int:
        return self._n_windows


def pair_slices(
    code: SparseCode, threshold: float
) -> Iterator[tuple[Bool[Tensor, "n k"], Int[Tensor, "n k"]]]:
    """Which slots are active, and their ids, in slices small enough to compare each slot with each at once."""
    step = max(_COMPARISONS // code.ids.shape[1] ** 2, 1)
    yield from zip(code.active(threshold).split(step), code.ids.split(step), strict=True)


class Measure(ABC):
    """Sees every batch once, in order, then gives its record. Its sums are float64 and additive over windows."""

    @abstractmethod
    def update(self, batch: EvalBatch) -> None: ...

    @abstractmethod
    def record(self, settings: Mapping[str, Any]) -> Record:
        """`settings` say what was measured, and with what; the measure adds its own."""
