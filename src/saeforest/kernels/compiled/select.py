"""The k largest entries of rows, without sorting them.

A row is cut into blocks. The k-th largest of the blocks' maxima is a bound that at least k entries reach, so only
blocks that reach it are looked into, and few entries of these are above it. Numbers are compared as the integers
their bits spell, which order positive numbers alike, and bounds are found by bisection: nothing branches on data.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .sparse import as_bits
from .threads import jit, over_rows

_BLOCK = 64


@jit
def _kth_largest(entries, n, k):
    """Of the first n entries, none negative; 0 where there are fewer than k."""
    low, high = np.int64(0), np.int64(0)
    for i in range(n):
        high = max(high, np.int64(entries[i]))
    high += 1
    while high - low > 1:
        middle = low + (high - low) // 2
        bound = entries.dtype.type(middle)
        count = 0
        for i in range(n):
            count += entries[i] >= bound
        if count >= k:
            low = middle
        else:
            high = middle
    return low


@jit
def _reaching(row, begin, end, bound, found, n):
    """Appends the places of entries that reach the bound to the n found so far."""
    for i in range(begin, end):
        found[n] = i  # stays if it reaches it, and is overwritten otherwise
        n += row[i] >= bound
    return n


@jit
def _top_positive(ids, used, h, k, block, low, high):
    width = h.shape[1]
    n_blocks = (width + block - 1) // block
    maxima = np.empty(n_blocks, h.dtype)
    found, entries = np.empty(width + 1, np.int64), np.empty(width, h.dtype)
    for t in range(low, high):
        row = h[t]
        for b in range(n_blocks):
            part = row[b * block : (b + 1) * block]
            largest = part[0]
            for i in range(1, len(part)):
                largest = part[i] if part[i] > largest else largest
            maxima[b] = largest if largest > 0 else 0
        bound = h.dtype.type(max(_kth_largest(maxima, n_blocks, k), 1))
        n = 0
        for b in range(n_blocks):
            if maxima[b] >= bound:
                n = _reaching(row, b * block, min((b + 1) * block, width), bound, found, n)
        for i in range(n):
            entries[i] = row[found[i]]
        least = h.dtype.type(max(_kth_largest(entries, n, k), 1))
        room = k  # for entries that equal the last
        for i in range(n):
            room -= entries[i] > least
        size = 0
        for i in range(n):
            if entries[i] > least or (entries[i] == least and room > 0):
                room -= entries[i] == least
                ids[t, size] = found[i]
                size += 1
        ids[t, size:] = 0
        used[t] = size


def top_positive(h: Tensor, k: int) -> tuple[Tensor, Tensor]:
    n, width = h.shape
    ids, used = torch.empty(n, k, dtype=torch.int64), torch.empty(n, dtype=torch.int64)
    block = _BLOCK
    while block > 1 and width < 4 * k * block:
        block //= 2
    over_rows(_top_positive, n, ids.numpy(), used.numpy(), as_bits(h), k, block)
    return torch.where(torch.arange(k) < used[:, None], h.gather(1, ids), 0), ids
