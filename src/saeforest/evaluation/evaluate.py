"""Measuring SAEs: one pass over the text, then the measures that look at an SAE as a whole."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..activations import ActivationReader
from ..measures.measure import Measure
from ..measures.record import Record
from ..measures.spec import MeasureSpec
from ..memory import give_back
from ..saes import SAE
from ..structure.forest import Forest
from ..text import Tokens
from .null_values import with_nulls
from .nulls import FOREST_GIVEN, Nulls, NullSAE, Sample, make_nulls, read_sample, untrained
from .options import MeasureOptions
from .registry import MEASURES
from .supplies import Shared, Supplies
from .task import Source, Task, make_task
from .text_pass import Pass, Read, read_text

# The task itself, not one of its nulls.
_OWN = "own"


def evaluate(
    sae: SAE,
    reader: ActivationReader,
    tokens: Tokens,
    names: Iterable[str],
    source: Source,
    options: MeasureOptions | None = None,
    *,
    forest: Forest | None = None,
    folder: Path | None = None,
) -> dict[str, Record]:
    """Take the named measures (see `measure_names`) of one SAE. Returns the records by name.

    forest: measured instead of the SAE's own. folder: where a judge's answers are kept. See `evaluate_all`.
    """
    options = options or MeasureOptions()
    task = make_task(sae, tuple(names), reader, tokens, source, forest=forest, folder=folder)
    if task.with_nulls and options.nulls == "yes":
        task = nulled(task, read_sample(reader, tokens))
    found = {record.measure: record for _, record in evaluate_all([task], options)}
    return {name: found[name] for name in task.names}


def evaluate_all(
    tasks: Sequence[Task],
    options: MeasureOptions,
    read: Callable[[Sequence[Pass], int], Read] = read_text,
) -> Iterator[tuple[Task, Record]]:
    """Yield the records of all tasks as they are completed. The language model reads the text once for all SAEs.

    The tasks must share reader and tokens. Excluded positions (`reader.keep`) are neither measured nor replaced. Losses
    take two forward passes of the language model, and one more for each SAE, so they are computed only on the first
    `options.ce_tokens` tokens, rounded up to whole windows.

    read: function that runs the pass over the data and updates the passes.

    A task with nulls (`Task.nulls`) has its values about a hierarchy measured on these too, in the same pass, and its
    records hold all of them.

    Raises InputError if an activation is NaN or infinite, RuntimeError if a mathematical identity does not hold.
    """
    if not tasks:
        return
    parts = [part for task in tasks for part in _parts(task)]
    part_of = {id(part.task): part for part in parts}
    waiting: dict[tuple[int, str], dict[str, Record]] = {}
    for measured, spec, record in _records([part.task for part in parts], options, read):
        part = part_of[id(measured)]
        task, nulls = part.of, part.of.nulls
        if nulls is None or not spec.nulls:
            yield task, record
            continue
        found = waiting.setdefault((id(task), spec.name), {})
        found[part.which] = record
        missing = {which: null for which, null in _both(nulls).items() if isinstance(null, str)}
        if len(found) + len(missing) == 1 + len(_both(nulls)):
            of_nulls = found | missing
            del waiting[id(task), spec.name]
            own = found[_OWN]
            shuffled, untrained = (of_nulls[which] for which in _both(nulls))
            same = not isinstance(nulls.shuffled, str) and nulls.shuffled.sae is task.sae
            free = spec.forest_free(task.sae) if same else ()
            yield (
                task,
                with_nulls(
                    own,
                    spec.nulls,
                    shuffled,
                    untrained,
                    task.forest,
                    nulls.settings,
                    free,
                    spec.detail_of_nulls,
                ),
            )


class _Part(NamedTuple):
    """A task to be measured: one that was given, or one of its nulls. of: the given one; which: the null."""

    task: Task
    of: Task
    which: str


def _both(nulls: Nulls) -> dict[str, NullSAE | str]:
    return {"shuffled": nulls.shuffled, "untrained": nulls.untrained}


def _parts(task: Task) -> Iterator[_Part]:
    """A task, and those of its nulls. One of the same SAE comes next, and shares what was counted of its firings."""
    yield _Part(task, task, _OWN)
    if task.nulls is None or not task.with_nulls:
        return
    for which, null in _both(task.nulls).items():
        if not isinstance(null, str):
            names, sae, forest = task.with_nulls, null.sae, null.forest
            part = replace(task, sae=sae, names=names, forest=forest, nulls=None, is_null=True)
            yield _Part(part, task, which)


def nulled(task: Task, sample: Sample, before: NullSAE | str | None = None) -> Task:
    """A task with its nulls, which are made with the help of a sample of the activations to be measured.

    before: the untrained SAE with its forest, or why there is none; None to make it here.
    """
    start = task.start
    if before is None:
        before = start if isinstance(start, str) else untrained(start, task.sae, sample)
        if not isinstance(before, str) and not torch.equal(task.forest.parent, task.sae.forest.parent):
            before = FOREST_GIVEN
    return replace(task, nulls=make_nulls(task.sae, task.forest, sample, start, before))


def _records(
    tasks: Sequence[Task], options: MeasureOptions, read: Callable[[Sequence[Pass], int], Read]
) -> Iterator[tuple[Task, MeasureSpec, Record]]:
    shared = Shared(lambda: tasks[0].reader)
    supplies: list[Supplies] = []
    for task in tasks:
        twin = supplies[-1] if supplies and supplies[-1].task.sae is task.sae else None
        supplies.append(Supplies(task, shared, options.probes, twin))
    with closing(shared):
        passes = [Pass(one.task, _measures(one, options), one.counted) for one in supplies]
        reading = [one for one in passes if one.measures or one.task.needs("firings", "activations")]
        shown = read(reading, options.ce_tokens) if reading else None
        for one in passes:
            for name, measure in one.measures.items():
                yield one.task, MEASURES[name], measure.record(_settings(one.task, options))
        passes.clear()
        reading.clear()
        give_back()
        # The firings of an SAE take more memory than the SAE itself, so they are freed when its measures are done.
        while supplies:
            of_sae = supplies.pop(0)
            of_sae.read = shown
            for spec in of_sae.task.studies:
                config = _config(of_sae, spec, options)
                subject = of_sae.subject(spec, config, _settings(of_sae.task, options))
                yield of_sae.task, spec, spec.run(subject, config)
                # What one study leaves free in pieces, the next one may not be able to use.
                give_back()


def _measures(one: Supplies, options: MeasureOptions) -> dict[str, Measure]:
    """The measures of an SAE that are fed batch by batch."""
    made: dict[str, Measure] = {}
    for spec in one.task.streaming:
        config = _config(one, spec, options)
        made[spec.name] = spec.make(one.subject(spec, config, _settings(one.task, options)), config)
    return made


def _config(one: Supplies, spec: MeasureSpec, options: MeasureOptions) -> Any:
    config = options.config_of(spec.name)
    return spec.of_nulls(config) if one.task.is_null else config


def _settings(task: Task, options: MeasureOptions) -> dict[str, Any]:
    return {**task.settings, "reading": options.preset}
