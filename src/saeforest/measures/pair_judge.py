"""Does a judge find that a child is a special case of its parent (HSAE; docs/spec/judges.md#pair-judge)?

For each edge the judge reads up to 10 top windows and 5 sampled ones for each of the two features (`examples`), with
marks, and answers whether one feature's concept contains the other's:

    yes         = edges that the judge affirms / edges with a reply that can be parsed
    yes_random  = the same for unrelated pairs

The paper has no control, so a judge that says Yes to everything would score 1. Here each edge (p, c) has a control
pair (p, c'), where c' is the child of another judged edge between the same levels and not a descendant of p.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import numpy as np

from ..errors import InputError
from ..judges import NO_JUDGE, Judge, JudgeConfig, Question, ask_all, prompt
from ..structure.forest import Forest
from .bootstrap import FloatArray, estimate, interval_method, units_of_sae
from .columns import INTERPRETABILITY, Column
from .examples import FeatureWindows, fires_enough, numbered
from .record import Record, undefined
from .spec import Study
from .subject import Subject

_TOP, _SAMPLED = 10, 5
_REPLY_TOKENS = 24
_REPLY = re.compile(r"HaveRelationship:[ \t]*(Yes|No)[ \t]*\r?\n[ \t]*Confidence:[ \t]*(High|Medium|Low)")


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


class Answer(NamedTuple):
    """A judge's answer: whether two features are related, and its confidence (High, Medium or Low)."""

    related: bool
    confidence: str


Pair = tuple[int, int]


def pair_judge(subject: Subject, config: PairJudgeConfig) -> Record:
    """The record "pair_judge": the fraction of random edges of the forest that a judge affirms.

    Raises InputError if the judge cannot be reached.
    """
    texts = _Texts(subject, config)
    rng = np.random.default_rng(config.seed)
    edges = _draw_edges(subject, config, texts, rng)
    controls = draw_controls(subject.forest, edges, rng)
    # Ask about the controls after all edges.
    pairs = [*edges, *(c for c in controls if c is not None)]
    judge = (
        subject.judge if pairs else None
    )  # open the judge, which may be large, only if there is something to ask
    verdicts = [] if judge is None else _ask(judge, pairs, texts)
    if judge is None:
        edges, controls = [], []
    of_edges, of_controls = verdicts[: len(edges)], iter(verdicts[len(edges) :])
    beside = [None if c is None else next(of_controls) for c in controls]

    affirmed, read = _counts(of_edges)
    affirmed_random, read_random = _counts(beside)

    # Edges of a parent share its windows, so parents are resampled, each with all its edges.
    parents, family = np.unique([parent for parent, _ in edges], return_inverse=True)

    def fractions(weights: FloatArray) -> dict[str, FloatArray]:
        weights = weights[:, family]
        return {
            "yes": weights @ affirmed / (weights @ read),
            "yes_random": weights @ affirmed_random / (weights @ read_random),
        }

    found = estimate(fractions, len(parents), units_of_sae("parents", subject.sae, parents))
    asked_random = sum(c is not None for c in controls)
    counts = {
        "asked": len(edges),
        "asked_random": asked_random,
        "unparsable": len(edges) - int(read.sum()),
        "unparsable_random": asked_random - int(read_random.sum()),
    }
    value = {**found.value, **counts}
    return Record(
        "pair_judge",
        value,
        {**found.interval, **dict.fromkeys(counts)},
        unit="fraction",
        tokens=len(subject.rows),
        settings={
            **subject.settings,
            "config": asdict(config),
            "judge": None if judge is None else judge.name,
            "interval_method": interval_method("parents, each edge with its random pair") + "; counts: none",
        },
        detail={
            "null": undefined(
                value, _why_undefined(subject, config, pairs, judge, counts), len(subject.rows)
            ),
            "units": dict.fromkeys(counts, "pairs"),
            "pairs": [
                _in_detail(pair, verdict, kind="edge" if i < len(edges) else "random")
                for i, (pair, verdict) in enumerate(zip(pairs, verdicts, strict=False))
            ],
        },
        replicates=found.replicates,
    )


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


def _draw_edges(
    subject: Subject, config: PairJudgeConfig, texts: _Texts, rng: np.random.Generator
) -> list[Pair]:
    """Up to `pairs` random edges between features that both have windows to show."""
    parent, child = subject.forest.edges.numpy()
    enough = fires_enough(subject, config.min_fired)
    candidates = np.flatnonzero(enough[parent] & enough[child])
    edges: list[Pair] = []
    for e in rng.permutation(candidates).tolist():
        if len(edges) == config.pairs:
            break
        pair = int(parent[e]), int(child[e])
        if all(texts.of(feature) for feature in pair):
            edges.append(pair)
    return edges


def draw_controls(forest: Forest, edges: list[Pair], rng: np.random.Generator) -> list[Pair | None]:
    """A control for each edge: its parent with the child of another edge between the same levels.

    It is None if all such children descend from the parent. Levels are layers or, in a forest without layers, depths.
    """
    level = (forest.layer if forest.layered else forest.depth).tolist()
    children: dict[tuple[int, int], list[int]] = {}
    for p, c in edges:
        children.setdefault((level[p], level[c]), []).append(c)

    controls: list[Pair | None] = []
    for p, c in edges:
        candidates = rng.permutation(children[level[p], level[c]]).tolist()
        # `other` lies on a deeper level than p, so it cannot be an ancestor of p.
        unrelated = (other for other in candidates if p not in forest.ancestors(other))
        other = next(unrelated, None)
        controls.append(None if other is None else (p, other))
    return controls


def _ask(judge: Judge, pairs: list[Pair], texts: _Texts) -> list[Answer | None]:
    system = prompt("related")
    questions = [
        Question(
            system,
            f"Passages of unit A:\n{numbered(texts.of(p))}\n\nPassages of unit B:\n{numbered(texts.of(c))}",
            _REPLY_TOKENS,
        )
        for p, c in pairs
    ]
    return [parse_verdict(reply) for reply in ask_all(judge, questions, "judge pairs")]


def parse_verdict(reply: str) -> Answer | None:
    """Parse the two lines of a reply; None for a reply of any other form."""
    match = _REPLY.fullmatch(reply.strip())
    return match and Answer(match[1] == "Yes", match[2])


def _counts(verdicts: list[Answer | None]) -> tuple[FloatArray, FloatArray]:
    """For each pair, 1 if it is affirmed, and 1 if its reply could be parsed; else 0."""
    affirmed = np.array([v is not None and v.related for v in verdicts], dtype=np.float64)
    return affirmed, np.array([v is not None for v in verdicts], dtype=np.float64)


def _in_detail(pair: Pair, verdict: Answer | None, kind: str) -> dict[str, Any]:
    return {
        "parent": pair[0],
        "child": pair[1],
        "kind": kind,
        "related": None if verdict is None else verdict.related,
        "confidence": None if verdict is None else verdict.confidence,
    }


def _why_undefined(
    subject: Subject, config: PairJudgeConfig, pairs: list[Pair], judge: Judge | None, counts: dict[str, int]
) -> dict[str, str]:
    unread = "no reply of the judge could be parsed"
    if not subject.forest.edges.shape[1]:
        nothing = "the forest has no edges: every feature hangs from the root"
    elif not pairs:
        nothing = (
            f"no edge joins two features that fire on more than {config.min_fired} tokens, "
            f"at least once {config.buffer} tokens or more from either end of a context window"
        )
    elif judge is None:
        nothing = NO_JUDGE
    else:
        nothing = unread
    no_random = "no edge has another between the same levels with an unrelated child"
    has_random = counts["asked_random"] or not pairs or judge is None
    return {"yes": nothing, "yes_random": nothing if has_random else no_random}


SPEC = Study(
    name="pair_judge",
    needs=frozenset({"text", "firings", "forest", "judge"}),
    sets=("paper",),
    config=PairJudgeConfig,
    run=pair_judge,
    columns=(Column(INTERPRETABILITY, "yes", "pairs judged related", "↑"),),
    memory=lambda size: size.decoder,
)
