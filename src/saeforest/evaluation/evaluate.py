"""The records of some SAEs: one pass over the measured text, then the measures that look at an SAE as a whole."""

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
    """The records of the named measures (see `measure_names`) of one SAE, by name.

    `forest` stands in for the SAE's own. See `evaluate_all`.
    """
    task = make_task(sae, tuple(names), reader, tokens, source, forest=forest, folder=folder)
    found = {record.measure: record for _, record in evaluate_all([task], options or MeasureOptions())}
    return {name: found[name] for name in task.names}


def evaluate_all(
    tasks: Sequence[Task],
    options: MeasureOptions,
    read: Callable[[Sequence[Pass], int], Read] = read_text,
) -> Iterator[tuple[Task, Record]]:
    """The records of all tasks as they come; the language model reads the text once for all SAEs.

    The tasks share reader and tokens. Excluded positions (`reader.keep`) are neither measured nor replaced. Losses take
    two forward passes of the language model, and one more for every SAE, so they are taken on the first
    `options.ce_tokens` tokens only, rounded up to whole windows. `read` is what shows the passes their batches.

    Raises InputError where an activation is NaN or infinite, RuntimeError where an identity is broken.
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
    # The firings of an SAE take more memory than the SAE: they go when its measures are done.
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
