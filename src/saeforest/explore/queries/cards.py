"""Cards: what is shown of a forest, as plain data: numbers and text without markup or tensors.

The terminal prints cards (`views/terminal.py`); `to_dict` converts them for JSON, so that a web page can show the same.
An undefined number is None, and `null` gives the reason.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from ...text.passages import Passage

Matched = Literal["label", "token", "text"]
#: Why the numbers of a column are high whatever the parent is: the SAE's gate, or the choice of the parents of an
#: inferred forest, which looked at them.
ForcedBy = Literal["gate", "choice"]


@dataclass(frozen=True)
class Card:
    """Base class of all cards."""

    def to_dict(self) -> dict[str, Any]:
        """The card as nested dicts, tuples, strings and numbers, ready for `json.dumps`."""
        return asdict(self)

    def _repr_html_(self) -> str | None:
        """What a notebook displays."""
        from ..views.notebook import card_html

        return card_html(self)


@dataclass(frozen=True)
class OverviewCard(Card):
    """An overview of the SAE and its forest.

    n_alive: number of features that fired on the `n_tokens` tokens.
    forest: where the forest comes from: "learned", "none" for a flat SAE, or how it was inferred.
    rows: vectors by which features are compared: "decoder" or, for a transcoder, "encoder".
    n_edges: number of edges of the forest, without those from the root.
    n_judged: number of edges whose child fired at least `min_count` times.
    n_placed: number of edges with a place among matched null pairs, by at least one column of the index.
    forced_by: the columns that are high whatever the parents are, and what makes them so: the "gate" of the SAE, or the
    "choice" of parents by them.
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
    n_placed: int
    forced_by: dict[str, ForcedBy]


@dataclass(frozen=True)
class ContextCard(Card):
    """One of a feature's strongest activations, with the text around it.

    value: the activation; share: its ratio to the feature's strongest activation.
    document: name of the document; row: the token's row in the index's tokens.
    """

    value: float
    share: float
    passage: Passage
    document: str
    row: int


@dataclass(frozen=True)
class EdgeCard(Card):
    """A parent and one of its children.

    n_parent, n_child, n_both: numbers of tokens on which the parent, the child and both fire.
    p_child: fraction of the parent's tokens on which the child fires.
    p_parent: fraction of the child's tokens on which the parent fires: the coverage, 1 by construction in a Tree SAE.
    cos_child, cos_parent: cosine between the child's LDA direction and the decoder vectors of the two.
    rank_child, rank_parent: ranks of these cosines among all decoder vectors; 1 is the nearest.
    s_res: the smaller cosine: the reconstruction score (Eq. 5) with LDA directions instead of the paper's probes.
    passes: whether both are among the nearest, the paper's criterion. An untrained tree meets it too.
    ungated: how often the parent is active where the child's own detector is on, which does not know of the parent.
    places: for each column of the index, such as `p_child`, `s_res` and `ungated`, the share of matched null pairs that
    the edge exceeds by it, ties half: 0.5 is chance. Columns by which the edge has no place are left out.
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
    ungated: float | None
    places: dict[str, float]
    null: dict[str, str]


@dataclass(frozen=True)
class FeatureCard(Card):
    """A feature: its position in the forest, how often it fires, and on what.

    depth: number of its ancestors; path: from the topmost ancestor down to the feature itself.
    edge: the edge from its parent; None for a root.
    alive: whether it fired; density: fraction of the tokens on which it fires; value_mean: mean over those tokens.
    contexts: its strongest activations, strongest first, without repeated text; tokens: the tokens they are on.
    children: edges to the children that fired, the most frequent first; n_silent: number of children that did not.
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
    """A parent with its children, chosen for display by `telling_families`.

    score: the score by which it was chosen; passing: the children that meet the paper's criterion.
    children: edges to all children that fired often enough, the passing ones first.
    """

    parent: FeatureCard
    children: tuple[EdgeCard, ...]
    passing: tuple[int, ...]
    score: float


@dataclass(frozen=True)
class SearchResult(Card):
    """A feature found by a search.

    matched: where the query was found: in the feature's label, in a token it fires on, or in the text around one.
    context: the strongest activation with the query in its context; None if it was found in the label.
    """

    query: str
    feature: int
    label: str | None
    matched: Matched
    context: ContextCard | None
