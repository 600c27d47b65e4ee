"""A dictionary whose rows lie on several ranks: each has those of every size-th feature, and all read every activation.

Codes, counters and parents are whole on all ranks; only the rows of the weights, their gradients and the optimizer's
state are divided. A rank selects the best of its own features, and of the candidates of all ranks the same are chosen
everywhere. Each computes the values of its own selected features; a reconstruction is the sum of what all ranks add to
it. So a child needs no parent on its own rank, and moves to another parent without its weights moving at all.

The sums over ranks add in another order than one process, so results differ in the last bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..ranks.alone import ALONE, Ranks
from ..sparse_code import SparseCode, concat_slots, padded

_ranks: Ranks = ALONE


@contextmanager
def sharded(ranks: Ranks) -> Iterator[None]:
    """Inside the `with` block, weights that kernels are given are the rows of this rank's features."""
    global _ranks
    before, _ranks = _ranks, ranks
    try:
        yield
    finally:
        _ranks = before


def divided() -> bool:
    """Whether weights are rows of this rank's features."""
    return _ranks.size > 1


def mine(features: Int[Tensor, "m"]) -> Bool[Tensor, "m"]:
    """Which of the features have their rows on this rank."""
    return features % _ranks.size == _ranks.rank


def place(features: Int[Tensor, "m"]) -> Int[Tensor, "m"]:
    """The row of each of this rank's features."""
    return features // _ranks.size


def feature(rows: Int[Tensor, "m"]) -> Int[Tensor, "m"]:
    """The feature of each row of this rank."""
    return rows * _ranks.size + _ranks.rank


class _Sum(torch.autograd.Function):
    """The sum over ranks. What comes after it is the same on all, so its gradient is already that of every part."""

    @staticmethod
    def forward(ctx: Any, part: Tensor) -> Tensor:
        return _total(part)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0]


class _Spread(torch.autograd.Function):
    """A tensor that is the same on all ranks, each of which uses a part of it: its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, whole: Tensor) -> Tensor:
        ctx.ranks = _ranks
        return whole.view_as(whole)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return _total(grads[0], ctx.ranks)


def _total(part: Tensor, ranks: Ranks | None = None) -> Tensor:
    """The sum over ranks in their order, the same on all."""
    ranks = ranks or _ranks
    every = ranks.gather_rows(part[None].contiguous(), ranks.size)
    total = every[0]
    for other in every[1:]:
        total = total + other
    return total


def summed(part: Tensor) -> Tensor:
    """The sum of the parts of all ranks, with gradients for them."""
    return _Sum.apply(part)  # pyright: ignore[reportReturnType]


def handed_out(whole: Tensor) -> Tensor:
    """A tensor that all ranks have, before each uses it for its own features."""
    return _Spread.apply(whole) if whole.requires_grad else whole  # pyright: ignore[reportReturnType]


def best_of_all(code: SparseCode, rule: Callable[[Float[Tensor, "n c"]], SparseCode]) -> SparseCode:
    """What `rule` selects from the candidates of all ranks, given those that it selected from this rank's features."""
    widths = _ranks.gather_rows(code.ids.new_tensor([code.ids.shape[1]]), _ranks.size)
    code = padded(code, int(widths.max()))
    values, ids = _by_rank(code.values), _by_rank(code.ids)
    every = concat_slots([SparseCode(v, i) for v, i in zip(values, ids, strict=True)])
    chosen = rule(every.values)
    return SparseCode(chosen.values, torch.where(chosen.values > 0, every.ids.gather(1, chosen.ids), 0))


def _by_rank(own: Tensor) -> Tensor:
    return _ranks.gather_rows(own[None].contiguous(), _ranks.size)
