"""Unlearning: can clamping features take one kind of knowledge from a model, and no other (docs/spec/unlearning.md)?

With p_i(forget) and p_i(retain) the shares of tokens on which feature i is active in two corpora,

    S(threshold, n)  = the n features with the largest p(forget) among those with p(retain) < threshold
    edit             = where a feature of S is active, its value becomes -strength; the reconstruction error is kept
    accuracy         = of what the clean model gets right, the share that the changed model gets right
    unlearning       = 1 - the least accuracy(forget) of all thresholds, n and strengths with
                       accuracy(retain) >= 0.99; 0 if there are none

SAEBench asks multiple-choice questions (WMDP-bio to forget, subjects of MMLU to retain). Without questions, what is to
be got right are the next tokens of documents, which is no test of hazardous knowledge but works with any model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from ..activations import ActivationReader
from ..errors import InputError
from ..interventions import edited, set_to
from ..interventions.splice import Splice
from ..interventions.steer import hooks_of
from ..lm.hooks import Hooks
from ..progress import progress
from ..saes import SAE
from ..text import encode
from ..text.corpora import documents
from ..text.labeled import labeled
from ..text.questions import read_questions
from .bootstrap import FloatArray, estimate, interval_method, same_units
from .columns import INTERPRETABILITY, Column
from .exams import Exam, batches_of, padded, question_exam, text_exam
from .matched import alike
from .pooled import IntArray
from .record import Record, undefined
from .spec import Study
from .subject import Subject

ChooseOn = Literal["half", "all"]
Units = Literal["relative", "code"]
_TOPICS = "packaged:topics/"
_RETAINED = 0.99
# Documents shorter than this are left out.
_MIN_TOKENS = 16
# With fewer documents or questions than this in either exam, there is no score.
_LEAST = 4
_NONE_ALLOWED = "no setting keeps 99 % of what is to be retained, so nothing is clamped and the score is 0"
_SHOWN = 20


@dataclass(frozen=True)
class UnlearningConfig:
    """What is forgotten and retained, and which features are clamped to what."""

    forget: str = _TOPICS + "Biology and health sciences"
    """Text to forget: a source of text (a file, a Hub data set), or packaged:topics/TOPIC, Wikipedia introductions."""
    retain: str = _TOPICS + "-Biology and health sciences"
    """Text to retain: the same, or packaged:topics/-TOPIC, introductions on all other topics."""
    forget_questions: str = ""
    """Multiple-choice questions on what is forgotten: .jsonl files or Hub data sets (cais/wmdp:wmdp-bio), with commas
    between them. By default, next tokens of other documents of the text to forget."""
    retain_questions: str = ""
    """The same on what is retained, such as cais/mmlu:high_school_geography. Needed if forget_questions are given."""
    chat: bool = False
    """Ask questions in the tokenizer's chat template, as SAEBench does."""
    documents: int = 200
    """Number of documents of each text on which features are chosen."""
    test: int = 80
    """Number of further documents of each text whose next tokens are to be predicted."""
    context: int = 64
    """Number of tokens to read from the start of each document."""
    thresholds: tuple[float, ...] = (0.001, 0.01)
    """Features that are active on at least this share of the tokens to retain are not clamped."""
    n: tuple[int, ...] = (10, 20)
    """Numbers of features to clamp."""
    strengths: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0)
    """Values below zero to which active features are clamped."""
    units: Units = "relative"
    """Units of the strengths: the mean length of an activation as the SAE sees it, or the code's, as in SAEBench."""
    choose_on: ChooseOn = "half"
    """Where thresholds, numbers and strengths are chosen: on half of the documents or questions, with the score on the
    other half, or, as in SAEBench, on those of the score."""
    random_draws: int = 3
    """Number of random sets of features over which the baseline is averaged."""
    seed: int = 42
    """Random seed for choosing documents, halves and random features."""

    def __post_init__(self) -> None:
        least = {"documents": 1, "test": 2, "context": _MIN_TOKENS, "random_draws": 1, "seed": 0}
        for name, lowest in least.items():
            if getattr(self, name) < lowest:
                raise InputError(f"unlearning.{name} = {getattr(self, name)}: expected {lowest} or more")
        for name, lowest in (("thresholds", 0), ("n", 0), ("strengths", 0)):
            values = getattr(self, name)
            if not values or not min(values) > lowest or len(set(values)) < len(values):
                raise InputError(f"unlearning.{name} = {list(values)}: expected different numbers above 0")
        for name, kind in (("units", Units), ("choose_on", ChooseOn)):
            if getattr(self, name) not in get_args(kind):
                expected = " or ".join(get_args(kind))
                raise InputError(f"unlearning.{name} = {getattr(self, name)!r}: expected {expected}")
        if bool(self.forget_questions) != bool(self.retain_questions):
            missing = "retain_questions" if self.forget_questions else "forget_questions"
            raise InputError(f"unlearning.{missing}: expected questions here too, or in neither")


class _Text(NamedTuple):
    """Documents of a text: those on which features are chosen, and those that are tested."""

    choose: list[list[int]]
    test: list[list[int]]


def _read(source: str, reader: ActivationReader, config: UnlearningConfig) -> _Text:
    """Random documents of a source, cut to the context. Raises InputError if it has too few."""
    if source.startswith(_TOPICS):
        topic = source.removeprefix(_TOPICS)
        every = labeled("packaged:topics")
        if topic.removeprefix("-") not in {one.label for one in every}:
            known = ", ".join(sorted({one.label for one in every}))
            raise InputError(f"text '{source}': no such topic; expected one of {known}")
        texts = [
            one.text for one in every if (one.label != topic[1:] if topic[0] == "-" else one.label == topic)
        ]
    else:
        texts = [one.text for one in documents(source, seed=config.seed)]
    wanted = config.documents + config.test
    order = np.random.default_rng((config.seed, len(texts))).permutation(len(texts))[: 2 * wanted]
    bos = [] if reader.bos_id is None else [reader.bos_id]
    rows = [(bos + ids)[: config.context] for ids in encode(reader.lm.tokenizer, [texts[i] for i in order])]
    rows = [row for row in rows if len(row) >= _MIN_TOKENS][:wanted]
    if len(rows) < 2 * _LEAST:
        raise InputError(
            f"text '{source}': {len(rows)} documents have {_MIN_TOKENS} or more tokens; expected {2 * _LEAST} or more"
        )
    n_test = min(config.test, max(len(rows) - config.documents, len(rows) // 2))
    return _Text(rows[n_test:], rows[:n_test])


@torch.no_grad()
def active_share(sae: SAE, reader: ActivationReader, rows: Sequence[list[int]]) -> FloatArray:
    """The share of kept tokens on which each feature is above 0, `[F]`."""
    counts, n = torch.zeros(sae.d_sae, dtype=torch.float64), 0
    for batch in batches_of(rows, reader.batch_size):
        ids, own = padded([rows[i] for i in batch])
        x = reader.lm.activations(ids, reader.site)
        keep = reader.keep(ids, x).to(own.device) & own
        code = sae.encode(x[keep.to(x.device)].to(sae.device).float())
        counts += code.fired(sae.d_sae, 0.0).double().cpu()
        n += int(keep.sum())
    return (counts / max(n, 1)).numpy()


def top_features(forget: FloatArray, retain: FloatArray, threshold: float, n: int) -> IntArray:
    """Up to n features with the largest share in `forget` above 0, among those with less than the threshold in
    `retain`; ties go to the lower id."""
    score = np.where(retain < threshold, forget, 0)
    ranked = np.argsort(-score, kind="stable")[:n]
    return ranked[score[ranked] > 0]


def least_accuracy(forget: FloatArray, retain: FloatArray) -> int | None:
    """The setting with the least accuracy to forget `[s]`, among those that retain enough; None if none does."""
    allowed = retain >= _RETAINED
    return int(np.argmin(np.where(allowed, forget, np.inf))) if allowed.any() else None


class _Setting(NamedTuple):
    """A set of features, and the value below zero to which they are clamped."""

    threshold: float
    n: int
    strength: float
    features: IntArray


def unlearning(subject: Subject, config: UnlearningConfig) -> Record:
    """The record "unlearning".

    `unlearning` is the score, `retained` the accuracy on what is retained with the same features and strength;
    `unlearning_random` and `retained_random` are those with random features in their place, that are active as often in
    both texts together, and `unlearning_over_random` the difference. If no setting retains enough, `unlearning` is 0
    and the others are undefined. `detail["chosen"]` is the chosen setting, `detail["settings"]` the accuracies of every
    setting on the documents or questions on which it was chosen.

    Raises InputError if a text or questions can't be used.
    """
    sae, reader = subject.sae, subject.reader
    reader.lm.check_context(config.context, "unlearning.context")
    texts = [_read(source, reader, config) for source in (config.forget, config.retain)]
    shares = [active_share(sae, reader, text.choose) for text in texts]
    usable = sae.in_reconstruction.cpu().numpy()
    forget, retain = (np.where(usable, share, 0) for share in shares)
    if config.forget_questions:
        asked = [read_questions(config.forget_questions), read_questions(config.retain_questions)]
        exams = [question_exam(reader, some, config.chat) for some in asked]
    else:
        exams = [text_exam(reader, text.test) for text in texts]
    unit = config.strengths if config.units == "code" else _relative(sae, reader, texts, config)
    settings: list[_Setting] = []
    for threshold, n in product(config.thresholds, config.n):
        features = top_features(forget, retain, threshold, n)
        if len(features) and not any(np.array_equal(features, other.features) for other in settings):
            settings += [_Setting(threshold, n, value, features) for value in unit]
    why = _nothing(settings, exams)
    if why:
        return _record(subject, config, exams, None, why, {})
    with progress("clamp features", len(settings), "settings") as advance:
        right = []
        for setting in settings:
            right.append([exam.right(reader, _clamped(sae, reader, setting)) for exam in exams])
            advance(1)
    rng = np.random.default_rng((config.seed, 1))
    halves = [rng.permutation(len(exam.total)) for exam in exams]
    choose, score = halves, halves
    if config.choose_on == "half":
        choose = [order[: len(order) // 2] for order in halves]
        score = [order[len(order) // 2 :] for order in halves]
    accuracy = np.array(
        [[of[i][at].sum() / exams[i].total[at].sum() for i, at in enumerate(choose)] for of in right]
    )
    detail: dict[str, Any] = {
        "settings": [
            {
                "threshold": s.threshold,
                "n": len(s.features),
                "strength": s.strength,
                "forget": float(a),
                "retain": float(b),
            }
            for s, (a, b) in zip(settings, accuracy, strict=True)
        ]
    }
    best = least_accuracy(*accuracy.T)
    fired = forget * len(texts[0].choose) + retain * len(texts[1].choose)
    if best is None:
        return _record(subject, config, exams, None, _NONE_ALLOWED, detail)
    chosen = settings[best]
    detail["chosen"] = detail["settings"][best] | {"features": chosen.features[:_SHOWN].tolist()}
    random = [
        chosen._replace(features=alike(chosen.features, fired, usable, rng))
        for _ in range(config.random_draws)
    ]
    random = [setting for setting in random if len(setting.features)]
    scored: list[tuple[FloatArray, FloatArray, FloatArray]] = []
    for i, exam in enumerate(exams):
        drawn = [exam.right(reader, _clamped(sae, reader, setting)) for setting in random]
        other = np.mean(drawn, axis=0) if drawn else exam.total
        scored.append((right[best][i][score[i]], other[score[i]], exam.total[score[i]]))
    return _record(subject, config, exams, scored, "", detail)


def _relative(
    sae: SAE, reader: ActivationReader, texts: Sequence[_Text], config: UnlearningConfig
) -> tuple[float, ...]:
    """The strengths in the units of codes."""
    rows = texts[1].choose[: reader.batch_size]
    ids, own = padded(rows)
    x = reader.lm.activations(ids, reader.site)
    keep = reader.keep(ids, x).to(own.device) & own
    length = float(sae.normalize(x[keep.to(x.device)].to(sae.device).float())[0].norm(dim=-1).mean())
    return tuple(strength * length for strength in config.strengths)


def _clamped(sae: SAE, reader: ActivationReader, setting: _Setting) -> Any:
    edit = edited([set_to(setting.features.tolist(), -setting.strength, where_active=True)])

    def hooks(ids: Int[Tensor, "b ctx"]) -> Hooks:
        return hooks_of(
            Splice(sae, edit, error=True, keep=lambda x: reader.keep(ids.to(x.device), x)), reader
        )

    return hooks


def _nothing(settings: list[_Setting], exams: Sequence[Exam]) -> str:
    """Why there is no score; empty if there is one."""
    if not settings:
        return "no feature is active in the text to forget and rare enough in the text to retain"
    if (least := min(len(exam.total) for exam in exams)) < _LEAST:
        return f"the model gets {least} documents or questions right, fewer than {_LEAST}"
    return ""


def _record(
    subject: Subject,
    config: UnlearningConfig,
    exams: Sequence[Exam],
    scored: list[tuple[FloatArray, FloatArray, FloatArray]] | None,
    why: str,
    detail: dict[str, Any],
) -> Record:
    """scored: for what is forgotten and what is retained, how much of each unit is right with the chosen features, with
    random ones, and in the clean model."""
    names = ["unlearning", "retained", "unlearning_random", "retained_random", "unlearning_over_random"]
    if scored is None:
        value, interval, replicates = dict.fromkeys(names), dict.fromkeys(names), {}
        if why == _NONE_ALLOWED:
            value["unlearning"] = 0.0
    else:
        n_forget = len(scored[0][2])
        sides = slice(0, n_forget), slice(n_forget, None)

        def formula(weights: FloatArray) -> dict[str, FloatArray]:
            def accuracy(side: int, which: int) -> FloatArray:
                w = weights[:, sides[side]]
                return w @ scored[side][which] / (w @ scored[side][2])

            found = {
                "unlearning": 1 - accuracy(0, 0),
                "retained": accuracy(1, 0),
                "unlearning_random": 1 - accuracy(0, 1),
                "retained_random": accuracy(1, 1),
            }
            return found | {"unlearning_over_random": found["unlearning"] - found["unlearning_random"]}

        totals = [part[2] for part in scored]
        units = same_units("units of the exams", *totals)
        value, interval, replicates = estimate(formula, sum(map(len, totals)), units)
    kind = "questions" if config.forget_questions else "next tokens"
    return Record(
        "unlearning",
        value,
        interval,
        unit="accuracy",
        tokens=sum(len(row) for exam in exams for row in exam.rows),
        settings={
            **subject.settings,
            "config": asdict(config),
            "data": [config.forget, config.retain],
            "exam": kind,
            "units": [len(exam.total) for exam in exams],
            "right": [int(exam.total.sum()) for exam in exams],
            "interval_method": interval_method("documents or questions of the exams")
            + "; the chosen features and strength held fixed",
        },
        detail={"null": undefined(value, dict.fromkeys(names, why), 1), **detail},
        replicates=replicates,
    )


def _local(config: UnlearningConfig) -> tuple[Path, ...]:
    """The local files that the settings name."""
    questions = [
        part for some in (config.forget_questions, config.retain_questions) for part in some.split(",")
    ]
    found = (
        Path(part.strip()).expanduser() for part in (config.forget, config.retain, *questions) if part.strip()
    )
    return tuple(path for path in found if path.exists())


SPEC = Study(
    name="unlearning",
    needs=frozenset({"language_model"}),
    config=UnlearningConfig,
    readings={
        "saebench_0.6": UnlearningConfig(
            documents=1024,
            context=1024,
            strengths=(25.0, 50.0, 100.0, 200.0),
            units="code",
            choose_on="all",
            chat=True,
        )
    },
    run=unlearning,
    columns=(Column(INTERPRETABILITY, "unlearning", "unlearning", "↑"),),
    files=_local,
)
