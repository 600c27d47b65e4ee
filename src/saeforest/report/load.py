"""Loading what the report compares: the SAEs of some runs with their records, from the runs' folders."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..config import TrainConfig
from ..errors import InputError, command
from ..measures.dead_training import DeadRates, read_dead_rates
from ..measures.record import Interval, Record, Replicates
from ..run_folder import RunFolder
from ..training.log import has_log
from .system import System, kind_of

#: Variants of MCS by their names in the hierarchy record, and their titles; the paper's choice first.
VARIANTS = (
    ("mcs_binary", "binary"),
    ("mcs_binary_scaled", "scaled binary"),
    ("mcs_correlation", "correlation"),
    ("mcs_correlation_scaled", "scaled correlation"),
)


class Value(NamedTuple):
    """A value of a record, or the reason (`why`) if there is none.

    each: the individual values if `value` is a mean over seeds.
    replicates, text: its bootstrap replicates, and a hash of the measured text, if the record has them.
    """

    value: float | None
    interval: Interval = None
    unit: str = ""
    tokens: int = 0
    why: str = ""
    each: tuple[float, ...] = ()
    replicates: Replicates | None = None
    text: str = ""


@dataclass(frozen=True, eq=False)
class Entry:
    """One SAE of a run.

    label:   unique name of the SAE in the report.
    config:  its training configuration, as if it had been trained alone.
    records: its records by measure.
    """

    label: str
    run: RunFolder
    name: str
    config: TrainConfig
    records: dict[str, Record]

    @cached_property
    def system(self) -> System:
        """The system of the SAE, ablations told apart."""
        return System(kind_of(self.config), len(self.config.sae.layer_sizes))

    @property
    def seeds(self) -> tuple[int, int]:
        """The random seeds of its training: the SAE's own, and that of the order of the data."""
        return self.config.seed, self.config.data_seed

    @property
    def d_sae(self) -> int:
        """Number of features."""
        return sum(self.config.sae.layer_sizes)

    @property
    def l0(self) -> float:
        """The measured L0, else the target of training."""
        measured = self.value("sparsity", "l0").value
        return float(sum(self.config.sae.k_per_layer)) if measured is None else measured

    def path(self, measure: str) -> Path:
        """The path of a measure's record."""
        return self.run.record(self.name, measure)

    @contextmanager
    def showing(self, measure: str) -> Iterator[None]:
        """Context for reading a record's detail. Raises InputError if it is not in the measure's format."""
        try:
            yield
        except InputError:  # a ValueError, but it says more
            raise
        except (KeyError, TypeError, IndexError, ValueError, AttributeError) as error:
            raise InputError(
                f"{self.path(measure)}: its detail lacks data that the report shows ({error!r}); "
                f"run `{self.eval_command(measure)} --again`"
            ) from None

    def eval_command(self, measure: str) -> str:
        """The command that takes a measure of this SAE."""
        return command(
            "eval", self.run, "--measures", measure, *(("--sae", self.name) if self.run.several else ())
        )

    def value(self, measure: str, name: str) -> Value:
        """A value of a measure's record by name."""
        record = self.records.get(measure)
        if record is None:
            return Value(None, why=f"{measure} was not measured")
        if name not in record.value:
            with self.showing(measure):
                return _from_detail(record, name)
        unit, why = record.unit_of(name), record.null.get(name, "")
        replicates, text = record.replicates.get(name), str(record.settings.get("text", ""))
        return Value(
            record.value[name],
            record.interval[name],
            unit,
            record.tokens,
            why,
            replicates=replicates,
            text=text,
        )

    @cached_property
    def dead_rates(self) -> DeadRates | None:
        """Dead features over training, from the record or else from the log; None if there is neither."""
        record = self.records.get("dead_training")
        if record is not None:
            with self.showing("dead_training"):
                found = _dead_rates(record)
        else:
            folder = self.run.logs(self.name)
            if not has_log(folder):
                return None
            found = read_dead_rates(folder, self.config.sae.layer_sizes)
        return found if found.steps else None


def _dead_rates(record: Record) -> DeadRates:
    found = DeadRates(
        *(record.detail[key] for key in ("steps", "tokens", "rate", "rate_all", "reallocations"))
    )
    lengths = {
        len(np.asarray(line, dtype=float)) for line in (found.steps, found.tokens, found.all, *found.rate)
    }
    if len(lengths) != 1:
        raise ValueError(f"series of {sorted(lengths)} steps")
    np.asarray(found.reallocations, dtype=float)
    return found


def _from_detail(record: Record, name: str) -> Value:
    """A value that is only in a record's detail: a variant of MCS, or the trend of a rank curve."""
    tokens = record.tokens
    if name.startswith("variant_") and isinstance(variants := record.detail.get("variants"), dict):
        found = variants.get(name.removeprefix("variant_"))
        if isinstance(found, dict) and found.get("value") is not None:
            interval = found.get("interval")
            bounds = interval and (float(interval[0]), float(interval[1]))
            return Value(float(found["value"]), bounds, "fraction", tokens)
    if name == "rank_trend":
        return _trend(rank_curve(record)[0], tokens)
    return Value(None, why=f"the record of {record.measure} has no {name}")


def rank_curve(record: Record) -> tuple[np.ndarray, int]:
    """From a record of "hierarchy": the mean cosine of parents and children by rank, and the number of parents."""
    row = record.detail.get("rank_curve") or {}
    return np.array(row.get("cos_parent") or [], dtype=float).reshape(-1), int(row.get("parents", 0))


def _trend(curve: np.ndarray, tokens: int) -> Value:
    """Spearman's correlation of a curve with its ranks, without interval: all points come from the same parents."""
    if len(curve) < 5:
        return Value(None, why="no parent has enough children by coverage for a curve")
    ranks = np.argsort(np.argsort(curve))
    rho = float(np.corrcoef(np.arange(len(curve)), ranks)[0, 1])
    return Value(rho, None, "rank correlation", tokens)


def load_runs(runs: Sequence[Path]) -> list[Entry]:
    """The SAEs of the runs, in the order given. A run that is named twice is read once.

    Raises InputError if a folder is not a run, a record is damaged, or nothing was measured.
    """
    if not runs:
        raise InputError("compare: expected at least one run folder")
    folders = list({run.resolve(): run for run in runs}.values())
    found: list[Entry] = []
    for folder, run_label in zip(folders, _distinct(folders), strict=True):
        run = RunFolder(folder)
        for name, member in run.config().members().items():
            label = f"{run_label}/{name}" if run.several else run_label
            found.append(Entry(_printable(label), run, name, member, _records(run.eval(name))))
    unmeasured = [entry.run for entry in found if not entry.records]
    if len(unmeasured) == len(found):
        raise InputError(
            f"{unmeasured[0]}: nothing was measured yet; first run `{command('eval', unmeasured[0])}`"
        )
    if len(folders) == 1 and all(entry.run.several for entry in found):
        found = [replace(entry, label=_printable(entry.name)) for entry in found]
    return found


def _records(folder: Path) -> dict[str, Record]:
    records = (Record.read(path) for path in sorted(folder.glob("*.json")))
    return {record.measure: record for record in records}


def _distinct(folders: Sequence[Path]) -> list[str]:
    """For each path, as many of its last parts as are needed to tell the paths apart."""
    parts = [folder.resolve().parts for folder in folders]
    for n in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-n:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [str(folder) for folder in folders]


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def flatten(settings: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as a flat dict of text, with dotted keys."""
    flat: dict[str, str] = {}
    for key, value in settings.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        elif isinstance(value, list | tuple):
            flat[prefix + key] = ", ".join(map(str, value))
        else:
            flat[prefix + key] = str(value)
    return flat
