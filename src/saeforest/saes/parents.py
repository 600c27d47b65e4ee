"""The choice of a parent for each feature of an HSAE, among the features of the level above."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..structure.forest import ROOT


def choose_parents(
    similarity: Float[Tensor, "above below"], unassigned: float, max_children: int | None = None
) -> Int[Tensor, "below"]:
    """The most similar parent of every child; -1 for the fraction `unassigned` of children with the lowest similarity.

    A pair with similarity -inf is forbidden, and a child without any other has no parent. With `max_children`, pairs
    are taken in order of descending similarity as long as the parent has room. Ties go to the lower child, then to the
    lower parent (docs/spec/hsae.md#parents).
    """
    if max_children is None:
        best, parent = similarity.max(0)
        parent[best == -math.inf] = ROOT
    else:
        best, parent = _with_room(similarity, max_children)
    least = best.argsort(stable=True)[: math.floor(unassigned * len(best))]
    parent[least] = ROOT
    return parent


def _with_room(
    similarity: Float[Tensor, "above below"], max_children: int
) -> tuple[Float[Tensor, "below"], Int[Tensor, "below"]]:
    """Parents, and their similarity, if pairs are taken by descending similarity as long as the parent has room.

    Found by proposals: every child without a parent proposes to the most similar one that has not refused it, and a
    parent keeps the `max_children` most similar of those that proposed. Since parents and children rank by the same
    similarity, the result is that of taking the pairs in order.
    """
    n_above, n_below = similarity.shape
    parent = torch.full((n_below,), ROOT)
    refused = torch.zeros(n_above, n_below, dtype=torch.bool)
    asking = torch.arange(n_below)
    while len(asking):
        open_to = similarity[:, asking].masked_fill(refused[:, asking], -math.inf)
        best, wanted = open_to.max(0)
        asking, wanted = asking[best > -math.inf], wanted[best > -math.inf]
        parent[asking] = wanted
        placed = (parent != ROOT).nonzero().flatten()
        # Sort by parent, then by descending similarity, then by child; each parent keeps its first ones.
        placed = placed[similarity[parent[placed], placed].argsort(descending=True, stable=True)]
        placed = placed[parent[placed].argsort(stable=True)]
        of = parent[placed]
        rank = torch.arange(len(placed)) - torch.searchsorted(of, of)
        asking = placed[rank >= max_children]
        refused[parent[asking], asking] = True
        parent[asking] = ROOT
    alone = parent == ROOT
    best = similarity[parent.clamp(min=0), torch.arange(n_below)]
    return torch.where(alone, -math.inf, best), parent
