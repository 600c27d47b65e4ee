"""Values with percentile-bootstrap intervals, from one formula of the weights of the resampled units.

A measure keeps a few additive numbers for each unit (a window of text, a family of siblings) and gives a formula
that takes weights `[b, units]`. Weights of 1 give the measured value; a resample's weights say how often it drew each
unit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .record import Interval

RESAMPLES, SEED = 1000, 0
_MAX_UNDEFINED = 0.05
# Resamples are weighed in slices, so that no array of weights exceeds this many entries.
_WEIGHT_ENTRIES = 1 << 22

FloatArray = NDArray[np.float64]
Formula = Callable[[FloatArray], dict[str, FloatArray]]


class Estimate(NamedTuple):
    """Values by name, None where undefined, and their 95% intervals."""

    value: dict[str, float | None]
    interval: dict[str, Interval]


def interval_method(units: str) -> str:
    """How `estimate` computes intervals, for a record's settings. units: what is resampled, a plural."""
    return f"95% percentile bootstrap over {units}, {RESAMPLES} resamples, seed {SEED}"


def estimate(formula: Formula, n_units: int) -> Estimate:
    """The formula's values, and the 2.5th and 97.5th percentile of each over resamples of the units.

    A value that is not finite becomes None. There is no interval for such a value, for fewer than two units, or if the
    formula is undefined on more than 5% of the resamples, because then too few units determine it.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        value = {name: _finite(v[0]) for name, v in formula(np.ones((1, n_units))).items()}
        if n_units < 2:
            return Estimate(value, dict.fromkeys(value))
        slices = [formula(weights) for weights in _resamples(n_units)]
    drawn = {name: np.concatenate([part[name] for part in slices]) for name in value}
    return Estimate(value, {n: None if v is None else _percentiles(drawn[n]) for n, v in value.items()})


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _percentiles(drawn: FloatArray) -> Interval:
    defined = drawn[np.isfinite(drawn)]
    if len(defined) < (1 - _MAX_UNDEFINED) * len(drawn):
        return None
    low, high = np.percentile(defined, (2.5, 97.5))
    return float(low), float(high)


def _resamples(n_units: int) -> Iterator[FloatArray]:
    """All resamples in slices `[b, units]`: how often each unit was drawn."""
    generator = np.random.default_rng(SEED)
    step = max(_WEIGHT_ENTRIES // n_units, 1)
    for start in range(0, RESAMPLES, step):
        n = min(step, RESAMPLES - start)
        drawn = generator.integers(n_units, size=(n, n_units)) + n_units * np.arange(n)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=n * n_units)
        yield counts.reshape(n, n_units).astype(np.float64)
