"""Learned edges compared with true ones (docs/spec/synthetic.md#edges).

`latent [m]` is the latent of each true feature, -1 for those that are not matched. Edges from the root are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from ..structure.forest import ROOT, Forest
from .trees import TreeSpec


@dataclass(frozen=True)
class EdgeScores:
    """Learned edges compared with true ones, both without edges from the root (docs/spec/synthetic.md#edges).

    Where a true feature has two parents, an edge from either is true, and recall asks for one of them: a learned
    forest has no room for both.
    """

    cosine: float
    """Minimum cosine at which a true feature counts as matched."""
    matched: int
    """Number of matched true features."""
    true_edges: int
    """Number of true edges, both of a feature with two parents."""
    learned_edges: int
    """Number of learned edges between live latents."""
    learned_matched: int
    """Number of learned edges between matched latents."""
    precision: float | None
    """Fraction of the learned edges between matched latents that are true."""
    precision_all: float | None
    """Fraction of the learned edges between live latents that are true; an edge to an unmatched latent is false."""
    recall: float | None
    """Fraction of the true features with a parent whose latent hangs from that of a true parent; an edge with an
    unmatched end is missed."""
    f1: float | None
    """F1 of `precision` and `recall`."""
    ancestor_precision: float | None
    """Like `precision`, for (ancestor, descendant) pairs: skipping a level costs nothing."""
    ancestor_recall: float | None
    """Fraction of all true (ancestor, descendant) pairs that were learned. Where features have two parents, a forest
    cannot learn them all."""
    ancestor_f1: float | None
    """F1 of `ancestor_precision` and `ancestor_recall`."""
    parent_accuracy: float | None
    """Fraction of the matched features with a true parent whose latent is a child of the latent of a true parent."""
    root_rate: float | None
    """Fraction of the matched features with a true parent whose latent is a root."""


#: Scores of edges whose names do not say so by themselves.
_OF_EDGES = ("precision", "precision_all", "recall", "f1", "cosine")


def named_scores(strict: EdgeScores, loose: EdgeScores) -> dict[str, float | None]:
    """Both by name: `edge_` in front where needed, and `_06` behind the scores with features matched at 0.6."""
    return {
        (f"edge_{name}" if name in _OF_EDGES else name) + suffix: value
        for suffix, scores in (("", strict), ("_06", loose))
        for name, value in asdict(scores).items()
    }


def edge_scores(
    truth: TreeSpec, learned: Forest, latent: Int[Tensor, "m"], alive: Bool[Tensor, "F"], cosine: float
) -> EdgeScores:
    """The scores of a learned forest, given the latents that features were matched with at `cosine` or more.

    alive: which latents fire on the sample.
    """
    matched = torch.zeros_like(alive)
    matched[latent[latent >= 0]] = True
    among_live = _within(learned.edges, alive)
    among_matched = _within(learned.edges, matched)
    hits = _shared(_both_known(latent[truth.edges]), among_matched, learned.d_sae)
    children = truth.edges[1].unique()
    precision, recall, f1 = _precision_recall_f1(hits, among_matched.shape[1], len(children))

    true_pairs, learned_pairs = (
        ancestor_pairs(truth.parents),
        _within(ancestor_pairs((learned.parent,)), matched),
    )
    ancestor_hits = _shared(_both_known(latent[true_pairs]), learned_pairs, learned.d_sae)
    ancestors = _precision_recall_f1(ancestor_hits, learned_pairs.shape[1], true_pairs.shape[1])

    of_children = latent[children]
    of_children = of_children[of_children >= 0]
    return EdgeScores(
        cosine=cosine,
        matched=int(matched.sum()),
        true_edges=truth.edges.shape[1],
        learned_edges=among_live.shape[1],
        learned_matched=among_matched.shape[1],
        precision=precision,
        precision_all=hits / among_live.shape[1] if among_live.shape[1] else None,
        recall=recall,
        f1=f1,
        ancestor_precision=ancestors[0],
        ancestor_recall=ancestors[1],
        ancestor_f1=ancestors[2],
        parent_accuracy=hits / len(of_children) if len(of_children) else None,
        root_rate=float((learned.parent[of_children] == ROOT).double().mean()) if len(of_children) else None,
    )


def ancestor_pairs(parents: Sequence[Int[Tensor, "m"]]) -> Int[Tensor, "2 pairs"]:
    """All (ancestor, descendant) pairs, each once, those with the root left out.

    parents: the parent of each feature, and a second one where there is one (-1: the root, or none).
    """
    features = torch.arange(len(parents[0]))
    above, below, found = features, features, []
    while len(above):
        above, below = torch.cat([p[above] for p in parents]), below.repeat(len(parents))
        above, below = above[above != ROOT], below[above != ROOT]
        found.append(below * len(features) + above)
    key = torch.cat(found).unique()
    return torch.stack([key % len(features), key // len(features)])


def _within(pairs: Int[Tensor, "2 a"], allowed: Bool[Tensor, "F"]) -> Int[Tensor, "2 b"]:
    return pairs[:, allowed[pairs].all(0)]


def _both_known(pairs: Int[Tensor, "2 a"]) -> Int[Tensor, "2 b"]:
    return pairs[:, (pairs >= 0).all(0)]


def _shared(a: Int[Tensor, "2 a"], b: Int[Tensor, "2 b"], width: int) -> int:
    """The number of pairs that occur in both."""
    return int(torch.isin(a[0] * width + a[1], b[0] * width + b[1]).sum())


def _precision_recall_f1(
    hits: int, learned: int, true: int
) -> tuple[float | None, float | None, float | None]:
    return (
        hits / learned if learned else None,
        hits / true if true else None,
        2 * hits / (learned + true) if true else None,
    )
