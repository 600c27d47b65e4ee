"""Relatedness by slow, obvious loops: distributions as dictionaries, all pairs of scores, hypernyms step by step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from math import log2

import numpy as np


def jsd(a: Sequence[int], b: Sequence[int]) -> float:
    """Jensen-Shannon divergence in bits of two samples: the mean divergence from their mixture."""
    p, q = Counter(a), Counter(b)
    total = 0.0
    for counts, n in ((p, len(a)), (q, len(b))):
        for token, count in counts.items():
            share = count / n
            mixed = (p[token] / len(a) + q[token] / len(b)) / 2
            total += share * log2(share / mixed) / 2
    return total


def auc(weights: Sequence[float], edge: Sequence[float], matched: Sequence[float]) -> float:
    """The weighted share of all pairs in which the edge's score is the larger; ties count half."""
    won = total = 0.0
    for a, u in zip(edge, weights, strict=True):
        for b, v in zip(matched, weights, strict=True):
            won += u * v * ((a > b) + (a == b) / 2)
            total += u * v
    return won / total


def above(hypernyms: Mapping[str, Iterable[str]], word: str) -> set[str]:
    """All words above a word."""
    found: set[str] = set()
    todo = list(hypernyms.get(word, ()))
    while todo:
        one = todo.pop()
        if one not in found:
            found.add(one)
            todo += hypernyms.get(one, ())
    return found


def windows_apart(
    rows: Iterable[int], child: Iterable[int], context: int, buffer: int, first: int
) -> list[int]:
    """Rows whose whole window fits into their context window and shares no token with that of a child's firing."""
    child = list(child)

    def window(row: int) -> set[int]:
        return set(range(row - buffer, row + buffer + 1))

    def allowed(row: int) -> set[int]:
        start = row // context * context
        return set(range(start + first, start + context))

    return [
        row
        for row in rows
        if window(row) <= allowed(row)
        and not any(window(row) & window(c) for c in child if c // context == row // context)
    ]


def cosine_of_means(vectors: np.ndarray, a: Iterable[int], b: Iterable[int], mean: np.ndarray) -> float:
    """The cosine of the centered means of two lists of rows of `vectors`."""
    x, y = (np.mean([vectors[i] for i in ids], axis=0) - mean for ids in (a, b))
    return float(x @ y / np.sqrt((x @ x) * (y @ y)))
