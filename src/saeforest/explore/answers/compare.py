"""Answers about an SAE and another one beside it."""

from __future__ import annotations

from dataclasses import dataclass

from .parts import Array
from .whole import NullValue


@dataclass(frozen=True)
class RunsAnswer:
    """`compare` without `other`: names of the SAEs that it takes."""

    runs: tuple[str, ...]


@dataclass(frozen=True)
class Pair:
    """A feature and the one of another SAE with the nearest decoder row.

    parents_match: whether their parents are such a pair too; None if one of the two is a root.
    """

    id: int
    other_id: int
    other_label: str | None
    cos: float
    parents_match: bool | None


@dataclass(frozen=True)
class Shared:
    """How much of one SAE another one has too, if features match from a cosine of `threshold` on.

    Only features that fire count, and edges between two of them; of an SAE without an index all do.

    n_features: number of features; matched: fraction of them with a match. matched_chance: the same where the other
    SAE's decoder rows are random directions of equal covariance.
    n_edges: number of edges; n_both: of them, those with both ends matched; kept: of the latter, the fraction whose
    parent's match is the parent of the child's match. kept_chance: the same with the other forest's parents shuffled
    within their layers: the mean over all shuffles, and the middle 95% of 200.
    """

    threshold: float
    n_features: int
    matched: float
    matched_chance: float
    n_edges: int
    n_both: int
    kept: float | None
    kept_chance: NullValue


@dataclass(frozen=True)
class Side:
    """One of the two SAEs: for every feature, its match in the other one, whatever the cosine is.

    match: the feature of the other SAE with the nearest decoder row; cos: their cosine. kept: whether the match of its
    parent is the parent of its match. chance: the probability of that if the other forest's parents are shuffled within
    their layers. Both are 0 for a root. measures: by threshold.
    """

    match: Array
    cos: Array
    kept: Array
    chance: Array
    measures: tuple[Shared, ...]


@dataclass(frozen=True)
class OtherForest:
    """The forest of the other SAE. density, dead, labels: from its index; None, None and none without one that can be
    read. missing: what to do about that."""

    parent: Array
    layer: Array
    density: Array | None
    dead: Array | None
    labels: dict[str, str]
    indexed: bool
    missing: str | None


@dataclass(frozen=True)
class CompareAnswer:
    """`compare?other=NAME`: features matched with those of another SAE that have the nearest decoder rows.

    matched_share: fraction of the features with a cosine of at least `threshold`. parents_share: of those whose two
    parents exist, the fraction whose parents are a pair too. null: the same where the other SAE's decoder rows are
    random directions, and its parents shuffled.
    here, there: this SAE and the other one, each matched with the other, and what both share beside what chance gives.
    forest: the other SAE's.
    """

    other: str
    threshold: float
    matched_share: float
    mean_cos: float
    parents_share: float | None
    pairs: tuple[Pair, ...]
    null: dict[str, float | None]
    here: Side
    there: Side
    forest: OtherForest
