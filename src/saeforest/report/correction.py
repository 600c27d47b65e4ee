"""p-values of claims, and their correction for the number of claims by Holm's method.

A difference has a p-value from the replicates that give its interval (`difference`, `bootstrap.p_value`). These cannot
tell how small it is where no replicate lies beyond the null, so there it is the smaller of theirs and the normal
approximation by their spread. The mean over several seeds has no replicates; its p-value is that of Student's t, by the
interval of the difference and the side with fewer seeds. Anything else has none (docs/spec/records.md#correction).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.stats import t as student

from ..measures.bootstrap import Contrast, p_value
from ..measures.record import Replicates
from .difference import resampled
from .load import Value

#: A claim is decided if its p-value is at most this.
LEVEL = 0.05


def p_of(a: Value, b: Value, bounds: tuple[float, float], equal_within: float | None = None) -> float | None:
    """The p-value of a - b being on its side of zero; None if it has none.

    bounds:       the interval of a - b.
    equal_within: test instead whether a and b are this near to each other (or this far, if they are farther).
    """
    if a.value is None or b.value is None:
        return None
    if equal_within is None:
        return _p_against(0.0, a, b, bounds)
    d = a.value - b.value
    if abs(d) >= equal_within:
        return _p_against(math.copysign(equal_within, d), a, b, bounds)
    each = [_p_against(end, a, b, bounds) for end in (-equal_within, equal_within)]
    known = [p for p in each if p is not None]
    return max(known) if len(known) == len(each) else None


def _p_against(null: float, a: Value, b: Value, bounds: tuple[float, float]) -> float | None:
    """The two-sided p-value of a - b if the truth were `null`."""
    assert a.value is not None
    assert b.value is not None
    d = a.value - b.value - null
    if a.each or b.each:
        df = min(len(value.each) for value in (a, b) if value.each) - 1
        half = (a.value - b.value - bounds[0]) if d > 0 else (bounds[1] - (a.value - b.value))
        if half <= 0:
            return None
        return float(2 * student.sf(student.ppf(0.975, df) * abs(d) / half, df))
    found = resampled(a, b)
    if found is None:
        return None
    shifted = Replicates("", found.drawn - null)
    p = p_value(Contrast(d, None, shifted, False))
    spread, n = float(np.nanstd(shifted.drawn)), int(np.isfinite(shifted.drawn).sum())
    if p is not None and p <= 2 / (n + 1) and spread > 0:
        return min(p, math.erfc(abs(d) / spread / math.sqrt(2)))
    return p


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """The p-values corrected for their number by Holm's method; those that are None do not count.

    Source: S. Holm, A simple sequentially rejective multiple test procedure, Scand. J. Statist. 6 (1979).
    """
    known = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    corrected: list[float | None] = [None] * len(p_values)
    least = 0.0
    for rank, (p, i) in enumerate(known):
        least = max(least, min((len(known) - rank) * p, 1.0))
        corrected[i] = least
    return corrected
