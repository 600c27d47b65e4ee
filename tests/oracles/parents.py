"""Slow, obvious references for parents from data and for features that start anew.

Written from docs/spec/tree-sae.md#parents-from-data and #start-anew alone, in float64.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

ROOT = -1

Tokens = Sequence[tuple[set[int], set[int]]]
"""Of every token the features whose own detector is on, and the active ones."""


def new_parent(
    tokens: Tokens,
    child: int,
    parent: int,
    candidates: Sequence[int],
    *,
    score: str,
    earned: float,
    hysteresis: float,
    min_count: int,
    shuffles: int = 0,
) -> int:
    """The parent that the tokens support, the present one, or -1 for the root."""
    on = [active for own, active in tokens if child in own]
    if len(on) < min_count:
        return parent
    n, chance = len(tokens), 0.0
    for i in range(1, shuffles + 1):
        shift = int(i / (shuffles + 1) * n)
        shifted = [(own, tokens[(t - shift) % n][1]) for t, (own, _) in enumerate(tokens)]
        chance = max(chance, *(excess_of(shifted, child, p) for p in candidates))
    earned += chance

    def excess(p: int) -> float:
        rate = sum(p in active for _, active in tokens) / len(tokens)
        return sum(p in active for active in on) / len(on) - rate

    def ranked(p: int) -> float:
        if score == "excess":
            return excess(p)
        rate = sum(p in active for _, active in tokens) / len(tokens)
        together = sum(p in active for active in on)
        if together < min_count or excess(p) <= earned:
            return -math.inf
        return math.log2(together / len(on) / rate)

    stays = parent in candidates and excess(parent) > earned
    least = ranked(parent) if stays else earned if score == "excess" else 0.0
    best = max(candidates, key=lambda p: (ranked(p), -p))
    if ranked(best) > least + hysteresis:
        return best
    return parent if stays else ROOT


def excess_of(tokens: Tokens, child: int, parent: int) -> float:
    """P(parent active | child's own detector on) - P(parent active)."""
    on = [active for own, active in tokens if child in own]
    rate = sum(parent in active for _, active in tokens) / len(tokens)
    return sum(parent in active for active in on) / len(on) - rate


def direction(residual: NDArray[np.float64], drawn: int, alike: int) -> NDArray[np.float64]:
    """The unit vector along the mean residual of a drawn token and those most like it, weighted by their cosine."""
    norms = np.sqrt((residual**2).sum(1))
    cosines = [float(residual[drawn] @ residual[t] / norms[drawn] / norms[t]) for t in range(len(residual))]
    total = np.zeros(residual.shape[1])
    for t in sorted(range(len(residual)), key=lambda t: -cosines[t])[:alike]:
        total += max(cosines[t], 0.0) * residual[t]
    return total / np.sqrt((total**2).sum())


def encoder_norm(
    residual: NDArray[np.float64],
    u: NDArray[np.float64],
    row: NDArray[np.float64],
    together: Sequence[NDArray[np.float64]],
    median: float,
) -> float:
    """The length of an encoder row along `row`, by least squares, shared with the rows that begin `together`."""
    value = [max(float(row @ u[t]), 0.0) for t in range(len(u))]
    fitted = sum(value[t] * float(row @ residual[t]) for t in range(len(u))) / sum(v**2 for v in value)
    overlap = sum(max(float(row @ other), 0.0) ** 2 for other in together)
    return min(max(fitted / overlap, 0.05 * median), median)
