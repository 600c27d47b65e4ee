"""A dictionary whose rows lie on several ranks: each has those of every size-th feature, and all read every activation.

Codes, counters and parents are whole on all ranks; only the rows of the weights, their gradients and the optimizer's
state are divided. A rank selects the best of its own features, and of the candidates of all ranks the same are chosen
everywhere. Each computes the values of its own selected features; a reconstruction is the sum of what all ranks add to
it. So a child needs no parent on its own rank, and moves to another parent without its weights moving at all.

The sums over ranks add in another order than one process, so results differ in the last bits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from ..ranks.alone import ALONE, Ranks, Scope, share
from ..sparse_code import SparseCode, concat_slots, padded

_scope = Scope("shards")

# Fewer numbers than this, and those of two ranks, are summed after one exchange, in which each rank sends all of its
# own to all others: a second exchange would save less than it takes.
_FEW_NUMBERS = 1 << 14


def sharded(ranks: Ranks) -> AbstractContextManager[None]:
    """Inside the `with` block, weights that kernels are given are the rows of this rank's features."""
    return _scope.of(ranks)


def divided() -> bool:
    """Whether weights are rows of this rank's features."""
    return _scope.ranks.size > 1


def mine(features: Int[Tensor, "*m"]) -> Bool[Tensor, "*m"]:
    """Which of the features have their rows on this rank."""
    return features % _scope.ranks.size == _scope.ranks.rank


def place(features: Int[Tensor, "*m"]) -> Int[Tensor, "*m"]:
    """The row of each of this rank's features."""
    return features // _scope.ranks.size


def feature(rows: Int[Tensor, "*m"]) -> Int[Tensor, "*m"]:
    """The feature of each row of this rank."""
    return rows * _scope.ranks.size + _scope.ranks.rank


def own_shard() -> tuple[int, int]:
    """(r, S): the rows here are those of the features r, r + S, r + 2 S, ..."""
    return _scope.ranks.rank, _scope.ranks.size


def of_level(features: slice) -> tuple[slice, slice]:
    """Those of consecutive features that are this rank's: their rows here, and the features themselves."""
    size, rank = _scope.ranks.size, _scope.ranks.rank
    start, stop = (-(-(at - rank) // size) for at in (features.start, features.stop))
    return slice(start, stop), slice(start * size + rank, features.stop, size)


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
        ctx.ranks = _scope.ranks
        return whole.view_as(whole)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return _total(grads[0], ctx.ranks)


def _total(part: Tensor, ranks: Ranks | None = None) -> Tensor:
    """The sum over ranks in their order, the same on all.

    Each rank adds up its share of the numbers, and then all get the shares of all: so a rank sends less than twice the
    tensor, however many ranks there are.
    """
    ranks, n = ranks or _scope.ranks, part.numel()
    if ranks.size == 2 or n < _FEW_NUMBERS:
        return _added(list(ranks.gather_rows(part[None].contiguous(), ranks.size)))
    flat, own = part.contiguous().view(-1), ranks.own(n)
    shares = [flat[share(n, rank, ranks.size)] for rank in range(ranks.size)]
    total = _added(ranks.trade(shares, [torch.Size([own.stop - own.start])] * ranks.size))
    return ranks.gather_rows(total, n).view(part.shape)


def _added(parts: Sequence[Tensor]) -> Tensor:
    total = parts[0]
    for other in parts[1:]:
        total = total + other
    return total


def summed(part: Tensor) -> Tensor:
    """The sum of the parts of all ranks, with gradients for them."""
    if not divided():
        return part
    return _Sum.apply(part)  # pyright: ignore[reportReturnType]


def handed_out(whole: Tensor) -> Tensor:
    """A tensor that all ranks have, before each uses it for its own features."""
    return _Spread.apply(whole) if divided() and whole.requires_grad else whole  # pyright: ignore[reportReturnType]


def best_of_all(code: SparseCode, rule: Callable[[Float[Tensor, "n c"]], SparseCode]) -> SparseCode:
    """What `rule` selects from the candidates of all ranks, given those that it selected from this rank's features."""
    widths = _scope.ranks.gather_rows(code.ids.new_tensor([code.ids.shape[1]]), _scope.ranks.size)
    code = padded(code, int(widths.max()))
    values, ids = _by_rank(code.values), _by_rank(code.ids)
    every = concat_slots([SparseCode(v, i) for v, i in zip(values, ids, strict=True)])
    # In the order of features, as one process has them: features that began alike have equal values.
    ids, order = every.ids.sort(dim=1, stable=True)
    chosen = rule(every.values.gather(1, order))
    return SparseCode(chosen.values, torch.where(chosen.values > 0, ids.gather(1, chosen.ids), 0))


def _by_rank(own: Tensor) -> Tensor:
    return _scope.ranks.gather_rows(own[None].contiguous(), _scope.ranks.size)


def entries_of_all(
    rows: Int[Tensor, "m"], ids: Int[Tensor, "m"], d_sae: int
) -> tuple[Int[Tensor, "e"], Int[Tensor, "e"]]:
    """The entries that all ranks have found, each among its own features: ordered by rows, then by features."""
    if not divided():
        return rows, ids
    every = _scope.ranks.gather(rows * d_sae + ids).sort().values
    return every // d_sae, every % d_sae


def largest(h: Float[Tensor, "n m"]) -> Float[Tensor, "n 1"]:
    """The largest value in each row, of this rank's features and of all others'. No gradients."""
    h = h.detach()
    own = h.amax(1, keepdim=True) if h.shape[1] else h.new_full((len(h), 1), -torch.inf)
    return _by_rank(own).amax(0) if divided() else own


def rows_of(weight: Shaped[Tensor, "m *d"], features: slice | Int[Tensor, "n"]) -> Shaped[Tensor, "n *d"]:
    """The rows of features, wherever they lie. No gradients."""
    if not divided():
        return weight[features].detach()
    if isinstance(features, slice):
        features = torch.arange(features.start, features.stop, device=weight.device)
    size, own = _scope.ranks.size, place(features[mine(features)])
    of = features % size
    every = _scope.ranks.gather(weight[own].detach(), lengths=of.bincount(minlength=size).tolist())
    return every[of.argsort(stable=True).argsort()]


def put_rows(
    weight: Shaped[Tensor, "m *d"], features: Int[Tensor, "n"], rows: Shaped[Tensor, "n *d"]
) -> None:
    """Give features these rows, which are the same on all ranks. No gradients."""
    own = mine(features)
    weight[place(features[own])] = rows[own].to(weight.dtype)


def rearrange(weight: Shaped[Tensor, "m *d"], at: Int[Tensor, "F"]) -> None:
    """Let rows change places, also from rank to rank: that of feature `at[i]` becomes that of feature `i`."""
    moved = (at != torch.arange(len(at), device=at.device)).nonzero().flatten()
    put_rows(weight, moved, rows_of(weight, at[moved]))


class _Columns(torch.autograd.Function):
    """From this rank's rows of a matrix to its columns of all rows."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, n: int) -> Tensor:
        ranks, d = _scope.ranks, own.shape[1]
        size, mine = ranks.size, ranks.own(d)
        width = mine.stop - mine.start
        ctx.ranks, ctx.columns = ranks, [share(d, rank, size) for rank in range(size)]
        shapes = [torch.Size([len(range(rank, n, size)), width]) for rank in range(size)]
        found = ranks.trade([own[:, at] for at in ctx.columns], shapes)
        columns = own.new_empty(n, width)
        for rank, part in enumerate(found):
            columns[rank::size] = part
        return columns

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        size, rank = ctx.ranks.size, ctx.ranks.rank
        parts = [grads[0][other::size] for other in range(size)]
        shapes = [torch.Size([len(parts[rank]), at.stop - at.start]) for at in ctx.columns]
        return torch.cat(ctx.ranks.trade(parts, shapes), 1), None


def by_columns(
    compute: Callable[[Sequence[Tensor], Float[Tensor, "F c"]], Tensor],
    values: Sequence[Tensor],
    weight: Float[Tensor, "m d"],
    n: int,
) -> Tensor:
    """`compute(values, weight)`, with gradients for both, where that is a sum over the columns of the weight.

    Products of two rows that lie on different ranks are such sums, so each rank computes its part from its share of the
    columns of all `n` rows. The values are the same on all ranks, and `compute` sees no shards.
    """
    if not divided():
        return compute(values, weight)
    values = [handed_out(part) for part in values]
    columns = _Columns.apply(weight, n)
    with sharded(ALONE):
        part = compute(values, columns)  # pyright: ignore[reportArgumentType]
    return summed(part)
