"""Streaming measures: their base class, and the batches that they see."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int
from numpy.typing import NDArray
from torch import Tensor

from ..sparse_code import SparseCode
from .bootstrap import Estimate, FloatArray, Formula, estimate, same_units
from .record import Record

#: Below this many documents, windows stand in for documents as the units of a bootstrap.
FEW_DOCUMENTS = 30
# Number of comparisons between the slots of a token that are done at once.
_COMPARISONS = 1 << 24


@dataclass(frozen=True)
class WindowLosses:
    """Sums over kept positions for each of `w` windows or parts of them (see `EvalBatch`), in nats.

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
    window:  `[n]` the window of each row or, where a window holds several documents, the part with one of them.
    windows: `[w]` all windows of the batch, or their parts, ascending.
    origin:  `[w, 2]` the window and the document of each; None if the activations come from no text.
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
    origin: Int[Tensor, "w 2"] | None = None
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
    """Named float64 columns, `[windows]` or `[windows, m]`, to which each batch appends its windows or parts of them.

    The first column is the number of tokens.
    """

    def __init__(self) -> None:
        self._parts: dict[str, list[FloatArray]] = {}
        self._origin: list[NDArray[np.int64]] = []
        self.batch_starts: list[int] = []
        self._n_windows = 0

    def add(self, batch: EvalBatch, **columns: Tensor) -> None:
        """Append the first windows of a batch: as many as the columns have."""
        if batch.origin is not None:
            self._origin.append(batch.origin[: len(next(iter(columns.values())))].cpu().numpy())
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

    @property
    def resampled(self) -> str:
        """What `estimate` resamples: "documents", or "context windows" if there are few documents, or none."""
        return self._units()[0]

    def estimate(self, formula: Formula) -> Estimate:
        """`bootstrap.estimate` over documents, or over windows. formula: of the weights of the table's rows."""
        units, ids, place = self._units()
        tokens = np.bincount(place, next((self[name] for name in self._parts), None), len(ids))
        return estimate(lambda weights: formula(weights[:, place]), len(ids), same_units(units, ids, tokens))

    def _units(self) -> tuple[str, NDArray[np.int64], NDArray[np.int64]]:
        """What is resampled, the numbers of these units, and the unit of each row."""
        if not self._origin:
            return "context windows", np.arange(len(self)), np.arange(len(self))
        window, document = np.concatenate(self._origin).T
        many = len(np.unique(document)) >= FEW_DOCUMENTS
        ids, place = np.unique(document if many else window, return_inverse=True)
        return "documents" if many else "context windows", ids, place


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

    n_levels: int = 0
    """The number of layers or levels for which it calls `EvalBatch.spliced_level`."""

    @abstractmethod
    def update(self, batch: EvalBatch) -> None:
        """Add a batch to the sums."""

    @abstractmethod
    def record(self, settings: Mapping[str, Any]) -> Record:
        """The record of all batches seen. It repeats `settings`, to which the measure adds its own."""
