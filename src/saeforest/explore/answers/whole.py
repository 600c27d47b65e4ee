"""Answers about a whole SAE: its overview, forest, labels and null pairs, and its training."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from ..labels.labels import Source
from ..queries.cards import ForcedBy
from .parts import AboutColumn, Array

# -- overview


@dataclass(frozen=True)
class NullValue:
    """A value on a null, or the difference to it."""

    value: float | None
    interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class MeasuredValue:
    """A value of a measure. null: for a value about the hierarchy, the same value on its nulls (`shuffled`,
    `untrained`), its differences to them (`over_shuffled`, `over_untrained`), and `auc`; otherwise None."""

    name: str
    title: str
    description: str
    value: float | None
    interval: tuple[float, float] | None
    unit: str
    group: Literal["size", "fit", "hierarchy"]
    null: dict[str, NullValue] | None = None


@dataclass(frozen=True)
class Beats:
    """How the edges compare with null pairs by one of the edge columns.

    share: fraction of the edges beyond the 95th percentile of the null pairs; by chance it is `chance`.
    auc: chance that an edge is beyond a matched null pair, ties half; 0.5 means that edges are no better.
    n: number of edges with a value: those on which the column is defined (`AboutColumn.defined`).
    forced_by: why edges beat null pairs whatever their parents are; None if they need not.
    """

    column: str
    title: str
    share: float
    chance: float
    auc: float | None
    n: int
    forced_by: ForcedBy | None


@dataclass(frozen=True)
class FamilySummary:
    """A family worth seeing. why: one line that says what its children stand for."""

    parent: int
    label: str | None
    tokens: tuple[str, ...]
    n_children: int
    why: str


@dataclass(frozen=True)
class Has:
    """What this explorer can answer. missing: for what it cannot, what to do, by the same names; under `measures`, why
    an SAE has no measured values and can have none."""

    logits: bool
    prompt: bool
    training: bool
    geometry: bool
    nulls: bool
    judge: bool
    missing: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class OverviewAnswer:
    """`overview`: what the SAE is, and how much of its hierarchy beats chance.

    forest: "learned", "none", or how it was inferred. system: name of the kind of SAE.
    writes: whether labels, notes and ratings can be written. static: whether this is an export.
    """

    api: int
    title: str
    model: str
    site: str
    forest: str
    system: str
    n_features: int
    n_alive: int
    n_tokens: int
    layer_sizes: tuple[int, ...]
    n_edges: int
    n_judged: int
    min_count: int
    n_roots: int
    values: tuple[MeasuredValue, ...]
    beats: tuple[Beats, ...]
    families: tuple[FamilySummary, ...]
    has: Has
    writes: bool
    static: bool


# -- the whole


@dataclass(frozen=True)
class FeatureArrays:
    """Numbers of all features. max: largest activation; dead: whether it never fired."""

    density: Array
    n_fired: Array
    max: Array
    dead: Array


@dataclass(frozen=True)
class ForestAnswer:
    """`forest`: the parent (-1: none) and the layer of every feature, and the columns of the edges, by child.

    places: for each column, the share of matched null pairs that the edge exceeds, ties half; 0.5 is chance.
    """

    parent: Array
    layer: Array
    depth: Array
    features: FeatureArrays
    columns: dict[str, Array]
    places: dict[str, Array]
    about: tuple[AboutColumn, ...]


@dataclass(frozen=True)
class LabelsAnswer:
    """`labels`: the label of every feature that has one, and where it comes from, by the feature's number."""

    labels: dict[str, str]
    sources: dict[str, Source]


@dataclass(frozen=True)
class NullsAnswer:
    """`nulls`: the columns of `n` null pairs: parents shuffled within their layer, among features of like density."""

    columns: dict[str, Array]
    n: int


# -- training


@dataclass(frozen=True)
class LayerSeries:
    """Values by step and layer. dead_share: fraction of the layer's features that are dead."""

    dead_share: tuple[tuple[float, ...], ...]
    l0: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class LayerHistory:
    """Allocation of the features of one layer. Every series has one number for each of the history's steps.

    moved: features that got another parent after the step. from_root, to_root: those of them that had none before, or
    have none after. dead: features that were dead then. with_parent: fraction of the layer's features with a parent,
    after the step. families: number of features with a child in the layer; largest: children in the layer of the one
    with the most. excess: mean over the layer's edges of how much likelier the parent is to fire where the child's
    detector is on, as measured when they were chosen from data; excess_null: the same with the parents shuffled. None
    where the log does not have it.
    """

    layer: int
    moved: tuple[int, ...]
    from_root: tuple[int | None, ...]
    to_root: tuple[int | None, ...]
    dead: tuple[int | None, ...]
    with_parent: tuple[float | None, ...]
    families: tuple[int | None, ...]
    largest: tuple[int | None, ...]
    excess: tuple[float | None, ...]
    excess_null: tuple[float | None, ...]


@dataclass(frozen=True)
class ParentHistory:
    """A parent whose number of children changed much. children: their number after each of the history's steps.
    gained, lost: how many features became its children, and how many stopped being so, over the whole training."""

    id: int
    label: str | None
    children: tuple[int, ...]
    gained: int
    lost: int


@dataclass(frozen=True)
class AllocationHistory:
    """Which features hung from which parents in the course of training.

    steps: 0, the start, and each step after which parents were chosen anew. kinds: what happened after it, such as
    `reallocation`, `root_reset`, `parents` (from data), `hierarchy` (HSAE) or `promoted`; several are joined by " + ";
    "start" at 0. layers: those below the first. parents: those with the most children gained and lost, at most
    24; empty where the log holds no single moves.
    """

    steps: tuple[int, ...]
    kinds: tuple[str, ...]
    layers: tuple[LayerHistory, ...]
    parents: tuple[ParentHistory, ...]


@dataclass(frozen=True)
class TrainingAnswer:
    """`training`: the run's log. series: by name, a value for each step. moves: the log's reallocations, an entry for
    each step and layer. allocation: how the forest came about; None if the log says nothing of it."""

    steps: tuple[int, ...]
    series: dict[str, tuple[float | None, ...]]
    layers: LayerSeries
    moves: tuple[dict[str, Any], ...]
    allocation: AllocationHistory | None = None
