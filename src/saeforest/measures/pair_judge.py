"""Does a judge find that a child is a special case of its parent (HSAE; docs/spec/judges.md#pair-judge)?

For each edge the judge reads up to 10 top windows and 5 sampled ones for each of the two features (`examples`), with
marks, and answers whether one feature's concept contains the other's:

    yes              = edges that the judge affirms / edges with a reply that can be parsed
    yes_matched      = the same for matched pairs, in which the child stands beside a null parent (`matched`)
    yes_matched_auc  = how well the judge's answers, with its confidence, tell edges from matched pairs
    judge_accuracy   = balanced accuracy of the judge on pairs that are obviously related, or obviously not

The paper has no control, so a judge that says Yes to everything would score 1. Here a judge that fails the test of
obvious pairs is not asked about features, and there is no value.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch

from ..errors import InputError
from ..judges import NO_JUDGE, Judge, JudgeConfig
from ..judges.related import Answer, ask_related, obvious_trials, take_test
from .bootstrap import Estimate, FloatArray, estimate, interval_method, units_of_sae
from .columns import INTERPRETABILITY, Column
from .examples import FeatureWindows, fires_enough
from .matched import NO_NULL_PARENT, NullParents, Triple, auc
from .record import EdgeScores, Interval, Record, undefined
from .spec import Study
from .subject import Subject

_TOP, _SAMPLED = 10, 5
#: A judge passes the test of obvious pairs with at least this accuracy, if its interval lies above that of a guess.
LEAST_ACCURACY, GUESS = 0.8, 0.5
_VALUES = ("yes", "yes_matched", "yes_matched_auc")


@dataclass(frozen=True)
class PairJudgeConfig:
    """Which parent-child pairs are judged, and by which language model."""

    pairs: int = 500
    """Number of forest edges to draw at random. The HSAE paper uses 5000."""
    min_fired: int = 15
    """Draw only edges whose two features each fire on more than this many of the measured tokens."""
    buffer: int = 10
    """Number of tokens on either side of the center of a text window."""
    power: float = 1.0
    """Exponent for sampling text windows: with probability proportional to the feature's activation to this power. 1
    in the HSAE paper, 2 in SAEBench."""
    seed: int = 0
    """Random seed for choosing pairs and text windows."""
    judge: JudgeConfig = field(default_factory=JudgeConfig)

    def __post_init__(self) -> None:
        for name, least in (("pairs", 1), ("min_fired", 0), ("buffer", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise InputError(f"pair_judge.{name} = {getattr(self, name)}: expected {least} or more")
        if not 0 <= self.power <= 4:
            raise InputError(f"pair_judge.power = {self.power}: expected 0 to 4")


class _Test(NamedTuple):
    """How a judge did on the obvious pairs: its answers, its accuracy with interval, and whether it passes."""

    answers: list[Answer | None]
    accuracy: float
    interval: Interval

    @property
    def passes(self) -> bool:
        return self.accuracy >= LEAST_ACCURACY and self.interval is not None and self.interval[0] > GUESS


def pair_judge(subject: Subject, config: PairJudgeConfig) -> Record:
    """The record "pair_judge": the fraction of random edges of the forest that a judge affirms, and of matched pairs.

    Raises InputError if the judge cannot be reached.
    """
    texts = _Texts(subject, config)
    triples, unmatched = _draw(subject, config, texts)
    # Open the judge, which may be large, only if there is something to ask.
    judge = subject.judge if triples else None
    test = None if judge is None else _test(judge)
    why = _why_undefined(subject, config, triples, unmatched, judge, test)
    asked = triples if judge is not None and test is not None and test.passes else []
    answers = _ask(judge, asked, texts) if judge is not None and asked else []
    of_edges, of_matched = answers[: len(asked)], answers[len(asked) :]
    found = _fractions(subject, asked, of_edges, of_matched)
    counts = {
        "asked": len(asked),
        "unmatched": unmatched,
        "unparsable": sum(answer is None for answer in of_edges),
        "unparsable_matched": sum(answer is None for answer in of_matched),
    }
    accuracy = {"judge_accuracy": None if test is None else test.accuracy}
    value = {**found.value, **accuracy, **counts}
    both = [e is not None for e in of_edges]
    return Record(
        "pair_judge",
        value,
        {
            **found.interval,
            "judge_accuracy": None if test is None else test.interval,
            **dict.fromkeys(counts),
        },
        unit="fraction",
        tokens=len(subject.rows),
        settings={
            **subject.settings,
            "config": asdict(config),
            "judge": None if judge is None else judge.name,
            "judge_must_reach": {"judge_accuracy": LEAST_ACCURACY, "lower_end_of_interval": GUESS},
            "interval_method": interval_method("parents, each edge with its matched pair")
            + "; judge_accuracy: over the general units of the test; counts: none",
        },
        detail={
            "null": undefined(value, why, len(subject.rows)),
            "units": {**dict.fromkeys(counts, "pairs"), "yes_matched_auc": "AUC"},
            "pairs": [
                _in_detail(triple, kind, answer)
                for kind, of in (("edge", of_edges), ("matched", of_matched))
                for triple, answer in zip(asked, of, strict=True)
            ],
            "test": [] if test is None else _test_in_detail(test),
        },
        replicates=found.replicates,
        edge_scores={
            "yes": EdgeScores(
                torch.tensor([t.child for t, answered in zip(asked, both, strict=True) if answered]).long(),
                torch.tensor([a.score for a in of_edges if a is not None]).double(),
            )
        },
    )


def _fractions(
    subject: Subject, triples: list[Triple], of_edges: list[Answer | None], of_matched: list[Answer | None]
) -> Estimate:
    """The values `_VALUES`."""
    affirmed, read = _counts(of_edges)
    affirmed_matched, read_matched = _counts(of_matched)
    both = (read * read_matched) > 0
    score, score_matched = (
        np.array([0 if a is None else a.score for a in answers], dtype=np.float64)[both]
        for answers in (of_edges, of_matched)
    )
    # Edges of a parent share its windows, so parents are resampled, each with all its edges.
    parents, family = np.unique(np.array([t.parent for t in triples], dtype=np.int64), return_inverse=True)

    def formula(weights: FloatArray) -> dict[str, FloatArray]:
        weights = weights[:, family]
        return {
            "yes": weights @ affirmed / (weights @ read),
            "yes_matched": weights @ affirmed_matched / (weights @ read_matched),
            "yes_matched_auc": auc(score, score_matched, weights[:, both], weights[:, both]),
        }

    return estimate(formula, len(parents), units_of_sae("parents", subject.sae, parents))


def _test(judge: Judge) -> _Test:
    """Give the judge the test of obvious pairs. A reply that cannot be parsed is wrong."""
    answers, trials = take_test(judge), obvious_trials()
    right = np.array([a is not None and a.related == t.related for a, t in zip(answers, trials, strict=True)])
    # Each general unit has a related and an unrelated pair, so that the mean over units is balanced.
    of_unit = right.reshape(-1, 2).mean(1)
    found = estimate(lambda w: {"accuracy": w @ of_unit / w.sum(1)}, len(of_unit))
    return _Test(answers, float(of_unit.mean()), found.interval["accuracy"])


class _Texts:
    """The windows of features as text, made on first use."""

    def __init__(self, subject: Subject, config: PairJudgeConfig) -> None:
        self._seen, self._config = subject, config
        self._made: dict[int, list[str]] = {}

    def of(self, feature: int) -> list[str]:
        """Top windows, then sampled ones; empty if the feature never fires where a whole window fits."""
        if feature not in self._made:
            self._made[feature] = self._make(feature)
        return self._made[feature]

    def _make(self, feature: int) -> list[str]:
        config = self._config
        windows = FeatureWindows(self._seen, feature, config.buffer)
        top = windows.top(_TOP)
        if len(top) == 0:
            return []
        rng = np.random.default_rng([config.seed, feature])
        sampled = windows.sampled(_SAMPLED, windows.values[top].min(), config.power, rng)
        return windows.texts(np.concatenate([top, sampled]), mark_above=windows.level(top))


def _draw(subject: Subject, config: PairJudgeConfig, texts: _Texts) -> tuple[list[Triple], int]:
    """Up to `pairs` random edges whose features all have windows to show, and the number that have no matched pair."""
    rng = np.random.default_rng(config.seed)
    parent, child = subject.forest.edges.numpy()
    enough = fires_enough(subject, config.min_fired)
    nulls = NullParents(subject.forest, subject.pairs.marginals.n.numpy())
    triples: list[Triple] = []
    unmatched = 0
    for e in rng.permutation(np.flatnonzero(enough[parent] & enough[child])).tolist():
        if len(triples) == config.pairs:
            break
        p, c = int(parent[e]), int(child[e])
        if not (texts.of(p) and texts.of(c)):
            continue
        null = nulls.draw((p, c), rng, lambda q: bool(enough[q]) and bool(texts.of(q)))
        if null is None:
            unmatched += 1
        else:
            triples.append(Triple(p, null, c))
    return triples, unmatched


def _ask(judge: Judge, triples: list[Triple], texts: _Texts) -> list[Answer | None]:
    """The judge's answers about all edges, then about all matched pairs."""
    pairs = [(t.parent, t.child) for t in triples] + [(t.null, t.child) for t in triples]
    return ask_related(judge, [(texts.of(a), texts.of(b)) for a, b in pairs], "judge pairs")


def _counts(answers: list[Answer | None]) -> tuple[FloatArray, FloatArray]:
    """For each pair, 1 if it is affirmed, and 1 if its reply could be parsed; else 0."""
    affirmed = np.array([a is not None and a.related for a in answers], dtype=np.float64)
    return affirmed, np.array([a is not None for a in answers], dtype=np.float64)


def _in_detail(triple: Triple, kind: str, answer: Answer | None) -> dict[str, Any]:
    return {
        "parent": triple.parent if kind == "edge" else triple.null,
        "child": triple.child,
        "kind": kind,
        **_answered(answer),
    }


def _test_in_detail(test: _Test) -> list[dict[str, Any]]:
    return [
        {"general": t.general.name, "special": t.special.name, "truth": t.related, **_answered(answer)}
        for t, answer in zip(obvious_trials(), test.answers, strict=True)
    ]


def _answered(answer: Answer | None) -> dict[str, Any]:
    return {
        "related": None if answer is None else answer.related,
        "confidence": None if answer is None else answer.confidence,
    }


def _why_undefined(
    subject: Subject,
    config: PairJudgeConfig,
    triples: list[Triple],
    unmatched: int,
    judge: Judge | None,
    test: _Test | None,
) -> dict[str, str]:
    if not subject.forest.edges.shape[1]:
        why = "the forest has no edges: every feature hangs from the root"
    elif unmatched and not triples:
        why = NO_NULL_PARENT
    elif not triples:
        why = (
            f"no edge joins two features that fire on more than {config.min_fired} tokens, "
            f"at least once {config.buffer} tokens or more from either end of a context window"
        )
    elif judge is None or test is None:
        why = NO_JUDGE
    elif not test.passes:
        why = (
            f"the judge does not tell obvious pairs apart: its accuracy is {test.accuracy:.2f}, and only a judge with "
            f"{LEAST_ACCURACY} or more is asked about features; choose another judge.model"
        )
    else:
        why = "no reply of the judge could be parsed"
    return dict.fromkeys((*_VALUES, "judge_accuracy"), why)


SPEC = Study(
    name="pair_judge",
    needs=frozenset({"text", "firings", "forest", "judge"}),
    sets=("paper", "truth"),
    config=PairJudgeConfig,
    run=pair_judge,
    columns=(
        Column(INTERPRETABILITY, "yes", "pairs judged related", "↑"),
        Column(INTERPRETABILITY, "yes_matched", "matched pairs judged related", "↓"),
    ),
    memory=lambda size: size.decoder,
    nulls=("yes", "yes_matched_auc"),
    version=2,
)
