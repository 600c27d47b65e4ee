"""Record: the values of a measure and the settings behind them, as one JSON file (docs/spec/records.md#record)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
from jaxtyping import Float64, Int
from numpy.typing import NDArray
from pydantic import ConfigDict, Field
from torch import Tensor

from ..errors import InputError
from ..files import read_json, write_json
from ..schema import Count, Name, Schema, checked

Interval = tuple[float, float] | None
# Replicates are kept with this many significant digits.
_DIGITS = 6
# More replicates than any measurement has.
_MOST_REPLICATES = 1 << 20
# Number of values that `repr` shows: some measures have dozens.
_SHOWN = 12


class _Texts(Schema):
    """The parts of a record's detail that other code reads."""

    null: dict[Name, Name] = Field(default_factory=dict)
    units: dict[Name, Name] = Field(default_factory=dict)


class _Replicates(Schema):
    """The replicates of a value in a file: numbers with spaces between them, so that they take one line."""

    units: str
    drawn: Annotated[str, Field(max_length=16 * _MOST_REPLICATES)]


class _File(Schema):
    """The layout of a record's file. Records of older versions have no replicates."""

    model_config = ConfigDict(extra="forbid")

    measure: Name
    value: dict[Name, float | None]
    interval: dict[Name, tuple[float, float] | None]
    unit: Name
    tokens: Count
    settings: dict[Name, Any]
    detail: _Texts
    replicates: dict[Name, _Replicates] = Field(default_factory=dict)


class Replicates(NamedTuple):
    """A value on each resample of a bootstrap.

    units: name of the units that were resampled; empty if it is not known which they were.
    drawn: `[resamples]` the value on each resample, NaN where it is undefined.
    """

    units: str
    drawn: NDArray[np.float64]

    @classmethod
    def rounded(cls, units: str, drawn: NDArray[np.float64]) -> Replicates:
        """Replicates rounded to the digits that a file keeps."""
        kept = np.array([float(f"{x:.{_DIGITS}g}") for x in drawn.tolist()])
        return cls(units, np.where(np.isfinite(kept), kept, np.nan))

    def to_json(self) -> dict[str, str]:
        """As in a file."""
        return {"units": self.units, "drawn": " ".join(f"{x:.{_DIGITS}g}" for x in self.drawn.tolist())}

    @classmethod
    def of_json(cls, data: dict[str, str]) -> Replicates:
        """From a file. Raises ValueError if it does not hold numbers."""
        return cls.rounded(data["units"], np.array([float(x) for x in data["drawn"].split()]))


class EdgeScores(NamedTuple):
    """A score for edges of a forest, larger where the data support the edge more. child: the children of the edges."""

    child: Int[Tensor, "e"]
    score: Float64[Tensor, "e"]


@dataclass(frozen=True, repr=False)
class Record:
    """The values of one measure.

    measure:  name of the measure.
    value:    name -> number; None if it is undefined, and `detail["null"][name]` says why in one line.
    interval: name -> 95% interval, or None; `settings["interval_method"]` says how it was computed.
    unit:     unit of the values, except for those that `detail["units"]` lists.
    tokens:   number of measured positions.
    settings: what a reader needs to repeat the measurement or to compare it with another.
    detail:   further results of this measure, ready for JSON.
    replicates:  name -> the value on each resample of the bootstrap, where there is an interval and they were kept.
    edge_scores: name -> a score for each measured edge. They are compared with those of a null, and not written.

    Raises ValueError for a number that is not finite, and for an undefined value without a reason.
    """

    measure: str
    value: dict[str, float | None]
    interval: dict[str, Interval]
    unit: str
    tokens: int
    settings: dict[str, Any]
    detail: dict[str, Any] = field(default_factory=dict)
    replicates: dict[str, Replicates] = field(default_factory=dict, compare=False)
    edge_scores: dict[str, EdgeScores] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        if self.interval.keys() != self.value.keys():
            raise ValueError(f"{self.measure}: intervals of {list(self.interval)}, values {list(self.value)}")
        if others := self.replicates.keys() - self.value.keys():
            raise ValueError(f"{self.measure}: replicates of {sorted(others)}, which are no values")
        for name, value in self.value.items():
            numbers = [*(self.interval[name] or ()), *([] if value is None else [value])]
            if not all(map(math.isfinite, numbers)):
                raise ValueError(f"{self.measure}: {name} = {value}, interval {self.interval[name]}")
            if value is None and name not in self.null:
                raise ValueError(f"{self.measure}: {name} is undefined, but detail['null'] does not say why")

    def __repr__(self) -> str:
        shown = [f"  {name} = {self._shown(name)}" for name in list(self.value)[:_SHOWN]]
        more = len(self.value) - len(shown)
        head = f"Record({self.measure}, {self.tokens:,} activations)"
        return "\n".join([head, *shown, *([f"  and {more} more in .value"] if more > 0 else [])])

    def _shown(self, name: str) -> str:
        value, interval = self.value[name], self.interval[name]
        if value is None:
            return f"undefined: {self.null[name]}"
        number = f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
        return number if interval is None else f"{number} [{interval[0]:.4g}, {interval[1]:.4g}]"

    @property
    def null(self) -> dict[str, str]:
        """Why each undefined value is undefined."""
        return self.detail.get("null", {})

    def unit_of(self, name: str) -> str:
        """The unit of one value."""
        return self.detail.get("units", {}).get(name, self.unit)

    def to_json(self) -> dict[str, Any]:
        """The record without replicates and scores of edges."""
        return {
            f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("replicates", "edge_scores")
        }

    def write(self, path: Path) -> None:
        """Write the record with its replicates, but without scores of edges."""
        kept = {name: found.to_json() for name, found in self.replicates.items()}
        write_json(path, self.to_json() | ({"replicates": kept} if kept else {}))

    @classmethod
    def read(cls, path: Path) -> Record:
        """Read what `write` wrote. Raises InputError if the file is missing, damaged, or not a record."""
        data = read_json(path)
        what = f"{path}: not the record of a measure"
        checked(_File, data, what, "run `saeforest eval` again")
        try:
            data["interval"] = {
                name: None if pair is None else (pair[0], pair[1]) for name, pair in data["interval"].items()
            }
            kept = data.pop("replicates", {})
            return cls(**data, replicates={name: Replicates.of_json(found) for name, found in kept.items()})
        except (
            TypeError,
            ValueError,
        ) as error:  # intervals and values differ in names, or a reason is missing
            raise InputError(f"{what} ({str(error)[:200]}); run `saeforest eval` again") from None


def undefined(value: Mapping[str, float | None], why: Mapping[str, str], tokens: int) -> dict[str, str]:
    """The reason for each undefined value: that in `why`, unless nothing was measured at all."""
    nothing = "no token was measured"
    return {n: nothing if tokens == 0 else why.get(n, "undefined") for n, v in value.items() if v is None}
