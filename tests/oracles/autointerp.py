"""Which windows show a feature, in slow arithmetic on dense values (docs/spec/judges.md#windows).

a: `[windows, context]` one feature's values; a centre is (window, position).
"""

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
Centre = tuple[int, int]


def centres(a: FloatArray, buffer: int) -> list[Centre]:
    """All tokens with a whole window round them."""
    n, context = a.shape
    return [(w, p) for w in range(n) for p in range(context) if p - buffer >= 0 and p + buffer <= context - 1]


def window(a: FloatArray, centre: Centre, buffer: int) -> list[float]:
    w, p = centre
    return [float(a[w, q]) for q in range(p - buffer, p + buffer + 1)]


def top(a: FloatArray, buffer: int, n: int) -> list[Centre]:
    left = [c for c in centres(a, buffer) if a[c] > 0]
    found: list[Centre] = []
    while left and len(found) < n:
        best = max(left, key=lambda c: (a[c], -c[0], -c[1]))
        found.append(best)
        left = [c for c in left if c[0] != best[0] or abs(c[1] - best[1]) > buffer]
    return found


def sampling(a: FloatArray, buffer: int, below: float, power: float) -> dict[Centre, float]:
    """The probability of each centre to be drawn first."""
    weight = {c: float(a[c]) ** power for c in centres(a, buffer) if 0 < a[c] < below}
    return {c: w / sum(weight.values()) for c, w in weight.items()}


def silent(a: FloatArray, buffer: int) -> set[Centre]:
    return {c for c in centres(a, buffer) if not any(v > 0 for v in window(a, c, buffer))}


def score(predicted: set[int], truth: list[bool]) -> float:
    """Of passages counted from 1."""
    return sum((i in predicted) == t for i, t in enumerate(truth, 1)) / len(truth)
