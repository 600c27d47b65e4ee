"""What a person is shown of a forest, as plain data: numbers, text without markup, and nothing of torch.

The terminal prints cards (`show.py`); `to_dict` makes them ready for JSON, so that a page can show the same. A number
that does not exist is None, and `null` says why.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from ..text.passages import Passage

Matched = Literal["label", "token", "text"]


@dataclass(frozen=True)
class Card:
    """The base of all cards."""

    def to_dict(self) -> dict[str, Any]:
        """The card as nested dicts, tuples, strings and numbers: what `json.dumps` takes."""
        return asdict(self)


@dataclass(frozen=True)
class OverviewCard(Card):
    """The whole that the other cards are part of.

    n_alive: features that fired on the `n_tokens` that were read.
    forest: where it comes from: "learned", "none" for a flat SAE, or how it was inferred.
    rows: the vectors that features are compared by, "decoder" or, for a transcoder, "encoder".
    n_edges: edges of the forest, those from the root left out; n_judged: those whose child fired `min_count` times.
    """

    model: str
    site: str
    forest: str
    rows: str
    n_tokens: int
    n_features: int
    n_alive: int
    layer_sizes: tuple[int, ...]
    n_edges: int
    n_judged: int
    min_count: int


@dataclass(frozen=True)
class ContextCard(Card):
    """One of a feature's strongest activations, with the text around it.

    value: the activation; share: of the feature's strongest one.
    document: the name of the text; row: the token's place in the index's tokens.
    """

    value: float
    share: float
    passage: Passage
    document: str
    row: int


@dataclass(frozen=True)
class EdgeCard(Card):
    """A parent and one of its children.

    n_parent, n_child, n_both: tokens on which the parent, the child and both fire.
    p_child: how often the child fires where its parent does; p_parent: how often the parent where the child does, the
        coverage, which is 1 for every edge of a Tree SAE by construction.
    cos_child, cos_parent: cosine of the child's LDA direction with the decoder vectors of the two; rank_child,
        rank_parent: 1 for the nearest of all decoder vectors. s_res: the smaller cosine, the reconstruction score
        (Eq. 5) by LDA directions instead of the paper's probes.
    passes: both are among the nearest, the paper's criterion. A tree that was never trained meets it too.
    """

    parent: int
    child: int
    n_parent: int
    n_child: int
    n_both: int
    p_child: float | None
    p_parent: float | None
    cos_child: float | None
    cos_parent: float | None
    rank_child: int | None
    rank_parent: int | None
    s_res: float | None
    passes: bool | None
    null: dict[str, str]


@dataclass(frozen=True)
class FeatureCard(Card):
    """A feature: where it stands in the forest, how often it fires, and on what.

    depth: number of its ancestors; path: from the topmost of them down to the feature itself.
    edge: with its parent; None for a child of the root.
    density: share of the tokens on which it fires; alive: it fired at all. value_mean: over those tokens.
    contexts: its strongest activations, strongest first, the same text once only; tokens: what they are on.
    children: those that fired, the most frequent first; n_silent: how many did not.
    """

    id: int
    layer: int
    depth: int
    path: tuple[int, ...]
    edge: EdgeCard | None
    alive: bool
    n_fired: int
    density: float
    value_max: float | None
    value_mean: float | None
    label: str | None
    tokens: tuple[str, ...]
    contexts: tuple[ContextCard, ...]
    children: tuple[EdgeCard, ...]
    n_silent: int


@dataclass(frozen=True)
class FamilyCard(Card):
    """A parent with children that say something beside it.

    score: how telling it is (see `telling_families`); passing: the children by which it was chosen.
    children: all that fired often enough to be judged, the passing ones first.
    """

    parent: FeatureCard
    children: tuple[EdgeCard, ...]
    passing: tuple[int, ...]
    score: float


@dataclass(frozen=True)
class SearchResult(Card):
    """A feature that a search found.

    matched: where the query was found: in the feature's label, in a token it fires on, or in the text around one.
    context: the strongest of the feature's activations where it was found; None where that was its label.
    """

    query: str
    feature: int
    label: str | None
    matched: Matched
    context: ContextCard | None
