"""The columns of edges: what speaks for a parent and its child. One entry in `COLUMNS` adds a column everywhere.

A column is a function of `Evidence`, which holds what was counted of the pairs of a parent and a child, one for each
feature as the child. It is computed twice: for the edges of the forest, and for the null pairs, in which parents have
changed places with others of their layer that fire about as often (`evaluation/nulls.py`). Nothing is encoded anew: the
null pairs are looked at on the same activations.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch
from jaxtyping import Float64
from torch import Tensor

from ..index import ColumnAbout

if TYPE_CHECKING:
    from .evidence import Evidence


class Column(NamedTuple):
    """A column, and the function that computes it: of each feature with its parent, NaN where undefined."""

    about: ColumnAbout
    compute: Callable[[Evidence], Float64[Tensor, "d_sae"]]


def _ratio(part: Tensor, whole: Tensor) -> Float64[Tensor, "d_sae"]:
    """NaN where the whole is 0."""
    return part.double() / whole.double()


def _rank(rank: Tensor) -> Float64[Tensor, "d_sae"]:
    return torch.where(rank > 0, rank.double(), torch.nan)


# Which edges have a value (`ColumnAbout.defined`).
_DETECTED = "the child fires {min_count} times or more, and its own detector is on at least once in {n_detected} tokens"
_DIRECTED = "the child fires {min_count} times or more, but not on every token"

COLUMNS: tuple[Column, ...] = (
    Column(
        ColumnAbout(
            "ungated",
            "Coverage without the gate",
            "fraction",
            "How often the parent is active where the child's own detector, which does not know of the parent, is on: "
            "P(parent | child) by that detector.",
            higher_is_more=True,
            mechanical=False,
            chosen=True,
            defined=_DETECTED,
        ),
        lambda e: e.ungated,
    ),
    Column(
        ColumnAbout(
            "lift",
            "Lift without the gate",
            "log2",
            "How much more often than anywhere the parent is active where the child's own detector is on, as a power "
            "of two: 1 is twice as often, -1 half as often.",
            higher_is_more=True,
            mechanical=False,
            chosen=True,
            defined=_DETECTED,
        ),
        lambda e: e.lift,
    ),
    Column(
        ColumnAbout(
            "tokens_alike",
            "Tokens alike",
            "fraction",
            "How alike the tokens are on which the child's own detector is on, and those on which the parent fires "
            "without it: 1 minus the Jensen-Shannon divergence. 0 is no failure: a child may have tokens of its own.",
            higher_is_more=True,
            mechanical=False,
            defined="the child's own detector is on for {min_count} or more of {n_detected} tokens, and both its "
            "parent and that of its null pair fire on {min_count} or more others",
        ),
        lambda e: e.tokens_alike,
    ),
    Column(
        ColumnAbout(
            "cos_decoder",
            "Cosine of decoder rows",
            "cosine",
            "Cosine of the decoder rows of parent and child.",
            higher_is_more=True,
            mechanical=False,
        ),
        lambda e: e.cosine(e.sae.W_dec, e.sae.W_dec),
    ),
    Column(
        ColumnAbout(
            "cos_encoder",
            "Cosine of child's encoder and parent's decoder",
            "cosine",
            "Cosine of the child's encoder row and the parent's decoder row; undefined for a transcoder, where the two "
            "belong to different sites.",
            higher_is_more=True,
            mechanical=False,
        ),
        lambda e: e.cosine(e.sae.W_enc.T, e.sae.W_dec) if not e.sae.is_transcoder else e.undefined,
    ),
    Column(
        ColumnAbout(
            "coverage",
            "Coverage",
            "fraction",
            "How often the parent fires where the child fires, P(parent | child) (Eq. 4); 1 under a gate.",
            higher_is_more=True,
            mechanical=True,
            chosen=True,
            defined="the child fires",
        ),
        lambda e: _ratio(e.together, e.fired),
    ),
    Column(
        ColumnAbout(
            "p_child",
            "P(child | parent)",
            "fraction",
            "How often the child fires where the parent fires.",
            higher_is_more=True,
            mechanical=True,
            defined="the parent fires",
        ),
        lambda e: _ratio(e.together, e.of_parent(e.fired)),
    ),
    Column(
        ColumnAbout(
            "s_res",
            "S_res",
            "cosine",
            "Reconstruction score (Eq. 5), with LDA directions: the smaller cosine of the child's direction with the "
            "decoder rows of parent and child. Untrained trees have high ones too.",
            higher_is_more=True,
            mechanical=True,
            chosen=True,
            defined=_DIRECTED,
        ),
        lambda e: torch.minimum(e.near.cos_child, e.near.cos_parent).double(),
    ),
    Column(
        ColumnAbout(
            "rank_parent",
            "Rank of the parent",
            "rank",
            "Place of the parent's decoder row among all, by cosine with the child's direction; 1 is the nearest.",
            higher_is_more=False,
            mechanical=True,
            chosen=True,
            defined=_DIRECTED,
        ),
        lambda e: _rank(e.near.rank_parent),
    ),
    Column(
        ColumnAbout(
            "rank_child",
            "Rank of the child",
            "rank",
            "Place of the child's own decoder row among all, by cosine with its direction; 1 is the nearest.",
            higher_is_more=False,
            mechanical=False,
            of_pair=False,
            defined=_DIRECTED,
        ),
        lambda e: torch.where(e.near.rank_parent > 0, _rank(e.near.rank_child), torch.nan),
    ),
    Column(
        ColumnAbout(
            "sibling_overlap",
            "Overlap with siblings",
            "fraction",
            "Mean overlap (intersection over union of the tokens they fire on) with the siblings that fire.",
            higher_is_more=False,
            mechanical=True,
            defined="the child fires, and another child of its parent in its layer",
        ),
        lambda e: e.sibling_overlap,
    ),
)
