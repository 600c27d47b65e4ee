"""The grouped encode of active features' children: for every parent, its tokens times its children.

A child's pre-activation matters only where its parent is active, which is a few in a hundred of all. The tokens on
which a parent is active and the children it has are a small dense product, done four by four from rows that stay
where they are; every score is written where its token will look for it.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .sparse import arrays, by_id, dot_rows
from .threads import jit, over_rows, over_work


@jit
def _pairs(active, first):
    """The slots of active features with children, as (token, feature), and where each one's scores begin."""
    n, slots = active.shape
    begin = np.empty((n, slots + 1), np.int64)
    features, tokens, offsets = np.empty((3, n * slots), np.int64)
    n_pairs = total = 0
    for t in range(n):
        for j in range(slots):
            begin[t, j] = total
            p = active[t, j]
            if p >= 0 and first[p + 1] > first[p]:
                features[n_pairs], tokens[n_pairs], offsets[n_pairs] = p, t, total
                n_pairs += 1
                total += first[p + 1] - first[p]
        begin[t, slots] = total
    return features[:n_pairs], tokens[:n_pairs], offsets[:n_pairs], begin, total


@jit
def _four_by_four(u, encoder, tokens, children, scores, offsets):
    a = b = c = d = e = f = g = h = u.dtype.type(0)
    i = j = k = m = n = o = p = q = u.dtype.type(0)
    u0, u1, u2, u3 = u[tokens[0]], u[tokens[1]], u[tokens[2]], u[tokens[3]]
    w0, w1, w2, w3 = encoder[children[0]], encoder[children[1]], encoder[children[2]], encoder[children[3]]
    for x in range(u.shape[1]):
        r, s, t, v = u0[x], u1[x], u2[x], u3[x]
        y0, y1, y2, y3 = w0[x], w1[x], w2[x], w3[x]
        a += r * y0
        b += r * y1
        c += r * y2
        d += r * y3
        e += s * y0
        f += s * y1
        g += s * y2
        h += s * y3
        i += t * y0
        j += t * y1
        k += t * y2
        m += t * y3
        n += v * y0
        o += v * y1
        p += v * y2
        q += v * y3
    at = offsets[0]
    scores[at], scores[at + 1], scores[at + 2], scores[at + 3] = a, b, c, d
    at = offsets[1]
    scores[at], scores[at + 1], scores[at + 2], scores[at + 3] = e, f, g, h
    at = offsets[2]
    scores[at], scores[at + 1], scores[at + 2], scores[at + 3] = i, j, k, m
    at = offsets[3]
    scores[at], scores[at + 1], scores[at + 2], scores[at + 3] = n, o, p, q


@jit
def _scores(scores, u, encoder, tokens, offsets, group, first, children, low, high):
    column = np.empty(4, scores.dtype)
    for p in range(low, high):
        mine = children[first[p] : first[p + 1]]
        whole = len(mine) - len(mine) % 4
        t, last = group[p], group[p + 1]
        if len(mine) == 0:
            continue
        while t + 4 <= last:
            for c in range(0, whole, 4):
                _four_by_four(u, encoder, tokens[t : t + 4], mine[c:], scores, offsets[t : t + 4] + c)
            for c in range(whole, len(mine)):
                dot_rows(column, encoder[mine[c]], u, tokens[t : t + 4], 4)
                for i in range(4):
                    scores[offsets[t + i] + c] = column[i]
            t += 4
        while t < last:
            dot_rows(scores[offsets[t] :], u[tokens[t]], encoder, mine, len(mine))
            t += 1


@jit
def _offer(values, ids, size, value, i):
    """Keeps the largest offered, in a heap with the smallest on top; among equals, those offered first.

    Returns how many are kept now. `values` and `ids` have room for as many as shall be kept.
    """
    at = size
    if size < len(values):
        while at and values[(at - 1) >> 1] > value:
            values[at], ids[at] = values[(at - 1) >> 1], ids[(at - 1) >> 1]
            at = (at - 1) >> 1
        values[at], ids[at] = value, i
        return size + 1
    if value <= values[0]:
        return size
    at, below = 0, 1
    while below < size:
        if below + 1 < size and values[below + 1] < values[below]:
            below += 1
        if values[below] >= value:
            break
        values[at], ids[at] = values[below], ids[below]
        at, below = below, 2 * below + 1
    values[at], ids[at] = value, i
    return size


@jit
def _best(values, ids, scores, begin, active, first, children, low, high):
    for t in range(low, high):
        size = 0
        for j in range(active.shape[1]):
            start = begin[t, j]
            for i in range(start, begin[t, j + 1]):
                if scores[i] > 0:
                    child = children[first[active[t, j]] + i - start]
                    size = _offer(values[t], ids[t], size, scores[i], child)
        values[t, size:] = 0
        ids[t, size:] = 0


def top_children(
    u: Tensor,
    encoder: Tensor,
    active: Tensor,
    first: Tensor,
    children: Tensor,
    k: int,
    precision: torch.dtype,  # nothing is gained by less than the weights' own
) -> tuple[Tensor, Tensor]:
    values, ids = u.new_empty(len(u), k), children.new_empty(len(u), k)
    u_, encoder_, active_, first_, children_ = arrays(u, encoder, active, first, children)
    features, tokens, offsets, begin, total = _pairs(active_, first_)
    order, group = by_id(features, np.ones(len(features), np.bool_), len(first) - 1)
    scores = np.empty(total, u_.dtype)
    work = np.concatenate([[0], np.cumsum(np.diff(group) * np.diff(first_) + 1)])
    over_work(_scores, work, scores, u_, encoder_, tokens[order], offsets[order], group, first_, children_)
    over_rows(_best, len(u), *arrays(values, ids), scores, begin, active_, first_, children_)
    return values, ids
