"""Groups of SAEs that differ only in their seeds."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.stats import t as student

from ..config import TrainConfig
from ..measures.record import Record
from .load import Entry, Value
from .system import System

# Settings of a record that say how it was measured. The others describe the SAE or its training.
_HOW = (
    "reading", "positions", "data", "split", "tokens_read", "context", "prepend_bos", "lm_dtype", "config", "probe",
    "judge", "model_fingerprint",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class SeedGroup:
    """SAEs that differ only in their seeds. Their values are averaged; a seed that occurs twice counts once."""

    entries: tuple[Entry, ...]

    @property
    def first(self) -> Entry:
        """The first SAE of the group."""
        return self.entries[0]

    @property
    def system(self) -> System:
        """The system of the SAEs."""
        return self.first.system

    @property
    def d_sae(self) -> int:
        """Number of features."""
        return self.first.d_sae

    @property
    def l0(self) -> float:
        """Mean L0 of the SAEs."""
        return sum(entry.l0 for entry in self.entries) / len(self.entries)

    @property
    def n_seeds(self) -> int:
        """Number of different seeds."""
        return len({entry.seeds for entry in self.entries})

    @property
    def label(self) -> str:
        """Name of the group in the report."""
        if self.n_seeds == 1:
            return self.first.label
        shared = re.sub(r"-seed-\d+$", "", self.first.label)
        return f"{shared} ({self.n_seeds} seeds)"

    def measured(self, measure: str) -> list[Entry]:
        """The SAEs with a record of the measure, one for each seed."""
        of_seed: dict[tuple[int, int], Entry] = {}
        for entry in self.entries:
            if measure in entry.records:
                of_seed.setdefault(entry.seeds, entry)
        return list(of_seed.values())

    def differs(self, measure: str) -> str:
        """The first setting in which the seeds' records of a measure differ; empty if they agree."""
        first, *others = [entry.records[measure] for entry in self.measured(measure)] or [None]
        return next((key for r in others if first and r and (key := differently(first, r))), "")

    def value(self, measure: str, name: str) -> Value:
        """The mean over the seeds that have the value; undefined if they were measured differently.

        The interval of a mean combines the measurement error of one SAE, which does not shrink since all are measured
        on the same text, and the spread between seeds by Student's t.
        """
        found = [e.value(measure, name) for e in self.measured(measure)] or [self.first.value(measure, name)]
        known = [(v, v.value) for v in found if v.value is not None]
        if len(known) < 2:
            return known[0][0] if known else found[0]
        if key := self.differs(measure):
            return Value(None, why=f"not comparable: the seeds were measured differently ({key})")
        each = tuple(value for _, value in known)
        mean = sum(each) / len(each)
        spread = float(student.ppf(0.975, len(each) - 1) * np.std(each, ddof=1) / math.sqrt(len(each)))
        below, above = (
            sum(abs(v.interval[side] - value) if v.interval else 0.0 for v, value in known) / len(known)
            for side in (0, 1)
        )
        interval = (mean - math.hypot(below, spread), mean + math.hypot(above, spread))
        return Value(mean, interval, known[0][0].unit, min(v.tokens for v, _ in known), each=each)


def differently(a: Record, b: Record) -> str:
    """The first setting in which two records of a measure were measured differently; empty if there is none."""
    # The training log does not depend on the measured text.
    keys = ("config",) if a.measure == "dead_training" else _HOW
    for key in keys:
        # Records of older versions have no fingerprint of the model.
        known = key != "model_fingerprint" or all(record.settings.get(key) for record in (a, b))
        if known and _how(a, key) != _how(b, key):
            return key
    # The number of tokens with losses is not among the settings.
    return "tokens" if a.measure == "cross_entropy" and a.tokens != b.tokens else ""


def _how(record: Record, key: str) -> Any:
    """A setting; for a measure's own settings, without seeds and settings that do not affect the values."""
    value = record.settings.get(key)
    if key == "prepend_bos":  # records of older versions do not have it: there was no BOS
        return bool(value)
    if key in ("config", "probe") and isinstance(value, dict):
        # The judge's name is a separate setting. The rank curve and variants do not affect the scores.
        return {k: v for k, v in value.items() if k not in ("seed", "judge", "rank_curve", "variants")}
    return value


def seed_groups(entries: Iterable[Entry]) -> list[SeedGroup]:
    """Group SAEs that differ only in their seeds; ordered by system, size and L0."""
    groups: dict[str, list[Entry]] = {}
    for entry in entries:
        groups.setdefault(_but_for_seed(entry.config), []).append(entry)
    found = (SeedGroup(tuple(group)) for group in groups.values())
    return sorted(found, key=lambda s: (s.system.rank, s.d_sae, s.l0, s.label))


def _but_for_seed(config: TrainConfig) -> str:
    """A text that is the same for two configurations that differ only in the seed and settings that do not matter."""
    return repr(replace(config, seed=0, data_seed=0, device="", log_every=1, checkpoint_minutes=0.0, saes={}))
