"""Coverage without the gate, slow and in float64, by its definition (docs/spec/hierarchy.md#ungated)."""

import math
import statistics

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]


def level(values: list[float]) -> float:
    """Halfway between the median (of two middle values, the lower) and the next larger value."""
    ranked = sorted(values)
    middle = ranked.index(statistics.median_low(ranked))
    return (ranked[middle] + ranked[middle + 1]) / 2


def ungated(
    h: FloatArray, a: FloatArray, alone: BoolArray, parent: list[int], min_count: int
) -> dict[int, tuple[float, float]]:
    """Coverage without the gate, and lift, by child. All arguments are `[n, F]`.

    h: pre-activations of all features by themselves. a: values of the code. alone: what is active in its own right.
    """
    n, found = len(h), {}
    for c, p in enumerate(parent):
        values = [float(v) for v in a[:, c] if v > 0]
        if p < 0 or len(values) < min_count:
            continue
        bar = level(values)
        on = [t for t in range(n) if h[t, c] > bar]
        if not on:
            continue
        both = sum(bool(alone[t, p]) for t in on)
        base = sum(bool(alone[t, p]) for t in range(n)) / n
        # As with one more token, on which the parent is active as often as anywhere.
        lift = math.log2((both + base) / (len(on) + 1) / base) if base else 0.0
        found[c] = (both / len(on), lift)
    return found
