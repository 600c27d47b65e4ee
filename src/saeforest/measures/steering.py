"""Does a parent steer the general concept, and a child the special one (docs/spec/steering.md)?

For an edge from p to c, each feature is set to the same value v at every position of some windows, one at a time, so
that all changes are equally long. What they do to two sets of tokens is measured where all of these features are silent
(`steered_text`):

    special   tokens typical of the child's own detector, among all of the family
    general   tokens typical of the parent where the child is not active, among all text

each once as the tokens on which the feature is active (`own`) and once as those after them (`next`). A null parent q
and a random feature r, from other trees and as frequent as p and c, are set likewise. With D_f(S) the effect of f on S:

    parent_general   D_p(general) - D_q(general)    parent_special   D_p(special) - D_q(special)
    child_general    D_c(general) - D_r(general)    child_special    D_c(special) - D_r(special)
    specialization   (D_c(special) - D_c(general)) - (D_p(special) - D_p(general))
    holds            share of edges on which p beats q on both sets, p beats c on general, and c beats p on special

`path_specialization` and `path_holds` are the last two with the path, parent and child together, as long a change, in
place of the child; `path_gain` is D_pc(special) - D_c(special). Any two unrelated features specialize, so only
`parent_special` beside its nulls speaks of a hierarchy.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Int64
from numpy import ndarray as Array

from ..errors import InputError
from ..interventions import set_to
from ..progress import progress
from ..saes import SAE
from .bootstrap import FloatArray, estimate, interval_method, units_of_sae
from .columns import HIERARCHY, Column
from .matched import NO_NULL_PARENT, NullParents
from .own_detectors import own_detectors_memory
from .record import EdgeScores, Record, undefined
from .related_edges import RelatedEdges, Rows
from .spec import Study
from .steered_text import Effect, SteeredText, typical
from .subject import Subject

Kind = Literal["own", "next"]
KINDS: tuple[Kind, ...] = ("own", "next")
VALUES = (
    "parent_general", "parent_special", "child_general", "child_special", "specialization", "holds",
    "path_gain", "path_specialization", "path_holds",
)  # fmt: skip
_WHO = ("parent", "null", "child", "random", "path")
# Number of edges that are tried for each that is measured.
_TRIED = 20
# Bytes of the clean predictions, and of those of a few windows at a time, with a large vocabulary.
_PREDICTIONS = 500 << 20
# Rows of activations on which the length of an activation is averaged.
_SAMPLE = 4096
_DIGITS = 6


@dataclass(frozen=True)
class SteeringConfig:
    """How many families are steered, how strongly, and on what text."""

    families: int = 60
    """Number of parents to steer, drawn at random, each with one child. Each takes five passes of the language model
    over the windows."""
    strength: float = 0.4
    """Length of each change, relative to the mean length of an activation."""
    windows: int = 16
    """Number of windows of the measured text to steer."""
    context: int = 32
    """Number of tokens of each window to read."""
    tokens: int = 10
    """Largest number of typical tokens for each set."""
    min_tokens: int = 20
    """Measure only edges whose child is active, and has its own detector on, on at least this many of the measured
    tokens, and whose parent is active on at least as many others."""
    seed: int = 0
    """Random seed for drawing families, controls and windows."""

    def __post_init__(self) -> None:
        least = {"families": 1, "windows": 1, "context": 2, "tokens": 1, "min_tokens": 2, "seed": 0}
        for name, lowest in least.items():
            if getattr(self, name) < lowest:
                raise InputError(f"steering.{name} = {getattr(self, name)}: expected {lowest} or more")
        if not 0 < self.strength < float("inf"):
            raise InputError(f"steering.strength = {self.strength}: expected a number above 0")


class Family(NamedTuple):
    """An edge with its controls, and the tokens of each kind: special ones, then general ones."""

    parent: int
    null: int
    child: int
    random: int
    sets: tuple[Int64[Array, "_"], ...]
    """The sets of `own`, then those of `next`."""


def steering(subject: Subject, config: SteeringConfig) -> Record:
    """The record "steering". All values are of edges, one for each parent; intervals resample these.

    `detail["edges"]` has an entry for each: the features, the tokens, and the effects of every feature on every set.
    """
    rng = np.random.default_rng(config.seed)
    edges = RelatedEdges(subject, len(subject.forest.parent), config.min_tokens, rng)
    text = SteeredText(
        subject.sae,
        subject.reader,
        subject.tokens,
        config.windows,
        config.context,
        np.random.default_rng(config.seed),
    )
    value = config.strength * _length(subject)
    families: list[Family] = []
    effects: list[dict[str, Effect]] = []
    n = min(config.families, int((subject.forest.n_children > 0).sum()))
    with progress("steer", n, "families") as advance:
        for family in _families(subject, config, edges, rng):
            if (found := _steered(subject.sae, text, family, value)) is not None:
                families.append(family)
                effects.append(found)
                advance(1)
            if len(families) == config.families:
                break
    return _record(subject, config, edges, families, effects, value, text.n_positions)


def _families(
    subject: Subject, config: SteeringConfig, edges: RelatedEdges, rng: np.random.Generator
) -> Iterator[Family]:
    """Edges with controls, in random order, one for each parent."""
    fired = subject.pairs.marginals.n.numpy()
    controls = NullParents(subject.forest, fired, childless=True)
    ids = subject.tokens.ids.reshape(-1).numpy().astype(np.int64)
    measured = subject.rows.numpy()
    special_ids = _special_ids(subject)
    seen: set[int] = set()
    for tried, (triple, rows) in enumerate(edges):
        if tried == _TRIED * config.families:
            return
        if triple.parent in seen:
            continue
        other = controls.draw((triple.child, triple.child), rng, lambda r, q=triple.null: r != q)
        sets = _sets(ids, measured, rows, config.tokens, subject.tokens.context, special_ids)
        if other is None or sets is None:
            continue
        seen.add(triple.parent)
        yield Family(triple.parent, triple.null, triple.child, other, sets)


def _special_ids(subject: Subject) -> Int64[Array, "_"]:
    return subject.reader.lm.special_ids.numpy()


def _sets(
    ids: Int64[Array, "n"],
    measured: Int64[Array, "m"],
    rows: Rows,
    n: int,
    context: int,
    without: Int64[Array, "_"],
) -> tuple[Int64[Array, "_"], ...] | None:
    """The sets of a family; None if one is empty."""
    found: list[Int64[Array, "_"]] = []
    for step in (0, 1):  # the token itself, and the one after it in the same window
        child, parent, every = (
            ids[of[of % context < context - step] + step] for of in (rows.child, rows.parent, measured)
        )
        special = typical(child, parent, n, without)
        general = typical(parent, every, n, np.concatenate([without, special]))
        found += [special, general]
    return tuple(found) if all(map(len, found)) else None


def _length(subject: Subject) -> float:
    """The mean length of an activation in the units of codes."""
    sae = subject.sae
    u = sae.normalize(subject.x[:_SAMPLE].to(sae.device).float())[0]
    return float(u.norm(dim=-1).mean())


def _steered(sae: SAE, text: SteeredText, family: Family, value: float) -> dict[str, Effect] | None:
    """The effects of each feature of a family and its controls; None if they are all over the text."""
    features = family.parent, family.null, family.child, family.random
    at = text.silent(features)
    if not bool(at.any()):
        return None
    pair = sae.W_dec[[family.parent, family.child]].detach().double().sum(0)
    # Opposite directions would need values without bound.
    together = value / max(float(pair.norm()), 0.5)
    edits = [[set_to(f, value)] for f in features]
    edits.append([set_to([family.parent, family.child], together)])
    return {who: text.effect(of, family.sets, at) for who, of in zip(_WHO, edits, strict=True)}


def columns_of(effects: list[dict[str, Effect]], kind: Kind) -> dict[str, FloatArray]:
    """Each value of a kind for every edge."""
    first = 2 * KINDS.index(kind)
    special, general = (
        {who: np.array([e[who].on[first + i] for e in effects]) for who in _WHO} for i in (0, 1)
    )
    parent, null, child, other, path = _WHO
    beats_null = (general[parent] > general[null]) & (special[parent] > special[null])

    def specialization(who: str) -> FloatArray:
        return (special[who] - general[who]) - (special[parent] - general[parent])

    def holds(who: str) -> FloatArray:
        own_part = (general[parent] > general[who]) & (special[who] > special[parent])
        return (beats_null & own_part).astype(np.float64)

    columns = (
        general[parent] - general[null],
        special[parent] - special[null],
        general[child] - general[other],
        special[child] - special[other],
        specialization(child),
        holds(child),
        special[path] - special[child],
        specialization(path),
        holds(path),
    )
    return {f"{kind}_{name}": column for name, column in zip(VALUES, columns, strict=True)}


def _record(
    subject: Subject,
    config: SteeringConfig,
    edges: RelatedEdges,
    families: list[Family],
    effects: list[dict[str, Effect]],
    value: float,
    positions: int,
) -> Record:
    columns = {name: column for kind in KINDS for name, column in columns_of(effects, kind).items()}
    columns |= {f"kl_{who}": np.array([e[who].kl for e in effects]) for who in _WHO}
    parents = np.array([f.parent for f in families], dtype=np.int64)

    def formula(weights: FloatArray) -> dict[str, FloatArray]:
        return {name: weights @ column / weights.sum(1) for name, column in columns.items()}

    found = estimate(formula, len(families), units_of_sae("parents", subject.sae, parents))
    counts = {"edges": len(families), "unmatched": edges.unmatched, "too_rare": edges.too_rare}
    values = {**found.value, **counts}
    children = torch.tensor([f.child for f in families], dtype=torch.int64)
    scored = [f"{kind}_parent_special" for kind in KINDS]
    why = dict.fromkeys(columns, _nothing(subject, edges))
    return Record(
        "steering",
        values,
        {**found.interval, **dict.fromkeys(counts)},
        unit="nats",
        tokens=len(subject.rows),
        settings={
            **subject.settings,
            "config": asdict(config),
            "value": round(value, _DIGITS),
            "positions": positions,
            "interval_method": interval_method("parents, one edge of each") + "; counts: none",
        },
        detail={
            "null": undefined(values, why, len(subject.rows)),
            "units": {
                **dict.fromkeys(counts, "edges"),
                **{f"{kind}{path}_holds": "fraction" for kind in KINDS for path in ("", "_path")},
            },
            "edges": [_listed(subject, f, e) for f, e in zip(families, effects, strict=True)],
        },
        replicates=found.replicates,
        edge_scores={name: EdgeScores(children, torch.from_numpy(columns[name])) for name in scored},
    )


def _nothing(subject: Subject, edges: RelatedEdges) -> str:
    if not subject.forest.edges.shape[1]:
        return "the forest has no edges: every feature hangs from the root"
    if edges.unmatched:
        return NO_NULL_PARENT
    return "no edge has features that are active often enough and tokens that are typical of them"


def _listed(subject: Subject, family: Family, effects: dict[str, Effect]) -> dict[str, Any]:
    names = [f"{kind}_{part}" for kind in KINDS for part in ("special", "general")]
    texts = [subject.tokenizer.batch_decode([[t] for t in tokens.tolist()]) for tokens in family.sets]
    return {
        **{who: getattr(family, who) for who in _WHO[:4]},
        "tokens": dict(zip(names, texts, strict=True)),
        "effects": {
            who: dict(zip(names, (round(v, _DIGITS) for v in effects[who].on), strict=True))
            | {"kl": round(effects[who].kl, _DIGITS)}
            for who in _WHO
        },
    }


SPEC = Study(
    name="steering",
    needs=frozenset({"text", "firings", "activations", "forest", "language_model"}),
    config=SteeringConfig,
    run=steering,
    columns=(
        Column(
            HIERARCHY, "next_parent_special", "parent steers its child's next tokens, nats over a null", "↑"
        ),
    ),
    memory=lambda size: _PREDICTIONS + own_detectors_memory(size.d_sae, size.n_tokens),
    nulls=tuple(f"{kind}_{name}" for kind in KINDS for name in VALUES),
)
