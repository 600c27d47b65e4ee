"""The answers of the JSON API, version 1: what `Api.get` returns, field by field (docs/explorer-api.md).

An undefined number is None. Text is data: its control characters are replaced by visible signs, but it may hold markup,
which a page must show and not obey. The JSON schema of these classes is docs/explorer-api.schema.json.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field, is_dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from .annotations import Kind, Rating

#: Version of the API: the first part of its address, and a field of `overview`.
API_VERSION = 1
Source = Literal["hand", "judge", "auto"]
"""Where a label comes from: a person, a judge, or the tokens by which the feature stands out."""


def plain(answer: Any) -> Any:
    """An answer as nested dicts, lists, strings and numbers, ready for `json.dumps`."""
    if is_dataclass(answer):
        return {name: plain(value) for name, value in vars(answer).items()}
    if isinstance(answer, Mapping):
        return {str(key): plain(value) for key, value in answer.items()}
    if isinstance(answer, list | tuple):
        # In lists of numbers or strings, which may be long, only the first is looked at.
        return (
            list(map(plain, answer))
            if answer and not isinstance(answer[0], str | int | float)
            else list(answer)
        )
    return answer


@dataclass(frozen=True)
class Array:
    """A tensor of numbers. NaN is an undefined number.

    data: the numbers in little-endian order, last dimension first, as base64.
    """

    dtype: Literal["float32", "int32", "uint8"]
    shape: tuple[int, ...]
    data: str

    @classmethod
    def of(cls, tensor: Tensor) -> Array:
        dtype: Literal["float32", "int32", "uint8"] = "float32"
        if tensor.dtype in (torch.bool, torch.uint8):
            dtype = "uint8"
        elif not tensor.is_floating_point():
            dtype = "int32"
        numbers = tensor.detach().cpu().to(getattr(torch, dtype)).contiguous().numpy()
        data = base64.b64encode(numbers.astype(numbers.dtype.newbyteorder("<")).tobytes()).decode()
        return cls(dtype, tuple(tensor.shape), data)


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
    n: number of edges with a value.
    """

    column: str
    title: str
    share: float
    chance: float
    auc: float | None
    n: int


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
    """What this explorer can answer. missing: for what it cannot, what to do, by the same names."""

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
    n_roots: int
    values: tuple[MeasuredValue, ...]
    beats: tuple[Beats, ...]
    families: tuple[FamilySummary, ...]
    has: Has
    writes: bool
    static: bool


# -- the whole


@dataclass(frozen=True)
class AboutColumn:
    """An edge column. mechanical: whether the SAE's gate brings high values about, whatever the parent is."""

    name: str
    title: str
    unit: str
    description: str
    higher_is_more: bool
    mechanical: bool
    format: Literal["share", "cosine", "log2", "rank", "number"]


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


# -- features


@dataclass(frozen=True)
class Context:
    """An activation with the text around it.

    value: the activation. row: row of its token in the indexed text.
    tokens: the text, in pieces of whole characters. values: the feature's activation on each of them.
    at: which of them the activation is on. child: the child that fires most strongly on each of them, -1 if none does;
    None if that was not asked for.
    """

    document: str
    row: int
    value: float
    tokens: tuple[str, ...]
    values: tuple[float, ...]
    at: int
    child: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Named:
    """A feature by number and label."""

    id: int
    label: str | None


@dataclass(frozen=True)
class EdgeColumn:
    """A column of one edge. place: the share of matched null pairs that it exceeds, ties half; 0.5 is chance."""

    name: str
    title: str
    unit: str
    description: str
    higher_is_more: bool
    mechanical: bool
    format: Literal["share", "cosine", "log2", "rank", "number"]
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
    """A child of a feature. p_child: P(child | parent). ungated: P(parent | child) without the gate; place: its place
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
    """Overlap of siblings: the tokens on which both fire, as a share of those on which either does."""

    ids: tuple[int, ...]
    matrix: Array


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
    which runs the model.
    """

    parent: Summary
    children: tuple[FamilyChild, ...]
    n_silent: int
    contexts: tuple[Context, ...]
    residue: tuple[Context, ...]
    overlap: Overlap | None
    ungated: tuple[Ungated, ...]


@dataclass(frozen=True)
class TreeDataAnswer:
    """`tree-data/ID`: the children of a feature in the forest, and by the data.

    The data agree with a child if the feature is active on at least `least` of the tokens on which the child's own
    detector is on, without the gate. data_only: features outside its subtree of which the same is true of firings.
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


# -- search, training, other SAEs


@dataclass(frozen=True)
class Found:
    """A feature that a search found. context: one with the query; None if that is in the label."""

    id: int
    label: str | None
    matched: Literal["label", "token", "text"]
    context: Context | None


@dataclass(frozen=True)
class SearchAnswer:
    """`search`: at most as many results as were asked for. truncated: whether there may be more, because of that or
    because a regular expression took too long (`note` then says so)."""

    query: str
    results: tuple[Found, ...]
    truncated: bool
    note: str = ""


@dataclass(frozen=True)
class LayerSeries:
    """Values by step and layer. dead_share: fraction of the layer's features that are dead."""

    dead_share: tuple[tuple[float, ...], ...]
    l0: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class TrainingAnswer:
    """`training`: the run's log. series: by name, a value for each step. moves: the events of the log."""

    steps: tuple[int, ...]
    series: dict[str, tuple[float | None, ...]]
    layers: LayerSeries
    moves: tuple[dict[str, Any], ...]


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
class CompareAnswer:
    """`compare?other=NAME`: features matched with those of another SAE that have the nearest decoder rows.

    matched_share: fraction of the features with a cosine of at least `threshold`. parents_share: of those whose two
    parents exist, the fraction whose parents are a pair too. null: the same where the other SAE's decoder rows are
    random directions, and its parents shuffled.
    """

    other: str
    threshold: float
    matched_share: float
    mean_cos: float
    parents_share: float | None
    pairs: tuple[Pair, ...]
    null: dict[str, float | None]


# -- a prompt


@dataclass(frozen=True)
class Step:
    """A feature on a path, with its activation."""

    id: int
    label: str | None
    value: float


@dataclass(frozen=True)
class Prediction:
    """A token and its probability to come next."""

    token: str
    p: float


@dataclass(frozen=True)
class Position:
    """One token of a prompt.

    paths: for each active feature without an active child, the path to it from the topmost ancestor.
    errors: fraction of the activation (its squared distance from the SAE's bias) that is not yet reconstructed: by no
    layer, by the first, by the first two and so on. clean, spliced: what the model predicts next, by itself and with
    the reconstruction in place of the activation.
    """

    paths: tuple[tuple[Step, ...], ...]
    errors: tuple[float | None, ...]
    clean: tuple[Prediction, ...]
    spliced: tuple[Prediction, ...]


@dataclass(frozen=True)
class PromptAnswer:
    """`prompt`: a text, token by token. tokens and per_token have one entry for each token."""

    tokens: tuple[str, ...]
    per_token: tuple[Position, ...]
    layers: int


# -- annotations


@dataclass(frozen=True)
class NoteAnswer:
    """What a person noted about a feature."""

    label: str | None
    note: str | None
    bookmark: bool


@dataclass(frozen=True)
class RatingAnswer:
    """A person's rating of an edge."""

    rating: Rating | None
    blind: bool


@dataclass(frozen=True)
class AnnotationsAnswer:
    """`annotations`: all notes by feature, and the ratings of edges by child."""

    annotations: dict[str, NoteAnswer]
    ratings: dict[str, RatingAnswer]


@dataclass(frozen=True)
class Hidden:
    """A feature of a pair that is rated blindly."""

    label: None
    tokens: tuple[str, ...]
    contexts: tuple[Context, ...]


@dataclass(frozen=True)
class BlindPair:
    """`blind/next`: an edge or a null pair. id: to rate it with."""

    id: str
    parent: Hidden
    child: Hidden


@dataclass(frozen=True)
class BlindResult:
    """`blind/rate`: what the pair was."""

    was: Kind
    parent: int
    child: int


@dataclass(frozen=True)
class Tally:
    """`blind/tally`: number of blind ratings by what the pair was."""

    edge: dict[Rating, int]
    null: dict[Rating, int]


@dataclass(frozen=True)
class ErrorAnswer:
    """Any answer with a status of 400 or more. error: one line."""

    error: str


#: The answers by path. ID and CHILD stand for the number of a feature.
ANSWERS: dict[str, type] = {
    "GET overview": OverviewAnswer,
    "GET forest": ForestAnswer,
    "GET labels": LabelsAnswer,
    "GET nulls": NullsAnswer,
    "GET feature/ID": FeatureAnswer,
    "GET edge/CHILD": EdgeAnswer,
    "GET family/ID": FamilyAnswer,
    "GET ungated/ID": UngatedAnswer,
    "GET tree-data/ID": TreeDataAnswer,
    "GET geometry/ID": GeometryAnswer,
    "GET search": SearchAnswer,
    "GET training": TrainingAnswer,
    "GET compare": CompareAnswer,
    "GET compare (without other)": RunsAnswer,
    "POST prompt": PromptAnswer,
    "GET annotations": AnnotationsAnswer,
    "PUT annotations/ID": NoteAnswer,
    "PUT rating/CHILD": RatingAnswer,
    "POST blind/next": BlindPair,
    "POST blind/rate": BlindResult,
    "GET blind/tally": Tally,
}
