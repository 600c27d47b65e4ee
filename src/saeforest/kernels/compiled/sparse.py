"""The three sparse products: four rows at a time, so that what they share is read once."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .threads import jit, over_rows, over_work


@jit
def add_rows(out, weight, ids, values, n):
    """`out += sum of values[i] weight[ids[i]]` over the first n."""
    i = 0
    while i + 4 <= n:
        a, b, c, d = values[i], values[i + 1], values[i + 2], values[i + 3]
        p, q, r, s = weight[ids[i]], weight[ids[i + 1]], weight[ids[i + 2]], weight[ids[i + 3]]
        for x in range(len(out)):
            out[x] += a * p[x] + b * q[x] + c * r[x] + d * s[x]
        i += 4
    while i < n:
        a, p = values[i], weight[ids[i]]
        for x in range(len(out)):
            out[x] += a * p[x]
        i += 1


@jit
def dot_rows(out, x, weight, ids, n):
    """`out[i] = x . weight[ids[i]]` for the first n."""
    i = 0
    while i + 4 <= n:
        a = b = c = d = x.dtype.type(0)
        p, q, r, s = weight[ids[i]], weight[ids[i + 1]], weight[ids[i + 2]], weight[ids[i + 3]]
        for j in range(len(x)):
            y = x[j]
            a += y * p[j]
            b += y * q[j]
            c += y * r[j]
            d += y * s[j]
        out[i], out[i + 1], out[i + 2], out[i + 3] = a, b, c, d
        i += 4
    while i < n:
        a, p = x.dtype.type(0), weight[ids[i]]
        for j in range(len(x)):
            a += x[j] * p[j]
        out[i] = a
        i += 1


@jit
def by_id(ids, used, n_ids):
    """The places of entries in use ordered by id, those of one id in their old order, and where each id's begin."""
    first = np.zeros(n_ids + 1, np.int64)
    for i in range(len(ids)):
        if used[i]:
            first[ids[i] + 1] += 1
    for i in range(n_ids):
        first[i + 1] += first[i]
    place = first[:-1].copy()
    order = np.empty(first[-1], np.int64)
    for i in range(len(ids)):
        if used[i]:
            order[place[ids[i]]] = i
            place[ids[i]] += 1
    return order, first


@jit
def _weighted_rows(out, values, ids, first, weight, low, high):
    for t in range(low, high):
        begin, end = first[t], first[t + 1]
        row = out[t]
        for j in range(len(row)):
            row[j] = 0
        add_rows(row, weight, ids[begin:end], values[begin:end], end - begin)


@jit
def _gather_dot(out, x, rows, ids, weight, low, high):
    begin = low
    while begin < high:
        end = begin + 1
        while end < high and rows[end] == rows[begin]:
            end += 1
        dot_rows(out[begin:end], x[rows[begin]], weight, ids[begin:end], end - begin)
        begin = end


@jit
def _take(values, rows, order):
    chosen_values, chosen_rows = np.empty(len(order), values.dtype), np.empty(len(order), rows.dtype)
    for i in range(len(order)):
        chosen_values[i], chosen_rows[i] = values[order[i]], rows[order[i]]
    return chosen_values, chosen_rows


def weighted_rows(values: Tensor, ids: Tensor, first: Tensor, weight: Tensor) -> Tensor:
    out = weight.new_empty(len(first) - 1, weight.shape[1])
    over_work(_weighted_rows, first.numpy(), *arrays(out, values, ids, first, weight))
    return out


def gather_dot(x: Tensor, rows: Tensor, ids: Tensor, weight: Tensor) -> Tensor:
    out = x.new_empty(len(ids))
    over_rows(_gather_dot, len(ids), *arrays(out, x, rows, ids, weight))
    return out


def scatter_outer(values: Tensor, rows: Tensor, ids: Tensor, x: Tensor, n_rows: int) -> Tensor:
    out = x.new_empty(n_rows, x.shape[1])
    out_, values_, rows_, ids_, x_ = arrays(out, values, rows, ids, x)
    order, first = by_id(ids_, values_ != 0, n_rows)
    values_, rows_ = _take(values_, rows_, order)
    # The weighted sums of the rows of x, of each feature's entries; a row to be written is work even without any.
    over_work(_weighted_rows, first + np.arange(n_rows + 1), out_, values_, rows_, first, x_)
    return out


def arrays(*tensors: Tensor) -> list[np.ndarray]:
    """The same memory for NumPy."""
    return [t.detach().contiguous().numpy() for t in tensors]


def as_bits(x: Tensor) -> np.ndarray:
    """Floating-point numbers as integers, which for positive numbers are ordered alike; negative ones are negative."""
    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}
    return x.detach().contiguous().view(integers[x.element_size()]).numpy()
