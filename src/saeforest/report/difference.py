"""The difference of two values, with its interval and its replicates.

Where both values have bootstrap replicates, the interval of a - b is that of the differences of the replicates: taken
one by one if both were measured on the same units of the same text, which removes what the text does to both, and
otherwise in random order, because then the two are independent (`paired_difference`). A number that a claim names is
subtracted from each replicate. These replicates also give the p-value (`correction`), so that the two agree.

Where a value has none (records of older versions, means over seeds, counts), the interval combines those of a and b by
Zou and Donner's square-and-add, which assumes that a and b are independent:

    lower = (a - b) - sqrt((a - a_lo)^2 + (b_hi - b)^2),    upper = (a - b) + sqrt((a_hi - a)^2 + (b - b_lo)^2)
"""

from __future__ import annotations

import math
from typing import NamedTuple

from ..measures.bootstrap import FloatArray, paired_difference
from .load import Value


class Difference(NamedTuple):
    """The difference of two values, with its interval."""

    value: float
    lower: float
    upper: float


class Resampled(NamedTuple):
    """The interval of a difference of values that have replicates, and the replicates of the difference."""

    lower: float
    upper: float
    drawn: FloatArray


def resampled(a: Value, b: Value) -> Resampled | None:
    """The difference a - b by replicates; None if a side has none and is not a number that the claim names."""
    if a.value is None or b.value is None:
        return None
    if a.replicates is not None and b.replicates is not None:
        same_text = bool(a.text) and a.text == b.text
        found = paired_difference(a.value, b.value, a.replicates, b.replicates, same_text=same_text)
        if found.replicates is None or found.interval is None:
            return None
        return Resampled(*found.interval, found.replicates.drawn)
    if a.replicates is not None and a.interval is not None and _is_a_number(b):
        low, high = a.interval
        return Resampled(low - b.value, high - b.value, a.replicates.drawn - b.value)
    if b.replicates is not None and b.interval is not None and _is_a_number(a):
        low, high = b.interval
        return Resampled(a.value - high, a.value - low, a.value - b.replicates.drawn)
    return None


def _is_a_number(value: Value) -> bool:
    """Whether a value is a number that the claim names, which was not measured."""
    return value.interval is None and not value.tokens


def difference(a: Value, b: Value) -> Difference:
    """a - b with its interval: by replicates, or by Zou and Donner's method where there are none.

    A value without an interval is taken as exact. Raises ValueError if one is undefined.
    """
    if a.value is None or b.value is None:
        raise ValueError("a difference of undefined values")
    d = a.value - b.value
    if (found := resampled(a, b)) is not None:
        return Difference(d, found.lower, found.upper)
    a_lo, a_hi = a.interval or (a.value, a.value)
    b_lo, b_hi = b.interval or (b.value, b.value)
    return Difference(
        d,
        d - math.hypot(max(a.value - a_lo, 0), max(b_hi - b.value, 0)),
        d + math.hypot(max(a_hi - a.value, 0), max(b.value - b_lo, 0)),
    )
