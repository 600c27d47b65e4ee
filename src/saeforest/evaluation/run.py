"""Measuring the SAEs of a run on its held-out text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from ..activations import ActivationReader
from ..config import TrainConfig
from ..errors import InputError
from ..infer import InferConfig
from ..kept_forest import inferred_with
from ..measures.needs import Need
from ..measures.record import Record
from ..output import note
from ..ranks import ALONE, Ranks
from ..run_folder import RunFolder
from ..saes import SAE
from ..session import check_site, open_reader, read_tokens, text_source
from ..structure.forest import Forest
from ..training.log import has_log
from ..training.unfinished import tidy
from .evaluate import evaluate_all, nulled
from .forests import forests_of
from .key import record_key
from .nulls import NullSAE, Start, read_sample, untrained
from .options import MeasureOptions
from .registry import MEASURES
from .task import Source, Task, make_task
from .text_pass import Helped, read_text

# What a pass over the text supplies to measures that look at an SAE as a whole.
_READ: tuple[Need, ...] = ("firings", "activations")


def measure_run(
    run: RunFolder | Path,
    measures: Sequence[str],
    options: MeasureOptions | None = None,
    *,
    sae: str | None = None,
    device: str | None = None,
    again: bool = False,
    reader: ActivationReader | None = None,
    ranks: Ranks = ALONE,
) -> dict[str, list[Record]]:
    """Measure the SAEs of a run on held-out text. Returns the records by the SAE's name (see `measure_saes`).

    measures: names of measures (see `measure_names`).
    options: settings; None for the recommended ones.
    sae:    which SAE; None for all.
    device: device for language model and SAEs; None for the one they were trained on.
    again:  whether to repeat measures that already have a record.
    reader: reader of the run's site, if its language model is already loaded.
    ranks:  the processes that share the pass over the text. All must call this with the same arguments; only the first
        writes, and returns records.

    Raises InputError if the folder is not a run with a trained SAE, or if an SAE does not fit the run's model and site.
    """
    run = RunFolder(run) if isinstance(run, Path) else run
    if ranks.first:
        tidy(run)
    saes = {name: run.load(name, device) for name in (run.names() if sae is None else [sae])}
    if reader is None:
        reader = open_reader(next(iter(saes.values()))[0])
    for _, one in saes.values():
        check_site(one, reader)
    return measure_saes(saes, reader, measures, options or MeasureOptions(), run, again=again, ranks=ranks)


def measure_saes(
    saes: Mapping[str, tuple[TrainConfig, SAE]],
    reader: ActivationReader,
    names: Sequence[str],
    options: MeasureOptions,
    run: RunFolder,
    *,
    again: bool = False,
    ranks: Ranks = ALONE,
) -> dict[str, list[Record]]:
    """Measure SAEs of a run on `options.tokens` held-out tokens and write each record (`run.record`).

    saes: configuration and SAE by name, as `run.load` returns them. All must read the same text.
    again: whether to repeat measures that already have a record with the same settings on the same text.
    ranks: see `measure_run`.

    Each record is written as soon as it is complete, so an interrupted measurement continues with the missing ones.

    Raises InputError if another process is measuring one of the SAEs, or if the text or the activations are unusable
    (see `evaluate_all`).
    """
    with run.claimed(*map(run.eval, saes)) if ranks.first else nullcontext(), suppress(Helped):
        return _measured(saes, reader, names, options, run, again, ranks)
    return {}


def _measured(
    saes: Mapping[str, tuple[TrainConfig, SAE]],
    reader: ActivationReader,
    names: Sequence[str],
    options: MeasureOptions,
    run: RunFolder,
    again: bool,
    ranks: Ranks,
) -> dict[str, list[Record]]:
    config = next(iter(saes.values()))[0]
    need_forests = any("forest" in MEASURES[name].needs for name in names)
    forests = _forests(ranks, saes, reader, options, run) if need_forests else {}
    inferred = [name for name in forests if not saes[name][1].has_forest]
    before, reader = reader, options.positions.applied(reader)
    text = read_tokens(config, reader, "held_out", options.tokens)
    tasks, keys = {}, {}
    for name, (member, sae) in saes.items():
        forest, origin = forests.get(name, (sae.forest, "its own"))
        log = run.logs(name)
        task = make_task(
            sae,
            names,
            reader,
            text,
            Source(text_source(config), "held_out", member.seed, str(run.sae(name)), origin),
            forest=forest,
            folder=run.eval(name),
            log=log if has_log(log) else None,
            start=_start(member, run.forest(name) if name in inferred else None),
        )
        keys[name] = {measure: record_key(MEASURES[measure], task, options) for measure in names}
        tasks[name] = task

    def missing() -> dict[str, list[str]]:
        return {
            name: [m for m in names if again or not _there(run.record(name, m), keys[name][m])]
            for name in tasks
        }

    for name, of_task in ranks.from_first(missing).items():
        tasks[name] = replace(tasks[name], names=tuple(of_task))
    if options.nulls == "yes":
        tasks |= _nulled(
            {name: task for name, task in tasks.items() if task.with_nulls}, saes, before, options, run, ranks
        )
    if not ranks.first and not any(t.streaming or t.needs(*_READ) for t in tasks.values()):
        return {}  # without a pass over the text there is nothing to help with
    name_of = {id(task): name for name, task in tasks.items()}
    for task, record in evaluate_all(list(tasks.values()), options, partial(read_text, ranks=ranks)):
        name = name_of[id(task)]
        key = keys[name][record.measure]
        replace(record, settings={**record.settings, "key": key}).write(run.record(name, record.measure))
        note(f"measured  {name} {record.measure}" if run.several else f"measured  {record.measure}")
    return {name: [Record.read(run.record(name, measure)) for measure in names] for name in saes}


def _forests(
    ranks: Ranks, saes: Mapping[str, tuple[TrainConfig, SAE]], *about: Any, **where: Any
) -> dict[str, tuple[Forest, str]]:
    """`forests_of`. What has to be inferred the first rank infers and keeps, and the others read it then."""
    found: dict[str, tuple[Forest, str]] = {}
    ranks.from_first(lambda: found.update(forests_of(saes, *about, **where)))
    return found if ranks.first else forests_of(saes, *about, **where)


def _start(config: TrainConfig, forest: Path | None) -> Start:
    """How the training of an SAE started, and how the forest in a folder was inferred for it."""
    infer, tokens = (None, 0) if forest is None else inferred_with(forest)
    return Start(config.sae, config.seed, infer, tokens)


def _nulled(
    tasks: Mapping[str, Task],
    saes: Mapping[str, tuple[TrainConfig, SAE]],
    reader: ActivationReader,
    options: MeasureOptions,
    run: RunFolder,
    ranks: Ranks,
) -> dict[str, Task]:
    """The tasks with their nulls. reader: that of the training, for the forests of untrained SAEs that learn none."""
    if not tasks:
        return {}
    first = next(iter(tasks.values()))
    sample = read_sample(first.reader, first.tokens)
    # The untrained SAEs that learn no forest, and how one is inferred for them. Each is built once.
    before: dict[str, NullSAE | str] = {}
    flat: dict[tuple[InferConfig, int], dict[str, tuple[TrainConfig, SAE]]] = {}
    for name, task in tasks.items():
        if isinstance(task.start, Start) and task.start.infer is not None:
            before[name] = found = untrained(task.start, task.sae, sample)
            if not isinstance(found, str):
                way = task.start.infer, task.start.infer_tokens
                flat.setdefault(way, {})[name] = saes[name][0], found.sae
    for (infer, tokens), of_way in flat.items():
        same = replace(options, infer=infer, infer_tokens=tokens)
        inferred = _forests(ranks, of_way, reader, same, run, place=run.untrained_forest)
        before |= {name: NullSAE(of_way[name][1], forest) for name, (forest, _) in inferred.items()}
    return {name: nulled(task, sample, before.get(name)) for name, task in tasks.items()}


def _there(record: Path, key: str) -> bool:
    """Whether there is a record with this key."""
    try:
        return Record.read(record).settings.get("key") == key
    except InputError:  # missing or damaged
        return False
