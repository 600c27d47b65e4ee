"""Answers about features and families, with the edges between them."""

from __future__ import annotations

from dataclasses import dataclass

from ..labels.annotations import Rating
from ..labels.labels import Source
from ..queries.contexts import Context
from .parts import AboutColumn, Array

# -- features


@dataclass(frozen=True)
class Named:
    """A feature by number and label."""

    id: int
    label: str | None


@dataclass(frozen=True)
class EdgeColumn(AboutColumn):
    """A column of one edge. place: the share of matched null pairs that it exceeds, ties half; 0.5 is chance."""

    value: float | None
    place: float | None


@dataclass(frozen=True)
class EdgeAnswer:
    """`edge/CHILD`: the edge from its parent. rating: by a person who was not blind to what it is."""

    parent: int
    child: int
    labels: dict[str, str]
    columns: tuple[EdgeColumn, ...]
    rating: Rating | None


@dataclass(frozen=True)
class Child:
    """A child of a feature. p_child: P(child | parent). ungated: coverage without the gate; place: its place
    among null pairs."""

    id: int
    label: str | None
    n_fired: int
    p_child: float | None
    ungated: float | None
    place: float | None


@dataclass(frozen=True)
class Histogram:
    """The number of activations between neighboring `edges`."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]


@dataclass(frozen=True)
class Quantile:
    """Activations drawn from one part of the feature's range. bin: 0 is the lowest."""

    bin: int
    lo: float
    hi: float
    contexts: tuple[Context, ...]


@dataclass(frozen=True)
class TokenLogit:
    """A token and the feature's direct effect on its logit."""

    token: str
    value: float


@dataclass(frozen=True)
class LogitEffects:
    """The tokens that a feature makes most and least likely, directly: later layers may change that."""

    up: tuple[TokenLogit, ...]
    down: tuple[TokenLogit, ...]


@dataclass(frozen=True)
class Near:
    """A feature with a similar decoder row."""

    id: int
    label: str | None
    cos: float


@dataclass(frozen=True)
class Related:
    """A feature that fires where another one does.

    p: how often the general one of the two is active where the special one is. base: how often it is active anywhere,
    which is the null of p. in_tree: whether the two are parent and child.
    """

    id: int
    label: str | None
    p: float | None
    base: float
    in_tree: bool


@dataclass(frozen=True)
class FeatureAnswer:
    """`feature/ID`: one feature.

    depth: number of ancestors; path: from the topmost ancestor to the feature; siblings: at most 50 that fired.
    children: those that fired, the most frequent first; n_silent: number of those that did not.
    tokens: tokens that tell it from its parent (a root: from all text). over, under: candidate parents and children by
    the data. logits: None if the index was made without the language model.
    """

    id: int
    label: str | None
    source: Source | None
    layer: int
    depth: int
    path: tuple[Named, ...]
    parent: int | None
    siblings: tuple[Named, ...]
    children: tuple[Child, ...]
    n_silent: int
    alive: bool
    n_fired: int
    density: float
    max: float | None
    mean: float | None
    tokens: tuple[str, ...]
    histogram: Histogram | None
    top: tuple[Context, ...]
    quantiles: tuple[Quantile, ...]
    logits: LogitEffects | None
    near: tuple[Near, ...]
    over: tuple[Related, ...]
    under: tuple[Related, ...]
    edge: EdgeAnswer | None
    note: str | None
    rating: Rating | None
    bookmark: bool


# -- families


@dataclass(frozen=True)
class Summary:
    """A feature in brief."""

    id: int
    label: str | None
    tokens: tuple[str, ...]
    density: float
    max: float | None


@dataclass(frozen=True)
class FamilyChild:
    """A child in its family. distinguishes: the tokens that tell it from its parent."""

    id: int
    label: str | None
    tokens: tuple[str, ...]
    p_child: float | None
    distinguishes: tuple[str, ...]
    edge: EdgeAnswer


@dataclass(frozen=True)
class Overlap:
    """Overlap of siblings: the tokens on which both fire, as a share of those on which either does.

    expected: the mean of the same where chance chooses on which of the parent's tokens each child fires as often as it
    does (of those without the parent likewise). place: how likely chance gives a smaller overlap, ties half: 0.5 is
    chance, near 0 is less overlap than by chance. Both are NaN on the diagonal, and where a child does not fire.
    """

    ids: tuple[int, ...]
    matrix: Array
    expected: Array
    place: Array


@dataclass(frozen=True)
class Ungated:
    """Where a child's own detector would fire if its parent did not have to."""

    child: int
    contexts: tuple[Context, ...]


@dataclass(frozen=True)
class UngatedAnswer:
    """`ungated/ID`: for each child of a feature, contexts in which the child's own detector is on and the feature is
    silent; the detector is on above the median of the child's activations. overlap: of the children, on the same
    `n_tokens` tokens."""

    n_tokens: int
    overlap: Overlap
    ungated: tuple[Ungated, ...]


@dataclass(frozen=True)
class FamilyAnswer:
    """`family/ID`: a feature with its children.

    residue: contexts on whose token no child fires. overlap, ungated: None and empty until `ungated/ID` was asked for,
    which runs the model. n_tokens: how many tokens it then read for them.
    """

    parent: Summary
    children: tuple[FamilyChild, ...]
    n_silent: int
    contexts: tuple[Context, ...]
    residue: tuple[Context, ...]
    overlap: Overlap | None
    ungated: tuple[Ungated, ...]
    n_tokens: int | None = None


@dataclass(frozen=True)
class TreeDataAnswer:
    """`tree-data/ID`: the children of a feature in the forest, and by the data.

    The data agree with a child if the feature is active on at least `least` of the tokens on which the child's own
    detector is on, without the gate. data_only: features outside its subtree of which the same is true of firings.
    other_parents: features that cover this one, but for its parent and all below it.
    """

    least: float
    agreed: tuple[Related, ...]
    tree_only: tuple[Related, ...]
    data_only: tuple[Related, ...]
    other_parents: tuple[Related, ...]


@dataclass(frozen=True)
class Point:
    """An activation in the plane of its family. child: the child that fires most strongly, -1 if none does."""

    x: float
    y: float
    child: int
    row: int
    token: str
    before: str
    after: str


@dataclass(frozen=True)
class Direction:
    """The encoder direction of a child in the plane of its family."""

    child: int
    x: float
    y: float


@dataclass(frozen=True)
class GeometryAnswer:
    """`geometry/ID`: activations under a parent in their first two principal components.

    explained: fraction of the variance along each. null: the same in an untrained tree, None if not measured.
    """

    points: tuple[Point, ...]
    directions: tuple[Direction, ...]
    explained: tuple[float, float]
    null: tuple[float, float] | None = None
