"""Values with percentile-bootstrap intervals, from one formula of the weights of the resampled units.

A measure keeps a few additive numbers for each unit (a window of text, a family of siblings) and gives a formula
that takes weights `[b, units]`. Weights of 1 give the measured value; a resample's weights say how often it drew each
unit.

All resamples of n units are the same, whatever is measured on them. So the values of two SAEs on the same units, such
as the documents of one text, can be compared resample by resample (`paired_difference`): what the text does to both
cancels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ..saes import SAE
from .record import Interval, Replicates

RESAMPLES, SEED = 1000, 0
# Random seed for reordering the replicates of one of two values that are independent of each other.
_SEED_OF_ORDER = 1
_MAX_UNDEFINED = 0.05
# Resamples are weighed in slices, so that no array of weights exceeds this many entries.
_WEIGHT_ENTRIES = 1 << 22

FloatArray = NDArray[np.float64]
Formula = Callable[[FloatArray], dict[str, FloatArray]]


class Estimate(NamedTuple):
    """Values by name, None where undefined; their 95% intervals; and, of those with an interval, the replicates."""

    value: dict[str, float | None]
    interval: dict[str, Interval]
    replicates: dict[str, Replicates]

    def joined(self, other: Estimate) -> Estimate:
        """The values of both, which have different names."""
        return Estimate(
            self.value | other.value, self.interval | other.interval, self.replicates | other.replicates
        )


class Contrast(NamedTuple):
    """A difference of two values, its 95% interval and replicates. paired: whether both were resampled together."""

    value: float
    interval: Interval
    replicates: Replicates | None
    paired: bool


def interval_method(units: str) -> str:
    """How `estimate` computes intervals, for a record's settings. units: what is resampled, a plural."""
    return f"95% percentile bootstrap over {units}, {RESAMPLES} resamples, seed {SEED}"


def same_units(units: str, *ids: Tensor | NDArray[np.generic]) -> str:
    """A name for the units that are resampled, the same for two measurements only if their units are the same.

    units: what is resampled, a plural.
    ids:   what identifies the units: their numbers, and what these numbers refer to.
    """
    found = hashlib.blake2b(digest_size=8)
    for tensor in ids:
        array = np.ascontiguousarray(tensor.detach().cpu().numpy() if isinstance(tensor, Tensor) else tensor)
        found.update(f"{array.dtype} {array.shape}".encode() + array.tobytes())
    return f"{units} {found.hexdigest()}"


def units_of_sae(units: str, sae: SAE, ids: Tensor | NDArray[np.generic]) -> str:
    """`same_units` for features of an SAE, such as the parents of edges. ids: their numbers.

    Another forest over the same features does not change it, so that an SAE is compared in pairs with its own null.
    """
    return same_units(units, ids, sae.W_dec[:, 0])


def estimate(formula: Formula, n_units: int, units: str = "") -> Estimate:
    """The formula's values, and the 2.5th and 97.5th percentile of each over resamples of the units.

    units: name of the units by `same_units`; without one, the values are not compared in pairs.

    A value that is not finite becomes None. There is no interval for such a value, for fewer than two units, or if the
    formula is undefined on more than 5% of the resamples, because then too few units determine it.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        value = {name: _finite(v[0]) for name, v in formula(np.ones((1, n_units))).items()}
        if n_units < 2:
            return Estimate(value, dict.fromkeys(value), {})
        slices = [formula(weights) for weights in _resamples(n_units)]
    drawn = {name: np.concatenate([part[name] for part in slices]) for name in value}
    interval = {n: None if v is None else _percentiles(drawn[n]) for n, v in value.items()}
    replicates = {n: Replicates.rounded(units, drawn[n]) for n in value if interval[n] is not None}
    return Estimate(value, interval, replicates)


def paired_difference(
    a: float, b: float, of_a: Replicates | None, of_b: Replicates | None, *, same_text: bool = True
) -> Contrast:
    """a - b with the percentile interval of its replicates.

    Where both values were resampled over the same units, the replicates are subtracted one by one. Otherwise they are
    independent, and those of b are subtracted in random order.

    of_a, of_b: the replicates of each; None if it has none, and then the difference has no interval.
    same_text:  whether both were measured on the same text. If not, equal units are not the same.
    """
    if of_a is None or of_b is None:
        return Contrast(a - b, None, None, False)
    n = min(len(of_a.drawn), len(of_b.drawn))
    paired = same_text and bool(of_a.units) and of_a.units == of_b.units
    subtracted = of_b.drawn if paired else np.random.default_rng(_SEED_OF_ORDER).permutation(of_b.drawn)
    replicates = Replicates.rounded(of_a.units if paired else "", of_a.drawn[:n] - subtracted[:n])
    interval = _percentiles(replicates.drawn)
    return Contrast(a - b, interval, replicates if interval else None, paired)


def p_value(difference: Contrast) -> float | None:
    """Two-sided: twice the smaller share of replicates on either side of zero, at most 1; None without replicates.

    The measured value counts as one more replicate, so it is never 0.
    """
    if difference.replicates is None:
        return None
    drawn = difference.replicates.drawn
    drawn = drawn[np.isfinite(drawn)]
    least = min(int((drawn <= 0).sum()), int((drawn >= 0).sum()))
    return min(2 * (least + 1) / (len(drawn) + 1), 1.0)


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
