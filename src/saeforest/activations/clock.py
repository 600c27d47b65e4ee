"""How long a harvest took, and where its time went."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .reader import ActivationReader

Seconds = Mapping[str, float]
_PARTS = ("total", "lm", "checks", "disk")


def added(*parts: Seconds) -> Seconds:
    """The sums of times by name."""
    return {name: sum(part.get(name, 0.0) for part in parts) for name in _PARTS}


@dataclass(frozen=True)
class Harvest:
    """How long reading the activations of a text took, in seconds of the reading thread.

    If several workers read them, their times are added.
    """

    n_rows: int
    n_tokens: int
    total: float
    """Total time."""
    lm: float
    """Time in the language model."""
    checks: float
    """Time spent selecting and checking activations."""
    disk: float
    """Time spent waiting for the disk, which writes while the language model reads."""

    @property
    def tokens_per_s(self) -> float:
        """Tokens read per second."""
        return self.n_tokens / max(self.total, 1e-9)

    def record(self) -> dict[str, Any]:
        """The same as JSON values, for logs and files."""
        return {
            "activations": self.n_rows,
            "tokens": self.n_tokens,
            "tokens_per_s": round(self.tokens_per_s, 1),
            "seconds": {name: round(getattr(self, name), 3) for name in _PARTS},
        }

    @classmethod
    def of_seconds(cls, n_rows: int, n_tokens: int, seconds: Seconds) -> Harvest:
        """A harvest from the seconds of its parts; those that are missing are 0."""
        return cls(n_rows, n_tokens, *(float(seconds.get(name, 0.0)) for name in _PARTS))

    @classmethod
    def of_record(cls, record: dict[str, Any], n_rows: int, n_tokens: int) -> Harvest:
        """The inverse of `record`. Times are 0 if there is no record, as in stores of older versions."""
        return cls.of_seconds(n_rows, n_tokens, record.get("seconds", {}))

    def __str__(self) -> str:
        parts = {"language model": self.lm, "checks": self.checks, "disk": self.disk}
        shares = ", ".join(f"{name} {100 * s / max(self.total, 1e-9):.0f} %" for name, s in parts.items())
        return (
            f"{self.n_rows:,} activations of {self.n_tokens:,} tokens in {self.total:,.0f} s: "
            f"{self.tokens_per_s:,.0f} tokens/s ({shares})"
        )


class HarvestClock:
    """A clock that starts when it is created. Laps begin where the last one ended."""

    def __init__(self, reader: ActivationReader) -> None:
        self._reader = reader
        self._start = self._lap = self._now(0.0)

    def lap(self, disk: float) -> Seconds:
        """The seconds since the last lap; `disk` is the time spent waiting for the disk since the clock started."""
        before, self._lap = self._lap, self._now(disk)
        return {name: max(self._lap[name] - before[name], 0.0) for name in _PARTS}

    def harvest(self, n_rows: int, n_tokens: int) -> Harvest:
        """All times so far, for a harvest of this size that did not wait for a disk."""
        now = self._now(0.0)
        return Harvest.of_seconds(n_rows, n_tokens, {name: now[name] - self._start[name] for name in _PARTS})

    def _now(self, disk: float) -> dict[str, float]:
        reader = self._reader
        now = (time.perf_counter(), reader.seconds, reader.seconds_checks, disk)
        return dict(zip(_PARTS, now, strict=True))
