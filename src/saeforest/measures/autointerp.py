"""Automated interpretability: can a judge that has read some of a feature's windows tell in which others it fires?

This is SAEBench's detection score, which the Tree SAE and HSAE papers use too (docs/spec/judges.md#autointerp). Each
feature has windows of text around a token (`examples`):

    12 top windows                       10 are shown to the judge, 2 are asked about
     7 sampled by value^2, below the top  5 are shown, 2 are asked about
    10 random                            10 are asked about, as windows in which the feature is not active

The judge sees the first 15 with marks, and explains them in one sentence. Given this sentence, it then names those of
the other 14, unmarked and in random order, in which the feature is active: in which a token's value is above 0.01 of
the largest in the top windows. The feature's score is the fraction of the 14 that the judge gets right. A judge that
always answers None scores 10/14.

SAEBench assumes that the feature does not fire in the random windows; here this is checked, unless `random` says
otherwise. The record compares features with two or more children in the forest with all others, because the HSAE paper
finds features that branch more interpretable.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Int64
from numpy import ndarray as Array

from ..errors import InputError
from ..judges import NO_JUDGE, Judge, JudgeConfig, Question, ask_all, prompt
from .bootstrap import FloatArray, estimate, interval_method, units_of_sae
from .columns import INTERPRETABILITY, Column
from .examples import FeatureWindows, fires_enough, numbered
from .record import Record, undefined
from .spec import Study
from .subject import Subject

_TOP, _TOP_SHOWN = 12, 10
_SAMPLED, _SAMPLED_SHOWN = 7, 5
_RANDOM = 10
_ASKED = _TOP - _TOP_SHOWN + _SAMPLED - _SAMPLED_SHOWN + _RANDOM
_EXPLANATION_TOKENS = 30
_PREDICTION_TOKENS = 2 * _ASKED + 5
_INDICES = re.compile(r"[0-9]{1,4}(\s*,\s*[0-9]{1,4})*")


@dataclass(frozen=True)
class AutoInterpConfig:
    """Which features are explained and how the explanations are tested."""

    features: int = 200
    """Number of features to draw at random. SAEBench uses 1000."""
    min_fired: int = 15
    """Draw only features that fire on more than this many of the measured tokens."""
    buffer: int = 10
    """Number of tokens on either side of the center of a text window."""
    random: Literal["checked", "unchecked"] = "checked"
    """How windows without the feature are chosen. checked: only windows in which the feature does not fire;
    unchecked: any windows, assumed not to contain it, as in SAEBench."""
    seed: int = 0
    """Random seed for choosing features and text windows."""
    judge: JudgeConfig = field(default_factory=JudgeConfig)

    def __post_init__(self) -> None:
        for name, least in (("features", 1), ("min_fired", 0), ("buffer", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise InputError(f"autointerp.{name} = {getattr(self, name)}: expected {least} or more")


class Trial(NamedTuple):
    """What the judge reads for a feature.

    shown:        windows to explain, with marks, strongest first.
    asked:        windows to classify, without marks.
    truth:        whether the feature is active in each of `asked`.
    sample_reply: indices drawn at random, to show the form of a reply.
    """

    feature: int
    shown: list[str]
    asked: list[str]
    truth: Bool[Array, "asked"]
    sample_reply: str


@dataclass
class _Result:
    trial: Trial
    explanation: str | None = None
    predicted: set[int] | None = None

    @property
    def score(self) -> float:
        assert self.predicted is not None
        named = np.isin(np.arange(1, len(self.trial.truth) + 1), list(self.predicted))
        return float((named == self.trial.truth).mean())


def autointerp(subject: Subject, config: AutoInterpConfig) -> Record:
    """The record "autointerp": detection scores of features drawn at random.

    A feature with too few windows is skipped for the next in the random order. A feature is dropped, and counted, if
    a reply of the judge cannot be parsed. Raises InputError if the judge cannot be reached.
    """
    trials, skipped = _draw(subject, config)
    # Open the judge, which may be large, only if there is something to ask.
    judge = subject.judge if trials else None
    results = [] if judge is None else _ask(judge, trials)
    scored = [r for r in results if r.predicted is not None]
    score = np.array([r.score for r in scored])
    n_children = subject.forest.n_children.numpy()[[r.trial.feature for r in scored]]
    negatives = np.array([(~r.trial.truth).mean() for r in scored])

    def means(weights: FloatArray) -> dict[str, FloatArray]:
        many = weights * (n_children >= 2)
        few = weights - many
        return {
            "autointerp_score": weights @ score / weights.sum(1),
            "chance_none": weights @ negatives / weights.sum(1),
            "multi_child": many @ score / many.sum(1),
            "other": few @ score / few.sum(1),
        }

    features = np.array([r.trial.feature for r in scored], dtype=np.int64)
    found = estimate(means, len(scored), units_of_sae("features", subject.sae, features))
    counts = {"scored": len(scored), "unparsable": len(results) - len(scored), "skipped": skipped}
    value = {**found.value, **counts}
    why = _why_undefined(subject, config, trials, judge, scored)
    return Record(
        "autointerp",
        value,
        {**found.interval, **dict.fromkeys(counts)},
        unit="fraction",
        tokens=len(subject.rows),
        settings={
            **subject.settings,
            "config": asdict(config),
            "judge": None if judge is None else judge.name,
            "interval_method": interval_method("features") + "; scored, unparsable, skipped: none",
        },
        detail={
            "null": undefined(value, why, len(subject.rows)),
            "units": dict.fromkeys(counts, "features"),
            "branching": _by_children(n_children, score),
            "features": [_in_detail(r, subject) for r in results],
        },
        replicates=found.replicates,
    )


def _draw(subject: Subject, config: AutoInterpConfig) -> tuple[list[Trial], int]:
    """Up to `features` trials, and the number of features skipped for having too few windows."""
    trials: list[Trial] = []
    skipped = 0
    if subject.tokens.context <= 2 * config.buffer:
        return trials, skipped
    candidates = np.flatnonzero(fires_enough(subject, config.min_fired))
    for feature in np.random.default_rng(config.seed).permutation(candidates).tolist():
        if len(trials) == config.features:
            break
        trial = make_trial(subject, feature, config)
        if trial is None:
            skipped += 1
        else:
            trials.append(trial)
    return trials, skipped


def make_trial(subject: Subject, feature: int, config: AutoInterpConfig) -> Trial | None:
    """The windows of a feature; None if there are too few."""
    rng = np.random.default_rng([config.seed, feature])
    windows = FeatureWindows(subject, feature, config.buffer)
    top = windows.top(_TOP)
    if len(top) < _TOP:
        return None
    sampled = windows.sampled(_SAMPLED, below=windows.values[top].min(), power=2, rng=rng)
    if len(sampled) < _SAMPLED:
        return None
    draw_random = windows.silent if config.random == "checked" else windows.anywhere
    others = draw_random(_RANDOM, rng)
    if len(others) < _RANDOM:
        return None

    level = windows.level(top)
    top, sampled = rng.permutation(top), rng.permutation(sampled)
    shown = np.concatenate([top[:_TOP_SHOWN], sampled[:_SAMPLED_SHOWN]])
    shown = shown[np.argsort(-windows.around(shown).max(1), kind="stable")]
    positives = np.concatenate([top[_TOP_SHOWN:], sampled[_SAMPLED_SHOWN:]])
    active = windows.around(positives).max(1) > level
    asked = np.concatenate([positives, others])
    truth = np.concatenate([active, np.zeros(_RANDOM, dtype=bool)])
    order = rng.permutation(_ASKED)
    sample = np.sort(rng.choice(_ASKED, 4, replace=False)) + 1
    return Trial(
        feature,
        windows.texts(shown, mark_above=level),
        windows.texts(asked[order]),
        truth[order],
        ", ".join(map(str, sample.tolist())),
    )


def _ask(judge: Judge, trials: list[Trial]) -> list[_Result]:
    results = [_Result(trial) for trial in trials]
    system = prompt("explain")
    questions = [Question(system, numbered(r.trial.shown), _EXPLANATION_TOKENS) for r in results]
    for result, reply in zip(results, ask_all(judge, questions, "explain features"), strict=True):
        result.explanation = parse_explanation(reply)
    explained = [r for r in results if r.explanation is not None]
    questions = [
        Question(
            prompt("detect", n=_ASKED, example=r.trial.sample_reply),
            f"This unit activates on {r.explanation}\n\nPassages:\n{numbered(r.trial.asked)}",
            _PREDICTION_TOKENS,
        )
        for r in explained
    ]
    for result, reply in zip(explained, ask_all(judge, questions, "try explanations"), strict=True):
        result.predicted = parse_indices(reply, _ASKED)
    return results


def parse_explanation(reply: str) -> str | None:
    """The text after "activates on", or the whole reply if it lacks these words; None if nothing is left."""
    after = re.split("activates on", reply, maxsplit=1, flags=re.IGNORECASE)[-1]
    return " ".join(after.split()).rstrip(". ") or None


def parse_indices(reply: str, n: int) -> set[int] | None:
    """Parse indices from 1 to `n` separated by commas, or the word "None" for no index.

    A period at the end is allowed. Returns None for any other reply, and if an index is repeated or out of range.
    """
    reply = reply.strip().removesuffix(".").rstrip()
    if reply.lower() == "none":
        return set()
    if not _INDICES.fullmatch(reply):
        return None
    indices = [int(i) for i in reply.split(",")]
    sound = len(set(indices)) == len(indices) and min(indices) >= 1 and max(indices) <= n
    return set(indices) if sound else None


def _by_children(n_children: Int64[Array, "f"], score: FloatArray) -> list[dict[str, Any]]:
    """The mean score of the features with each number of children."""
    return [
        {
            "children": int(children),
            "score": float(score[n_children == children].mean()),
            "features": int((n_children == children).sum()),
        }
        for children in np.unique(n_children)
    ]


def _in_detail(result: _Result, subject: Subject) -> dict[str, Any]:
    feature, predicted = result.trial.feature, result.predicted
    return {
        "feature": feature,
        "layer": int(subject.forest.layer[feature]),
        "children": int(subject.forest.n_children[feature]),
        "explanation": result.explanation,
        "score": None if predicted is None else result.score,
        "predicted": None if predicted is None else sorted(predicted),
        "truth": (np.flatnonzero(result.trial.truth) + 1).tolist(),
    }


def _why_undefined(
    subject: Subject,
    config: AutoInterpConfig,
    trials: list[Trial],
    judge: Judge | None,
    scored: list[_Result],
) -> dict[str, str]:
    width = 2 * config.buffer + 1
    if subject.tokens.context < width:
        nothing = f"no window of {width} tokens fits in a context of {subject.tokens.context}"
    elif not trials:
        nothing = (
            f"no feature fires on more than {config.min_fired} tokens and has {_TOP} top windows, {_SAMPLED} others "
            f"and {_RANDOM} windows in which it does not fire"
        )
    elif judge is None:
        nothing = NO_JUDGE
    else:
        nothing = "no reply of the judge could be parsed"
    if not scored:
        return dict.fromkeys(("autointerp_score", "chance_none", "multi_child", "other"), nothing)
    return {
        "multi_child": "no scored feature has two children or more",
        "other": "every scored feature has two children or more",
    }


_SAEBENCH = AutoInterpConfig(features=1000, random="unchecked")

SPEC = Study(
    name="autointerp",
    needs=frozenset({"text", "firings", "forest", "judge"}),
    sets=("paper", "saebench"),
    config=AutoInterpConfig,
    readings={"saebench_0.6": _SAEBENCH, "ref_tree_sae": AutoInterpConfig(random="unchecked")},
    run=autointerp,
    columns=(Column(INTERPRETABILITY, "autointerp_score", "AutoInterp", "↑"),),
    memory=lambda size: size.decoder,
    version=2,
)
