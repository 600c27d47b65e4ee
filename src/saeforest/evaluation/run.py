"""The measures of a run, on the text that its training left out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from ..activations import ActivationReader
from ..config import TrainConfig
from ..errors import UserError
from ..measures.record import Record
from ..measures.subject import Subject
from ..output import note
from ..run_folder import RunFolder
from ..saes import SAE
from ..session import read_tokens, text_source
from ..training.log import has_log
from .evaluate import Source, Task, evaluate_all, subject_of
from .forests import digest, forests_of
from .options import MeasureOptions
from .registry import MEASURES, Streaming

# Raised when a measure comes to mean something else, so that older records are taken anew.
_FORMAT = 1


def measure_run(
    saes: Mapping[str, tuple[TrainConfig, SAE]],
    reader: ActivationReader,
    names: Sequence[str],
    options: MeasureOptions,
    run: RunFolder,
    *,
    again: bool = False,
) -> dict[str, list[Record]]:
    """Measures SAEs of a run on `options.tokens` held-out tokens and writes the record of each (`run.record`).

    saes: configuration and SAE by name, as `run.load` gives them. All read the same text.
    again: take measures anew of which there is a record already, made with the same settings on the same text.

    Every record is written as soon as it is known: a measurement that was stopped goes on with those that are missing.

    Raises UserError where another process measures one of the SAEs, or where the text or the activations are at fault
    (see `evaluate_all`).
    """
    with run.claimed(*map(run.eval, saes)):
        return _measured(saes, reader, names, options, run, again)


def _measured(
    saes: Mapping[str, tuple[TrainConfig, SAE]],
    reader: ActivationReader,
    names: Sequence[str],
    options: MeasureOptions,
    run: RunFolder,
    again: bool,
) -> dict[str, list[Record]]:
    config = next(iter(saes.values()))[0]
    forests = forests_of(saes, reader, options, run) if any(MEASURES[name].forest for name in names) else {}
    reader = options.positions.applied(reader)
    text = read_tokens(config, reader, "held_out", options.tokens)
    tasks, keys = {}, {}
    for name, (member, sae) in saes.items():
        forest, origin = forests.get(name, (sae.forest, "its own"))
        log = run.logs(name)
        subject = subject_of(
            sae,
            forest,
            reader,
            text,
            Source(text_source(config), "held_out", member.seed, str(run.sae(name)), origin),
            folder=run.eval(name),
            log=log if has_log(log) else None,
        )
        keys[name] = {measure: _key(measure, subject, options) for measure in names}
        missing = names if again else [m for m in names if not _there(run.record(name, m), keys[name][m])]
        tasks[name] = Task(subject, missing)
    name_of = {id(task): name for name, task in tasks.items()}
    for task, record in evaluate_all(list(tasks.values()), options):
        name = name_of[id(task)]
        key = keys[name][record.measure]
        replace(record, settings={**record.settings, "key": key}).write(run.record(name, record.measure))
        note(f"measured  {name} {record.measure}" if run.several else f"measured  {record.measure}")
    return {name: [Record.read(run.record(name, measure)) for measure in names] for name in saes}


def _there(record: Path, key: str) -> bool:
    """Whether there is a record that answers the same question."""
    try:
        return Record.read(record).settings.get("key") == key
    except UserError:  # none, or a damaged one
        return False


def _key(name: str, subject: Subject, options: MeasureOptions) -> str:
    """Tells whether a record answers the same question: of this SAE and forest, on this text, with these settings."""
    spec, config, reader = MEASURES[name], options.config_of(name), subject.reader
    model = reader.lm.identity
    asked: dict[str, Any] = {
        "measure": name,
        "format": _FORMAT,
        "sae": digest(subject.sae),
        "model": (
            model.fingerprint or model.name,
            reader.site.name,
            str(reader.lm.dtype),
            reader.lm.device.type,
        ),
        "config": None if config is None else asdict(config),
        "positions": (reader.exclude_first, reader.exclude_special, reader.max_norm),
    }
    if reader.bos_id is not None:
        asked["bos"] = reader.bos_id
    if judge := getattr(config, "judge", None):
        asked["config"]["judge"] = (judge.endpoint, judge.model)
    if texts := getattr(config, "texts", None):
        asked["labelled"] = _files(Path(texts.source))
    if spec.forest:
        asked["forest"] = _hash(subject.forest.parent)
    if isinstance(spec, Streaming) or spec.sees:
        asked["text"] = (subject.tokens.context, _hash(subject.tokens.ids))
    if isinstance(spec, Streaming):
        asked["batch"] = reader.batch_size
        asked["ce_tokens"] = options.ce_tokens if name == "cross_entropy" else None
    elif spec.probes:
        asked["probes"] = asdict(options.probes)
    return hashlib.blake2b(json.dumps(asked, sort_keys=True).encode(), digest_size=8).hexdigest()


def _hash(tensor: Tensor) -> str:
    return hashlib.blake2b(tensor.contiguous().numpy().tobytes(), digest_size=8).hexdigest()


def _files(source: Path) -> list[tuple[str, str]]:
    """What is in a file, or in the files of a folder."""
    files = [source] if source.is_file() else sorted(path for path in source.rglob("*") if path.is_file())
    return [(str(f), hashlib.blake2b(f.read_bytes(), digest_size=8).hexdigest()) for f in files]
