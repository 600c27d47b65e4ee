"""Measuring SAEs: one pass over the text, then the measures that look at an SAE as a whole."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from ..activations import ActivationReader
from ..measures.measure import Measure
from ..measures.record import Record
from ..saes import SAE
from ..structure.forest import Forest
from ..text import Tokens
from .options import MeasureOptions
from .supplies import Shared, Supplies
from .task import Source, Task, make_task
from .text_pass import Pass, Read, read_text


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
    task = make_task(sae, tuple(names), reader, tokens, source, forest=forest, folder=folder)
    found = {record.measure: record for _, record in evaluate_all([task], options or MeasureOptions())}
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

    Raises InputError if an activation is NaN or infinite, RuntimeError if a mathematical identity does not hold.
    """
    if not tasks:
        return
    shared = Shared(lambda: tasks[0].reader)
    supplies = [Supplies(task, shared, options.probes) for task in tasks]
    with ExitStack() as stack:
        passes = [Pass(one.task, _measures(one, options, stack), one.pairs) for one in supplies]
        reading = [one for one in passes if one.measures or one.task.needs("firings", "activations")]
        shown = read(reading, options.ce_tokens) if reading else None
        for one in passes:
            for measure in one.measures.values():
                yield one.task, measure.record(_settings(one.task, options))
    passes.clear()
    reading.clear()
    # The firings of an SAE take more memory than the SAE itself, so they are freed when its measures are done.
    while supplies:
        of_sae = supplies.pop(0)
        of_sae.read = shown
        for spec in of_sae.task.studies:
            config = options.config_of(spec.name)
            with ExitStack() as stack:
                subject = of_sae.subject(spec, config, _settings(of_sae.task, options), stack)
                record = spec.run(subject, config)
            yield of_sae.task, record


def _measures(one: Supplies, options: MeasureOptions, stack: ExitStack) -> dict[str, Measure]:
    """The measures of an SAE that are fed batch by batch."""
    made: dict[str, Measure] = {}
    for spec in one.task.streaming:
        config = options.config_of(spec.name)
        made[spec.name] = spec.make(one.subject(spec, config, _settings(one.task, options), stack), config)
    return made


def _settings(task: Task, options: MeasureOptions) -> dict[str, Any]:
    return {**task.settings, "reading": options.preset}
