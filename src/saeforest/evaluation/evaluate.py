"""One pass over held-out text that feeds every measure of every SAE; then the measures that look at all of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .. import __version__
from ..activations import ActivationReader
from ..measures.measure import Measure
from ..measures.probes import PAPER_PROBES, Probes
from ..measures.record import Record
from ..measures.subject import Seen, Subject
from ..memory import Forecast
from ..progress import progress
from ..saes import SAE
from ..session import check_bos
from ..structure.forest import Forest
from ..structure.pairs import KEPT_PER_FIRING, PairStatistics
from ..text import Tokens
from .memory import Measured, studies_memory
from .options import MeasureOptions
from .registry import MEASURES, Streaming, Study
from .windows import read_windows


@dataclass(frozen=True)
class Source:
    """Where text and SAE come from, for the records."""

    data: str
    """As given to `tokenize`."""
    split: str
    seed: int
    """Of the run: its text, its weights."""
    sae: str
    """Path or name."""
    forest: str = "its own"
    """Where the forest comes from."""


@dataclass(eq=False)
class Task:
    """The measures to take of one SAE."""

    subject: Subject
    names: Sequence[str]
    streaming: dict[str, Measure] = field(default_factory=dict, init=False)
    pairs: PairStatistics = field(init=False)

    def __post_init__(self) -> None:
        sae, forest = self.subject.sae, self.subject.forest
        for name in self.names:
            spec = MEASURES[name]
            if isinstance(spec, Streaming):
                self.streaming[name] = spec.make(sae, forest)
        self.pairs = PairStatistics(sae.d_sae, sae.config.activation_threshold)

    @property
    def studies(self) -> dict[str, Study]:
        return {n: spec for n in self.names if isinstance(spec := MEASURES[n], Study)}

    @property
    def needs_losses(self) -> bool:
        return any(measure.needs_losses for measure in self.streaming.values())

    @property
    def sees(self) -> bool:
        """Whether a study needs to see what the pass showed."""
        return any(study.sees for study in self.studies.values())


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
    own = sae.forest if forest is None else forest
    task = Task(subject_of(sae, own, reader, tokens, source, folder=folder), tuple(names))
    found = {record.measure: record for _, record in evaluate_all([task], options or MeasureOptions())}
    return {name: found[name] for name in task.names}


def subject_of(
    sae: SAE,
    forest: Forest,
    reader: ActivationReader,
    tokens: Tokens,
    source: Source,
    *,
    folder: Path | None = None,
    log: Path | None = None,
) -> Subject:
    """Raises UserError where the text begins with BOS and the SAE was trained without, or the other way round."""
    check_bos(sae, prepend_bos=tokens.prepend_bos)
    settings = {
        **asdict(source),
        "model": reader.lm.identity.name,
        "model_revision": reader.lm.identity.revision,
        "model_fingerprint": reader.lm.identity.fingerprint,
        "site": reader.site.name,
        "lm_dtype": str(reader.lm.dtype).removeprefix("torch."),
        "sae_dtype": str(sae.compute_dtype).removeprefix("torch."),
        "context": tokens.context,
        "prepend_bos": tokens.prepend_bos,
        "tokens_read": tokens.n_tokens,
        "batch": f"{reader.batch_size} windows",
        "positions": {
            "exclude_first": reader.exclude_first,
            "exclude_special": reader.exclude_special,
            "max_norm": reader.max_norm,
        },
        "normalize_activations": sae.config.normalize_activations,
        "activation_threshold": sae.config.activation_threshold,
        "reading": "recommended",
        "version": __version__,
    }
    return Subject(sae, forest, reader, tokens, settings, folder, log)


def evaluate_all(tasks: Sequence[Task], options: MeasureOptions) -> Iterator[tuple[Task, Record]]:
    """The records of all tasks as they come; the language model reads the text once for all SAEs.

    The tasks share reader and tokens. Excluded positions (`reader.keep`) are neither measured nor replaced. Losses take
    two forward passes of the language model, and one more for every SAE, so they are taken on the first
    `options.ce_tokens` tokens only, rounded up to whole windows.

    Raises UserError where an activation is NaN or infinite, RuntimeError where an identity is broken.
    """
    reading = [task for task in tasks if task.streaming or task.sees]
    kept = _read(reading, options.ce_tokens) if reading else None
    for task in tasks:
        settings = {**task.subject.settings, "reading": options.preset}
        for measure in task.streaming.values():
            yield task, measure.record(settings)
        task.streaming.clear()
    for task in tasks:
        subject = replace(task.subject, settings={**task.subject.settings, "reading": options.preset})
        if task.sees and kept is not None:
            rows, x = kept
            probes = Probes(x, task.pairs, options.probes, device=subject.sae.device)
            subject = Seen(**_fields(subject), rows=rows, x=x, pairs=task.pairs, probes=probes)
        for name, study in task.studies.items():
            if isinstance(subject, Seen) and options.probes.reduction == "mean_all":
                # These depend on which others are trained with them: every measure trains its own.
                subject = replace(
                    subject, probes=Probes(subject.x, task.pairs, options.probes, subject.probes.device)
                )
            yield task, study.function(subject, options.config_of(name))
        del task.pairs  # the firings of an SAE take more memory than the SAE


def _fields(subject: Subject) -> dict[str, Any]:
    return {name: getattr(subject, name) for name in Subject.__dataclass_fields__}


def _read(tasks: Sequence[Task], ce_tokens: int) -> tuple[Int[Tensor, "n"], Float[Tensor, "n d_in"]]:
    """The pass. Returns rows and activations, if a study wants to see them."""
    reader, tokens = tasks[0].subject.reader, tasks[0].subject.tokens
    losses = any(task.needs_losses for task in tasks)
    n_loss_windows = -(-ce_tokens // tokens.context) if losses else 0
    width = tasks[0].subject.sae.d_in
    sees = any(task.sees for task in tasks)
    # As much as there can be; what the excluded positions leave over is never touched.
    x = torch.empty(tokens.n_tokens if sees else 0, width, dtype=reader.lm.dtype)
    rows, n = torch.empty(len(x), dtype=torch.int64), 0
    forecast = Forecast("measure", "lm.batch_size, or measure fewer tokens or SAEs at once")
    with progress("measure", tokens.n_tokens, "tokens") as advance:
        for windows in torch.arange(len(tokens.ids)).split(reader.batch_size):
            view = read_windows(reader, tokens, windows, int((windows < n_loss_windows).sum()))
            if sees:
                part = slice(n, n := n + len(view.rows))
                rows[part], x[part] = view.rows, view.kept.cpu()
            for task in tasks:
                batch = view.through(task.subject.sae, losses=task.needs_losses)
                for measure in task.streaming.values():
                    measure.update(batch)
                if task.sees:
                    task.pairs.add(batch.code)
            advance(windows.numel() * tokens.context)
            forecast.tell(*_still_to_come(tasks, windows.numel() / len(tokens.ids), n))
    return rows[:n], x[:n]


def _still_to_come(tasks: Sequence[Task], share: float, n: int) -> tuple[int, int]:
    """Bytes that the rest of the text adds, when a share of it and `n` activations were read, and that studies take."""
    sae = tasks[0].subject.sae
    more = round((1 / share - 1) * n) * (sae.d_in * tasks[0].subject.reader.lm.dtype.itemsize + 8)
    most = 0
    for task in tasks:
        firings = round(task.pairs.n_firings / share)
        more += round(KEPT_PER_FIRING * firings * (1 - share))
        of = Measured(task.subject.sae.d_sae, sae.d_in, round(n / share), firings, PAPER_PROBES)
        most = max(most, studies_memory(tuple(task.studies), of))
    return more, most
