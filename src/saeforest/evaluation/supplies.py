"""The inputs that measures need: each is computed when first needed and kept as long as another measure may need it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

from jaxtyping import Float
from torch import Tensor

from ..activations import ActivationReader
from ..judges import Judge, JudgeConfig, open_judge
from ..measures.first_letters import FirstLetterConfig, FirstLetters, first_letters
from ..measures.needs import Need
from ..measures.pooled import (
    LabeledCodes,
    LabeledTextConfig,
    PooledCode,
    ReadTexts,
    pooled_code,
    read_texts,
)
from ..measures.probes import ProbeConfig, Probes
from ..measures.spec import MeasureSpec
from ..measures.subject import Firings, MeasuredText, Subject
from ..structure.pairs import PairStatistics
from .task import Task
from .text_pass import Read

T = TypeVar("T")


class Shared:
    """Inputs shared by all SAEs of an evaluation: activations on words and on labeled texts, and the judge.

    Labeled texts and judges are large, so only the most recent ones are kept. An SAE and its nulls, which come one
    after the other, have the same judge, so that it is opened once and answers a question once. `close` closes it.
    """

    def __init__(self, reader: Callable[[], ActivationReader]) -> None:
        """reader: gives what reads text; asked for where a measure needs it."""
        self._reader = reader
        self._texts: tuple[LabeledTextConfig, ReadTexts] | None = None
        self._words: dict[FirstLetterConfig, FirstLetters] = {}
        self._judge: tuple[JudgeConfig, Path | None, Judge | None] | None = None
        self._open = ExitStack()

    def judge(self, config: JudgeConfig, folder: Path | None) -> Judge | None:
        """The judge, which keeps its answers in `folder`; None if none is configured."""
        if self._judge is None or self._judge[:2] != (config, folder):
            self.close()
            self._judge = (
                config,
                folder,
                self._open.enter_context(open_judge(config, self._reader().lm, folder)),
            )
        return self._judge[2]

    def close(self) -> None:
        """Close the judge."""
        self._judge = None
        self._open.close()

    def texts(self, config: LabeledTextConfig) -> ReadTexts:
        """Labeled texts and their activations."""
        if self._texts is None or self._texts[0] != config:
            self._texts = config, read_texts(self._reader(), config)
        return self._texts[1]

    def words(self, config: FirstLetterConfig) -> FirstLetters:
        """Words and their activations, for the measure `absorption`."""
        if (key := config.reading) not in self._words:
            self._words[key] = first_letters(self._reader(), key)
        return self._words[key]


class Supplies:
    """Inputs shared by the measures of one SAE.

    pairs: collects the firings during the pass over the text; None if no measure needs them.
    read:  the result of the pass, set when it is over.
    """

    def __init__(self, task: Task, shared: Shared, probes: ProbeConfig, twin: Supplies | None = None) -> None:
        """twin: those of another task of the same SAE, whose firings and probes are the same."""
        self.task, self._shared, self._probe_config = task, shared, probes
        sae = task.sae
        self.twin = twin
        self.pairs = twin.pairs if twin is not None and task.needs("firings") else None
        if task.needs("firings") and self.pairs is None:
            self.pairs = PairStatistics(sae.d_sae, sae.config.activation_threshold, task.folder)
        self.read: Read | None = None
        self._probes: Callable[[], Probes] = _once(self._new_probes) if twin is None else twin._probes
        self._code: tuple[ReadTexts, PooledCode] | None = None

    @property
    def counted(self) -> PairStatistics | None:
        """`pairs`, unless they are those of the twin, which are updated already."""
        return None if self.twin is not None and self.pairs is self.twin.pairs else self.pairs

    def subject(self, spec: MeasureSpec, config: Any, settings: Mapping[str, Any]) -> Subject:
        """The `Subject` of a measure, with what the measure declared it needs."""
        task = self.task
        # With this reduction, probes depend on which others are trained with them, so every measure trains its own.
        alone = self._probe_config.reduction == "mean_all"
        every: dict[Need, Callable[[], Any]] = {
            "text": lambda: MeasuredText(task.tokens, task.reader.lm.tokenizer),
            "firings": self._firings,
            "activations": self._activations,
            "probes": _once(self._new_probes) if alone else self._probes,
            "labeled_texts": lambda: self._labeled(config.texts),
            "first_letters": lambda: self._shared.words(config),
            "language_model": lambda: task.reader,
            "embedding": lambda: task.reader.lm.embed,
            "judge": lambda: self._shared.judge(config.judge, task.folder),
            "training_log": lambda: task.log,
            "forest": lambda: task.forest,
        }
        # Losses come with the batches.
        return Subject(task.sae, settings, {need: every[need] for need in every if need in spec.needs})

    def _shown(self) -> Read:
        if self.read is None:
            raise LookupError(
                "a streaming measure needs an input that exists only after the pass over the text"
            )
        return self.read

    def _firings(self) -> Firings:
        assert self.pairs is not None
        return Firings(self._shown().rows, self.pairs)

    def _activations(self) -> Float[Tensor, "n d_in"]:
        x = self._shown().x
        assert x is not None
        return x

    def _new_probes(self) -> Probes:
        pairs = self._firings().pairs
        return Probes(self._activations(), pairs, self._probe_config, device=self.task.sae.device)

    def _labeled(self, config: LabeledTextConfig) -> LabeledCodes:
        texts = self._shared.texts(config)
        if self._code is None or self._code[0] is not texts:
            self._code = texts, pooled_code(self.task.sae, texts)
        return LabeledCodes(*self._code)


def _once(make: Callable[[], T]) -> Callable[[], T]:
    """A function that calls `make` the first time and then returns the same result."""
    made: list[T] = []

    def given() -> T:
        if not made:
            made.append(make())
        return made[0]

    return given
