"""The rules by which systems select active features from pre-activations.

Each takes pre-activations `[n, F]`, or functions that find the largest of them, and returns a SparseCode with positive
values: the pre-activations, or by how much they exceed a threshold. Unused slots have value 0 and id 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..kernels import kth_largest, top_positive
from ..sparse_code import SparseCode, concat_rows, concat_slots
from .encode import PreActivations


def top_k(h: Float[Tensor, "n F"], k: int) -> SparseCode:
    """The `k` largest entries of every row, after ReLU (docs/spec/baselines.md#topk)."""
    return SparseCode(*top_positive(h, min(k, h.shape[1])))


def largest(codes: list[SparseCode], k: int) -> SparseCode:
    """The `k` largest entries of every row of several codes, which must have no features in common."""
    every = concat_slots(codes)
    values, slots = top_positive(every.values, k)
    return SparseCode(values, torch.where(values > 0, every.ids.gather(1, slots), 0))


def batch_top_k(
    best: Callable[[int], SparseCode],
    beyond: Callable[[Bool[Tensor, "n"], float], SparseCode],
    n: int,
    d_sae: int,
    k: int,
) -> SparseCode:
    """The `k * n` largest positive pre-activations of a batch of `n` rows (docs/spec/baselines.md#batchtopk).

    best: `best(width)` returns the `width` largest entries of every row.
    beyond: `beyond(rows, bound)` returns all entries above the bound in the given rows.
    """
    rows = best(min(4 * k, d_sae))
    bound = kth_largest(rows.values, k * n)
    # Few rows have more than 4 k of the batch's largest entries. For those that were cut off, get all entries above the
    # bound.
    cut = rows.values.amin(1) > bound
    if bool(cut.any()) and rows.values.shape[1] < d_sae:
        rows = with_rows(rows, cut, beyond(cut, bound))
        bound = kth_largest(rows.values, k * n)
    kept, equal = rows.values > bound, (rows.values == bound) & (rows.values > 0)
    room = k * n - int(kept.sum())
    kept |= equal & (equal.flatten().cumsum(0) <= room).view_as(equal)
    widest = max(int(kept.sum(1).max()), 1)
    return largest([SparseCode(torch.where(kept, rows.values, 0), rows.ids)], widest)


def with_rows(code: SparseCode, which: Bool[Tensor, "n"], rows: SparseCode) -> SparseCode:
    """The code with other entries in some of its rows, as wide as the wider of the two."""
    whole = concat_rows([SparseCode(code.values[~which], code.ids[~which]), rows])
    order = torch.cat([(~which).nonzero(), which.nonzero()]).flatten().argsort()
    return SparseCode(whole.values[order], whole.ids[order])


def exceeding(h: Float[Tensor, "n F"], bound: float) -> SparseCode:
    """All features with a pre-activation above a positive bound."""
    return top_k(h, max(int((h > bound).sum(1).max()), 1))


def above(h: Float[Tensor, "n F"], floor: Float[Tensor, "F"]) -> SparseCode:
    """All features above their floor; the values are the differences (docs/spec/baselines.md#batchtopk)."""
    excess = (h - floor).relu()
    width = max(int((excess > 0).sum(1).max()), 1) if len(h) else 1
    return top_k(excess, width)


# -- the same rules as components of a system


@runtime_checkable
class Selection(Protocol):
    """A rule that selects the active features of activations."""

    def __call__(self, h: PreActivations, u: Float[Tensor, "n d_in"]) -> SparseCode: ...


@dataclass(frozen=True)
class TopK:
    """Selects the `k` largest pre-activations of every activation."""

    k: int

    def __call__(self, h: PreActivations, u: Float[Tensor, "n d_in"]) -> SparseCode:
        return h.choose(u, lambda dense: top_k(dense, self.k))


@dataclass(frozen=True)
class BatchTopK:
    """Selects the `k * n` largest pre-activations of a batch of `n` activations."""

    k: int
    d_sae: int

    @torch.no_grad()
    def __call__(self, h: PreActivations, u: Float[Tensor, "n d_in"]) -> SparseCode:
        return batch_top_k(
            lambda width: h.choose(u, lambda dense: top_k(dense, width)),
            lambda rows, bound: h.choose(u[rows], lambda dense: exceeding(dense, bound)),
            len(u),
            self.d_sae,
            self.k,
        )


@dataclass(frozen=True)
class Above:
    """Selects every feature with a pre-activation above its threshold."""

    threshold: Float[Tensor, "F"]

    def __call__(self, h: PreActivations, u: Float[Tensor, "n d_in"]) -> SparseCode:
        return h.choose(u, lambda dense: above(dense, self.threshold.to(dense.dtype)))
