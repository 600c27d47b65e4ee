"""The three sparse products."""

from __future__ import annotations

from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from .launch import columns, launch

# The number of rows that a program requests at once: enough reads in flight to hide their latency.
_ROWS, _PAIRS = 8, 4
# The entries of a feature with more than this many are summed by several programs.
_CHUNK = 256


@triton.jit
@no_type_check
def _weighted_sum(values, ids, begin, end, weight, d, cols, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """The sum of `values[i] weight[ids[i]]` over `begin <= i < end`, for the columns `cols`."""
    total = tl.zeros([BLOCK], tl.float32)
    for i in range(begin, end, ROWS):
        at = i + tl.arange(0, ROWS)
        mine = at < end
        value = tl.load(values + at, mask=mine, other=0.0).to(tl.float32)
        row = tl.load(ids + at, mask=mine, other=0).to(tl.int64)
        # Masked rows are not read, so a partly filled last tile costs little.
        mask = mine[:, None] & (cols < d)[None, :]
        tile = tl.load(weight + row[:, None] * d + cols[None, :], mask=mask, other=0.0).to(tl.float32)
        total += tl.sum(value[:, None] * tile, axis=0)
    return total


@triton.jit
@no_type_check
def _weighted_rows(values, ids, begin, end, weight, out, d, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    t = tl.program_id(0).to(tl.int64)
    cols = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = _weighted_sum(
        values, ids, tl.load(begin + t), tl.load(end + t), weight, d, cols, ROWS=ROWS, BLOCK=BLOCK
    )
    tl.store(out + t * d + cols, total, mask=cols < d)


@triton.jit
@no_type_check
def _gather_dot(x, rows, ids, weight, out, m, d, PAIRS: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * PAIRS + tl.arange(0, PAIRS)
    mine = at < m
    row = tl.load(rows + at, mask=mine, other=0).to(tl.int64)
    feature = tl.load(ids + at, mask=mine, other=0).to(tl.int64)
    total = tl.zeros([PAIRS, BLOCK], tl.float32)
    for start in range(0, d, BLOCK):
        cols = start + tl.arange(0, BLOCK)
        mask = mine[:, None] & (cols < d)[None, :]
        a = tl.load(x + row[:, None] * d + cols[None, :], mask=mask, other=0.0).to(tl.float32)
        b = tl.load(weight + feature[:, None] * d + cols[None, :], mask=mask, other=0.0).to(tl.float32)
        total += a * b
    tl.store(out + at, tl.sum(total, axis=1), mask=mine)


@triton.jit
@no_type_check
def _feature_sums(
    values, rows, first, x, chunk_sums, first_chunk, out, d, ROWS: tl.constexpr, BLOCK: tl.constexpr
):
    """The sum for one feature, over its entries, or over the sums of chunks if it has several."""
    f = tl.program_id(0).to(tl.int64)
    cols = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    chunk, end_chunk = tl.load(first_chunk + f), tl.load(first_chunk + f + 1)
    if chunk == end_chunk:
        total = _weighted_sum(
            values, rows, tl.load(first + f), tl.load(first + f + 1), x, d, cols, ROWS=ROWS, BLOCK=BLOCK
        )
    else:
        total = tl.zeros([BLOCK], tl.float32)
        for i in range(chunk, end_chunk):
            total += tl.load(chunk_sums + i * d + cols, mask=cols < d, other=0.0)
    tl.store(out + f * d + cols, total, mask=cols < d)


def weighted_rows(
    values: Float[Tensor, "m"],
    ids: Int[Tensor, "m"],
    first: Int[Tensor, "n_and_1"],
    weight: Float[Tensor, "F d"],
) -> Float[Tensor, "n d"]:
    """One program for each row and block of columns."""
    out = weight.new_empty(len(first) - 1, weight.shape[1])
    _into(out, values.contiguous(), ids.contiguous(), first[:-1], first[1:], weight.contiguous())
    return out


def _into(
    out: Float[Tensor, "n d"],
    values: Float[Tensor, "m"],
    ids: Int[Tensor, "m"],
    begin: Int[Tensor, "n"],
    end: Int[Tensor, "n"],
    weight: Float[Tensor, "F d"],
) -> None:
    n, d = out.shape
    block, blocks, warps = columns(d)
    options = {"ROWS": _ROWS, "BLOCK": block, "num_warps": warps}
    launch(_weighted_rows, (n, blocks), values, ids, begin, end, weight, out, d, **options)


def gather_dot(
    x: Float[Tensor, "r d"], rows: Int[Tensor, "m"], ids: Int[Tensor, "m"], weight: Float[Tensor, "F d"]
) -> Float[Tensor, "m"]:
    """One program for a few entries. Entries of the same row are together, so that it is read from the cache."""
    m, d = len(ids), x.shape[1]
    out = x.new_empty(m)
    block, _, warps = columns(d)
    tensors = (x.contiguous(), rows.contiguous(), ids.contiguous(), weight.contiguous(), out)
    options = {"PAIRS": _PAIRS, "BLOCK": block, "num_warps": warps}
    launch(_gather_dot, (triton.cdiv(m, _PAIRS),), *tensors, m, d, **options)
    return out


def scatter_outer(
    values: Float[Tensor, "m"],
    rows: Int[Tensor, "m"],
    ids: Int[Tensor, "m"],
    x: Float[Tensor, "r d"],
    n_rows: int,
) -> Float[Tensor, "F d"]:
    """One program for each feature and block of columns, over entries sorted by feature; the order is fixed.

    The entries of frequent features are first summed in chunks, so that no program takes much longer than the others.
    """
    x = x.contiguous()
    m, d = len(ids), x.shape[1]
    by_id, order = ids.int().sort(stable=True)  # needs half the passes of a 64-bit sort
    values, rows = values[order], rows[order]
    first = torch.searchsorted(by_id, torch.arange(n_rows + 1, dtype=torch.int32, device=ids.device))

    counts = first.diff()
    chunks = torch.where(counts > _CHUNK, (counts + _CHUNK - 1) // _CHUNK, 0)
    first_chunk = torch.nn.functional.pad(chunks.cumsum(0), (1, 0))
    # The number of chunks is known only on the GPU. Features with several chunks fill, on average, more than half of
    # each, which bounds the number. Chunks after those of the last feature are empty.
    chunk = torch.arange(2 * m // _CHUNK, device=ids.device)
    feature = torch.searchsorted(first_chunk[1:], chunk, right=True).clamp(max=max(n_rows - 1, 0))
    begin = first[feature] + (chunk - first_chunk[feature]) * _CHUNK
    end = torch.minimum(begin + _CHUNK, first[feature + 1])
    chunk_sums = x.new_empty(len(chunk), d, dtype=torch.float32)
    _into(chunk_sums, values, rows, begin, end, x)

    out = x.new_empty(n_rows, d)
    block, blocks, warps = columns(d)
    options = {"ROWS": _ROWS, "BLOCK": block, "num_warps": warps}
    launch(
        _feature_sums, (n_rows, blocks), values, rows, first, x, chunk_sums, first_chunk, out, d, **options
    )
    return out
