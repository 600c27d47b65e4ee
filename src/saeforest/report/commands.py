"""The commands that reproduce everything in a report."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path

from ..measures.record import Record
from ..run_folder import RunFolder
from .load import Entry


def commands(entries: Sequence[Entry], runs: Iterable[Path], out: Path) -> list[str]:
    """The commands that train, measure and compare the runs again."""
    found = []
    runs = list(dict.fromkeys(runs))
    for run in runs:
        place = shlex.quote(str(run))
        found.append(f"saeforest train --config {shlex.quote(str(RunFolder(run).config_file))} --out {place}")
        measures: dict[str, list[str]] = {}
        for entry in entries:
            for name, record in entry.records.items() if entry.run.path == run else ():
                of_same = measures.setdefault(_options(record), [])
                of_same += [] if name in of_same else [name]
        found += [
            f"saeforest eval {place} --measures {','.join(m)}{options}" for options, m in measures.items()
        ]
    places = " ".join(shlex.quote(str(run)) for run in runs)
    return [*found, f"saeforest compare {places} --out {shlex.quote(str(out))}"]


def _options(record: Record) -> str:
    """The options of a measurement: tokens, preset and judge. Other settings are in the record."""
    settings, given = record.settings, []
    tokens, reading, config = (settings.get(key) for key in ("tokens_read", "reading", "config"))
    # The number of tokens of labeled texts is not an option.
    if isinstance(tokens, int) and "train_texts" not in settings:
        given.append(("tokens", str(tokens)))
    if reading and reading != "recommended":
        given.append(("preset", str(reading)))
    judge = config.get("judge") if isinstance(config, dict) else None
    if isinstance(judge, dict) and judge.get("model"):
        given += [(f"judge.{key}", str(judge[key])) for key in ("endpoint", "model") if judge.get(key)]
    return "".join(f" --{key} {shlex.quote(value)}" for key, value in given)
