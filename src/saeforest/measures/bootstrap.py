"""Values with percentile-bootstrap intervals, from one formula of the weights of the units that are resampled.

A measure keeps a few additive numbers for each unit (a window of text, a family of siblings) and gives a formula
that takes weights `[b, units]`. All weights 1 is the measured value; how often each unit was drawn is a resample.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64
from numpy.typing import NDArray

from .record import Interval

RESAMPLES, SEED = 1000, 0
_MAX_UNDEFINED = 0.05
# Resamples are weighed in slices, so that no array of weights exceeds this many entries.
_WEIGHT_ENTRIES = 1 << 22

FloatArray = NDArray[np.float64]
Formula = Callable[[FloatArray], dict[str, FloatArray]]


class Estimate(NamedTuple):
    value: dict[str, float | None]
    interval: dict[str, Interval]


def interval_method(units: str) -> str:
    return f"95% percentile bootstrap over {units}, {RESAMPLES} resamples, seed {SEED}"


def estimate(formula: Formula, n_units: int) -> Estimate:
    """The formula's values, and the 2.5th and 97.5th percentile of each over resampled units.

    A value that is not finite is None. So is the interval of such a value, of fewer than two units, and where the
    formula is undefined on more than 5% of the resamples: then too few units carry it.
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


def _resamples(n_units: int) -> list[Float64[np.ndarray, "b units"]] | _Resamples:
    return _Resamples(n_units)


class _Resamples:
    """How often each unit was drawn, slice by slice."""

    def __init__(self, n_units: int) -> None:
        self.n_units = n_units
