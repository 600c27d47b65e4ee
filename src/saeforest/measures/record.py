"""Record: what a measure found, on what, with which settings (SPEC 11). One JSON file each, never a NaN in it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..files import read_json, write_json

Interval = tuple[float, float] | None
_FIELDS: dict[str, type] = {
    "measure": str, "value": dict, "interval": dict, "unit": str, "tokens": int, "settings": dict, "detail": dict,
}  # fmt: skip


@dataclass(frozen=True)
class Record:
    """The values of one measure.

    value:    name -> number; None where it is undefined, and `detail["null"][name]` says why in one line.
    interval: name -> 95% interval, None where there is none; `settings["interval_method"]` says how it was made.
    unit:     of the values, but for those that `detail["units"]` names.
    tokens:   positions that were measured.
    settings: what a reader needs to repeat the measurement or to compare it with another.

    Raises ValueError for a number that is not finite, and for an undefined value without a reason.
    """

    measure: str
    value: dict[str, float | None]
    interval: dict[str, Interval]
    unit: str
    tokens: int
    settings: dict[str, Any]
    detail: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.interval.keys() != self.value.keys():
            raise ValueError(f"{self.measure}: intervals of {list(self.interval)}, values {list(self.value)}")
        for name, value in self.value.items():
            numbers = [*(self.interval[name] or ()), *([] if value is None else [value])]
            if not all(map(math.isfinite, numbers)):
                raise ValueError(f"{self.measure}: {name} = {value}, interval {self.interval[name]}")
            if value is None and name not in self.null:
                raise ValueError(f"{self.measure}: {name} is undefined, but detail['null'] does not say why")

    @property
    def null(self) -> dict[str, str]:
        """Why each undefined value is undefined."""
        return self.detail.get("null", {})

    def unit_of(self, name: str) -> str:
        return self.detail.get("units", {}).get(name, self.unit)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def write(self, path: Path) -> None:
        write_json(path, self.to_json())

    @classmethod
    def read(cls, path: Path) -> Record:
        """What `write` wrote. Raises UserError where the file is missing, damaged, or of another kind."""
        data = read_json(path)
        try:
            _check(data)
            data["interval"] = {
                name: None if pair is None else (pair[0], pair[1]) for name, pair in data["interval"].items()
            }
            return cls(**data)
        except (TypeError, KeyError, AttributeError, IndexError, ValueError, OverflowError) as error:
            raise UserError(
                f"{path}: not the record of a measure ({error}); run `saeforest eval` again"
            ) from None


def _check(data: dict[str, Any]) -> None:
    """Raises TypeError, KeyError or ValueError where a record has not the types that it is written with."""
    for name, kind in _FIELDS.items():
        if not isinstance(data[name], kind) or isinstance(data[name], bool):
            raise TypeError(f"{name}: expected {kind.__name__}, found {type(data[name]).__name__}")
    numbers = [*data["value"].values(), *(x for pair in data["interval"].values() for x in pair or ())]
    if not all(x is None or (isinstance(x, int | float) and not isinstance(x, bool)) for x in numbers):
        raise TypeError("value, interval: expected numbers or null")
    for name in ("null", "units"):
        texts = data["detail"].get(name, {})
        if not (isinstance(texts, dict) and all(isinstance(text, str) for text in texts.values())):
            raise TypeError(f"detail.{name}: expected an object of strings")
    json.dumps(data["detail"], allow_nan=False)


def undefined(value: Mapping[str, float | None], why: Mapping[str, str], tokens: int) -> dict[str, str]:
    """The reason of each undefined value: `why`, unless nothing was measured at all."""
    nothing = "no token was measured"
    return {n: nothing if tokens == 0 else why.get(n, "undefined") for n, v in value.items() if v is None}
