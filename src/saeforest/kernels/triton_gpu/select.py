"""The selection of active features: the largest entries of rows, and the largest of active features' children."""

from __future__ import annotations

from math import isqrt
from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor
from triton import knobs

from .. import plain
from .launch import launch

# Rows of up to this many entries are searched as a whole; of longer rows, only the best groups are.
_DIRECT = 4096
# The largest number of entries that one program searches: 16 for each thread, so that all stay in registers.
_SEARCHED = 8192
# The number of entries for which one program computes the maxima of groups.
_GROUPED = 4096
# The tiles for children's pre-activations. A masked row is not read and costs only products, which are cheap here, so
# tiles may be larger than most parents can fill.
_TOKENS, _CHILDREN = 32, 32
# The largest `k` that a search can find: with two candidates in every group.
_MOST_K = _SEARCHED // 2


# -- the k largest entries of each row


@triton.jit
@no_type_check
def _bounds(begin, row, m):
    """The start and the length of row `row`. Without `begin`, all rows have length `m` and follow each other."""
    if begin is None:
        start, length = row * m, row * 0 + m
    else:
        start = tl.load(begin + row)
        length = tl.load(begin + row + 1) - start
    return start, length


@triton.jit
@no_type_check
def _group_maxima(h, begin, m, maxima, n_groups, GROUP: tl.constexpr, GROUPS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    start, length = _bounds(begin, row, m)
    group = tl.program_id(1) * GROUPS + tl.arange(0, GROUPS)
    at = group[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    x = tl.load(h + start + at, mask=at < length, other=0.0).to(tl.float32)
    tl.store(maxima + row * n_groups + group, tl.max(x, axis=1), mask=group < n_groups)


@triton.jit
@no_type_check
def _k_best(
    h,
    begin,
    m,
    groups,
    values,
    positions,
    k,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Search one row. `groups`: the groups of `GROUP` entries to be searched, -1 in unused slots."""
    row = tl.program_id(0).to(tl.int64)
    start, length = _bounds(begin, row, m)
    at = tl.arange(0, BLOCK)
    if groups is None:
        mine = at < length
    else:
        slot = at // GROUP
        group = tl.load(groups + row * k + slot, mask=slot < k, other=-1)
        at = group * GROUP + at % GROUP
        mine = (group >= 0) & (at < length)
    x = tl.load(h + start + at, mask=mine, other=0.0).to(tl.float32)

    # Positive floats have the same order as their bits. Find the largest number that k entries reach, bit by bit.
    key = tl.where(x > 0, x, 0.0).to(tl.int32, bitcast=True)
    threshold = tl.full([], 0, tl.int32)
    for i in range(BITS):
        candidate = threshold | (1 << (30 - i))
        reached = tl.sum((key >= candidate).to(tl.int32))
        threshold = tl.where(reached >= k, candidate, threshold)

    # Select all entries above it, and the first of those equal to it.
    above = key > threshold
    equal = (key == threshold) & (key > 0)
    missing = k - tl.sum(above.to(tl.int32))
    taken = above | (equal & (tl.cumsum(equal.to(tl.int32), axis=0) <= missing))
    to = row * k + tl.cumsum(taken.to(tl.int32), axis=0) - 1
    tl.store(values + to, x, mask=taken)
    tl.store(positions + to, at, mask=taken)


def _best(
    h: Float[Tensor, "total"], begin: Int[Tensor, "n_and_1"] | None, n: int, m: int, k: int
) -> tuple[Float[Tensor, "n k"], Int[Tensor, "n k"]]:
    """The `k` largest positive entries of each of `n` rows, in order of position; unused slots come last, with -1.

    The rows follow each other in `h`, with `m` entries each, or at most `m` from `begin[t]` to `begin[t + 1] - 1`.
    """
    values = h.new_zeros(n, k)
    positions = torch.full((n, k), -1, dtype=torch.int32, device=h.device)
    if m <= _DIRECT:
        groups, group, searched = None, 1, m
    else:
        # The k largest entries are in the k groups with the largest maxima. The least has to be searched if there are
        # as many groups as entries in k groups.
        balanced = triton.next_power_of_2(isqrt(m // k))
        group = max(min(balanced, _SEARCHED // triton.next_power_of_2(k), _GROUPED), 2)
        n_groups = triton.cdiv(m, group)
        maxima = h.new_empty(n, n_groups)
        per_program = _GROUPED // group
        grid = (n, triton.cdiv(n_groups, per_program))
        launch(
            _group_maxima, grid, h, begin, m, maxima, n_groups, GROUP=group, GROUPS=per_program, num_warps=4
        )
        groups = _best(maxima.view(-1), None, n, n_groups, k)[1]
        searched = k * group
    # The lower half of a bfloat16's bits is zero.
    bits = 15 if h.dtype == torch.bfloat16 else 31
    block = max(triton.next_power_of_2(searched), 32)
    options = {"BITS": bits, "GROUP": group, "BLOCK": block, "num_warps": max(block // 512, 1)}
    launch(_k_best, (n,), h, begin, m, groups, values, positions, k, **options)
    return values, positions


def _descending(
    values: Float[Tensor, "n k"], positions: Int[Tensor, "n k"]
) -> tuple[Float[Tensor, "n k"], Int[Tensor, "n k"]]:
    values, order = values.sort(dim=1, descending=True, stable=True)
    return values, positions.gather(1, order).long()


def top_positive(h: Float[Tensor, "n m"], k: int) -> tuple[Float[Tensor, "n k"], Int[Tensor, "n k"]]:
    """The same as `plain.top_positive`; of equal entries the first are selected. `h` may be bfloat16.

    PyTorch's `topk` reads long rows several times. This reads them once, to find the maxima of groups of entries.
    """
    n, m = h.shape
    if not 0 < k <= _MOST_K or h.dtype not in (torch.float32, torch.bfloat16):
        return plain.top_positive(h, k)
    values, positions = _descending(*_best(h.contiguous().view(-1), None, n, m, k))
    return values, positions.clamp(min=0)


# -- the children of active features


@triton.jit
@no_type_check
def _child_scores(
    u,
    encoder,
    pairs,
    first_pair,
    first,
    children,
    parents,
    first_tile,
    offsets,
    scores,
    n_active,
    d,
    TOKENS: tl.constexpr,
    CHILDREN: tl.constexpr,
    BLOCK: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """One tile: up to `TOKENS` rows in which a parent is active, by up to `CHILDREN` of its children."""
    tile = tl.program_id(0)
    parent = tl.load(parents + tile)
    begin = tl.load(first + parent)
    n_children = tl.load(first + parent + 1) - begin
    # Tiles with the same rows follow each other, so that the rows are still in the cache.
    tile -= tl.load(first_tile + parent)
    across = tl.cdiv(n_children, CHILDREN)
    at_pair = tl.load(first_pair + parent) + tile // across * TOKENS + tl.arange(0, TOKENS)
    at_child = tile % across * CHILDREN + tl.arange(0, CHILDREN)
    has_pair = at_pair < tl.load(first_pair + parent + 1)
    has_child = at_child < n_children

    pair = tl.load(pairs + at_pair, mask=has_pair, other=0)
    row = (pair // n_active).to(tl.int64)
    child = tl.load(children + begin + at_child, mask=has_child, other=0).to(tl.int64)
    total = tl.zeros([TOKENS, CHILDREN], tl.float32)
    for start in range(0, d, BLOCK):
        cols = start + tl.arange(0, BLOCK)
        inside = cols < d
        a_mask = has_pair[:, None] & inside[None, :]
        b_mask = inside[:, None] & has_child[None, :]
        a = tl.load(u + row[:, None] * d + cols[None, :], mask=a_mask, other=0.0)
        b = tl.load(encoder + child[None, :] * d + cols[:, None], mask=b_mask, other=0.0)
        b = b.to(a.dtype)
        if WIDEN:
            a, b = a.to(tl.float32), b.to(tl.float32)
        total = tl.dot(a, b, total, input_precision="ieee")
    to = tl.load(offsets + pair, mask=has_pair, other=0)[:, None] + at_child[None, :]
    tl.store(scores + to, total, mask=has_pair[:, None] & has_child[None, :])


def top_children(
    u: Float[Tensor, "n d"],
    encoder: Float[Tensor, "F d"],
    active: Int[Tensor, "n a"],
    first: Int[Tensor, "F_and_1"],
    children: Int[Tensor, "c"],
    k: int,
    precision: torch.dtype,
) -> tuple[Float[Tensor, "n k"], Int[Tensor, "n k"]]:
    """The same as `plain.top_children`, computing pre-activations of children of active parents only.

    They are computed in tiles of rows by children of one parent, and written to one long buffer, in which those of each
    row are contiguous. The search for the largest of a row reads them from there. This waits for the GPU once, to get
    the length of the buffer.
    """
    if k > _MOST_K or precision not in (torch.float32, torch.bfloat16):
        return plain.top_children(u, encoder, active, first, children, k, precision)
    first, children = first.contiguous(), children.contiguous()
    (n, n_active), n_features, d = active.shape, len(first) - 1, u.shape[1]
    nothing = u.new_zeros(n, k), children.new_zeros(n, k)
    if 0 in (active.numel(), n_features, k):
        return nothing
    active = active.flatten()
    unused = active < 0
    sizes = first.diff()
    wanted = torch.where(unused, 0, sizes[active.clamp(min=0)])
    ends = wanted.cumsum(0)
    offsets = ends - wanted
    begin = torch.nn.functional.pad(ends[n_active - 1 :: n_active], (1, 0))

    # A pair is an active parent in a row, given by its position in `active`. Sort the pairs by parent.
    parents, pairs = torch.where(unused, n_features, active).int().sort(stable=True)
    features = torch.arange(n_features + 1, dtype=torch.int32, device=u.device)
    first_pair = torch.searchsorted(parents, features)
    tiles = _cdiv(first_pair.diff(), _TOKENS) * _cdiv(sizes, _CHILDREN)
    last_tile = tiles.cumsum(0)

    total, most, n_tiles = torch.stack([ends[-1], begin.diff().max(), last_tile[-1]]).tolist()
    if total == 0:
        return nothing
    scores = u.new_empty(total, dtype=torch.float32)
    tile_parents = torch.searchsorted(last_tile, torch.arange(n_tiles, device=u.device), right=True)
    # Rows of `u` are read again for every 32 children, so convert them once. Rows of the encoder are read less often.
    tensors = (u.to(precision).contiguous(), encoder.contiguous(), pairs, first_pair, first, children)
    more = (tile_parents, last_tile - tiles, offsets, scores)
    options = {
        "TOKENS": _TOKENS,
        "CHILDREN": _CHILDREN,
        # Read 128 bytes of every row of `u` at a time.
        "BLOCK": 64 if precision == torch.bfloat16 else 32,
        # Triton's interpreter multiplies the bits of bfloat16 as integers. In float32 the products are the same.
        "WIDEN": knobs.runtime.interpret,
        "num_warps": 4,
        "num_stages": 3,
    }
    launch(_child_scores, (n_tiles,), *tensors, *more, n_active, d, **options)

    values, positions = _descending(*_best(scores, begin, n, most, k))
    # Unused slots get a valid position; what is read from it is discarded.
    at = (begin[:-1, None] + positions).clamp(0, total - 1)
    pair = torch.searchsorted(ends, at, right=True)
    ids = children[first[active[pair]] + at - offsets[pair]]
    return values.to(u.dtype), torch.where(positions < 0, 0, ids)


def _cdiv(a: Int[Tensor, "m"], b: int) -> Int[Tensor, "m"]:
    return (a + b - 1) // b


def best_children(
    u: Float[Tensor, "n d"],
    encoder: Float[Tensor, "F d"],
    active: Int[Tensor, "n a"],
    first: Int[Tensor, "F_and_1"],
    children: Int[Tensor, "c"],
    k: int,
) -> tuple[Float[Tensor, "n k"], Int[Tensor, "n k"]]:
    """The same as `plain.best_children`."""
    return top_children(u, encoder, active, first, children, k, u.dtype)
