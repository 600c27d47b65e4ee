"""Which feature of the level above each feature of an HSAE hangs from."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..structure.forest import ROOT


def choose_parents(
    similarity: Float[Tensor, "above below"], unassigned: float, max_children: int | None = None
) -> Int[Tensor, "below"]:
    """For every child its most similar parent, -1 for the `unassigned` share that is least similar to any.

    With `max_children`, pairs are taken by descending similarity as long as the parent has room. Ties go to the lower
    child, then to the lower parent (docs/spec/hsae.md#parents).
    """
    if max_children is None:
        best, parent = similarity.max(0)
    else:
        best, parent = _with_room(similarity, max_children)
    least = best.argsort(stable=True)[: math.floor(unassigned * len(best))]
    parent[least] = ROOT
    return parent


def _with_room(
    similarity: Float[Tensor, "above below"], max_children: int
) -> tuple[Float[Tensor, "below"], Int[Tensor, "below"]]:
    """Pairs by descending similarity, as long as the parent has room.

    Found by proposals: every child without a parent asks the most similar one that might still take it, and a parent
    keeps the most similar `max_children` of those who asked. Both sides rank by one similarity, so it ends the same.
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
        # By parent, then by descending similarity, then by child: the first of each parent stay.
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
