"""Answers to what a person asks and says: searches, prompts, notes, and ratings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..labels.annotations import Kind, Rating
from ..queries.contexts import Context

# -- search


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
