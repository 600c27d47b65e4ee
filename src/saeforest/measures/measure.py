"""Streaming measures: their base class, and the batches that they see."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int
from torch import Tensor

from ..sparse_code import SparseCode
from .bootstrap import FloatArray
from .record import Record

# Number of comparisons between the slots of a token that are done at once.
_COMPARISONS = 1 << 24


@dataclass(frozen=True)
class WindowLosses:
    """Sums over kept positions for each of `w` windows, in nats.

    count:    number of next-token losses summed: one for each position except the last of a window.
    clean:    loss of the unchanged model.
    spliced:  loss with the SAE's reconstruction at the site.
    ablated:  loss with zeros at the site.
    kl_count: number of predictions, including the last of a window.
    kl_...:   divergence from the clean predictions, sum_v p_clean log(p_clean / p).
    """

    count: Int[Tensor, "w"]
    clean: Float64[Tensor, "w"]
    spliced: Float64[Tensor, "w"]
    ablated: Float64[Tensor, "w"]
    kl_count: Int[Tensor, "w"]
    kl_spliced: Float64[Tensor, "w"]
    kl_ablated: Float64[Tensor, "w"]


class Spliced(NamedTuple):
    """Sums as in `WindowLosses`, with another reconstruction at the site."""

    spliced: Float64[Tensor, "w"]
    kl_spliced: Float64[Tensor, "w"]


@dataclass(frozen=True)
class EvalBatch:
    """Activations of a batch of windows, without the excluded positions, with their codes and reconstructions.

    x:       `[n, d]` the activations to reconstruct; for a transcoder, its target.
    x_hat:   `[n, d]` their reconstructions.
    rows:    `[n]` flat positions in the measured `Tokens`, ascending.
    window:  `[n]` the window of each row.
    windows: `[w]` all windows of the batch, ascending.
    code:    `[n, k]` the SAE's code.
    losses:  losses on the first windows of the batch; None if they are not measured on it.
    spliced_level: gives the losses there with the reconstruction of one layer or level (`SAE.decode`) at the site. Each
             call takes a forward pass of the language model.
    """

    x: Float32[Tensor, "n d"]
    rows: Int[Tensor, "n"]
    window: Int[Tensor, "n"]
    windows: Int[Tensor, "w"]
    code: SparseCode
    x_hat: Float32[Tensor, "n d"]
    losses: WindowLosses | None = None
    spliced_level: Callable[[int], Spliced] | None = None

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def _membership(self) -> Float64[Tensor, "w n"]:
        return (self.windows[:, None] == self.window).double()

    def sums(self, column: Tensor) -> Tensor:
        """Sums of `column`, `[n]` or `[n, m]`, over the rows of each window: `[w]` or `[w, m]` in float64."""
        # A matrix product: index_add_ sums in arbitrary order on a GPU, so two runs would differ.
        return self._membership @ column.double()


class WindowTable:
    """Named float64 columns, `[windows]` or `[windows, m]`, to which each batch appends its windows."""

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
    """Which slots are active, and their ids, in slices small enough to compare all pairs of slots at once."""
    step = max(_COMPARISONS // code.ids.shape[1] ** 2, 1)
    yield from zip(code.active(threshold).split(step), code.ids.split(step), strict=True)


class Measure(ABC):
    """A streaming measure: it sees every batch once, in order, and then returns its record.

    Its sums are float64 and additive over windows.
    """

    @abstractmethod
    def update(self, batch: EvalBatch) -> None:
        """Add a batch to the sums."""

    @abstractmethod
    def record(self, settings: Mapping[str, Any]) -> Record:
        """The record of all batches seen. It repeats `settings`, to which the measure adds its own."""
