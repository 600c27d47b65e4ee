"""Rows shared among the ranks of a run: each computes its own, and all get all of them.

What a kernel returns for a row depends on that row alone, so the shares together are bit for bit what one process
computes. Outside `sharing`, and with one process, nothing is shared.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from itertools import pairwise

import numpy as np
from jaxtyping import Int, Shaped
from numpy.typing import NDArray
from torch import Tensor

from ..ranks.alone import Ranks, Scope, share
from ..sparse_code import SparseCode, padded

# A matrix product of fewer rows may add in another order.
_LEAST_ROWS = 8

_scope = Scope("rows")


def sharing(ranks: Ranks) -> AbstractContextManager[None]:
    """Inside the `with` block, all ranks run the same computation, and share the rows of the kernels below."""
    return _scope.of(ranks)


def _alone(n: int) -> bool:
    return _scope.ranks.size == 1 or n < _LEAST_ROWS * _scope.ranks.size


def by_rows(compute: Callable[[slice], tuple[Tensor, ...]], n: int) -> tuple[Tensor, ...]:
    """`compute(rows)` returns tensors with an entry for each of these rows; this returns those of all `n` rows."""
    if _alone(n):
        return compute(slice(None))
    return tuple(_scope.ranks.gather_rows(part, n) for part in compute(_scope.ranks.own(n)))


def by_groups(compute: Callable[[slice], Tensor], first: Int[Tensor, "n_and_1"]) -> Tensor:
    """The same for entries that are computed row by row: those of row t begin at `first[t]`."""
    n = len(first) - 1
    if _alone(n):
        return compute(slice(None))
    ends = [share(n, rank, _scope.ranks.size).stop for rank in range(_scope.ranks.size)]
    cuts = [0, *first[ends].tolist()]
    own = compute(slice(cuts[_scope.ranks.rank], cuts[_scope.ranks.rank + 1]))
    return _scope.ranks.gather(own, lengths=[end - start for start, end in pairwise(cuts)])


def own_work(work: NDArray[np.int64]) -> slice | None:
    """This rank's part of rows that differ in work: `work[i]` is the work of the rows before row i. None: all."""
    if _scope.ranks.size == 1:
        return None
    total = work[-1]
    low, high = (
        int(np.searchsorted(work, total * at / _scope.ranks.size))
        for at in (_scope.ranks.rank, _scope.ranks.rank + 1)
    )
    return slice(low, len(work) - 1 if _scope.ranks.rank == _scope.ranks.size - 1 else high)


def parts_together(own: Tensor) -> Tensor:
    """What all ranks have computed, where each has its own entries and zeros elsewhere."""
    return _scope.ranks.sum(own)


def code_by_rows(compute: Callable[[slice], SparseCode], n: int) -> SparseCode:
    """The same for a code, which may have more slots on some rows than on others."""
    if _alone(n):
        return compute(slice(None))
    code = compute(_scope.ranks.own(n))
    widths = _scope.ranks.gather_rows(code.ids.new_tensor([code.ids.shape[1]]), _scope.ranks.size)
    code = padded(code, int(widths.max()))
    return SparseCode(_scope.ranks.gather_rows(code.values, n), _scope.ranks.gather_rows(code.ids, n))


def entries_by_rows(
    compute: Callable[[slice], tuple[Int[Tensor, "m"], Shaped[Tensor, "m"]]], n: int
) -> tuple[Int[Tensor, "m"], Shaped[Tensor, "m"]]:
    """The same for entries: `compute(rows)` returns the row of each, counted from the first of them, and a value."""
    if _alone(n):
        return compute(slice(None))
    own = _scope.ranks.own(n)
    rows, values = compute(own)
    lengths = _scope.ranks.gather_rows(rows.new_tensor([len(rows)]), _scope.ranks.size).tolist()
    return _scope.ranks.gather(rows + own.start, lengths=lengths), _scope.ranks.gather(
        values, lengths=lengths
    )
