"""Closed top-k: one budget for a whole tree, spent on a set of features that is closed under parents.

A feature is a candidate if its pre-activation and those of all its ancestors are positive. Its score is its own
pre-activation, or half of the sum of that and the largest score among its children, whichever is larger: so a weak
parent can be taken for the sake of a strong child. No score exceeds the parent's, so the features of largest score form
a set that holds every member's parent (docs/spec/tree-sae.md#closed).

Source: a one-pass form of the tree-sparse projection of Baraniuk, Cevher, Duarte & Hegde, arXiv 0808.3572.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..kernels import closed_scores, top_positive
from ..kernels.plain import layer_of
from ..sparse_code import SparseCode, concat_slots
from ..structure.forest import ROOT, ByParent
from .by_layers import Encoded
from .encode import PreActivations
from .gate import Gate
from .select import kth_largest, largest


class Scored(NamedTuple):
    """The candidates of a closed selection."""

    code: SparseCode
    """The candidates with their pre-activations, layer after layer."""
    scores: Float[Tensor, "n c"]
    """Their scores; 0 in unused slots."""


@dataclass(frozen=True)
class ClosedSelection:
    """Chooses the features of largest score: `k` of a token, `k * n` of a batch, or all above a threshold."""

    gate: Gate
    groups: Sequence[ByParent]
    """The features of every layer, grouped by parent."""
    parent: Int[Tensor, "d_sae"]
    starts: tuple[int, ...]
    """The first feature of each layer, followed by the number of features."""
    k: int
    beam: float
    """Only the `beam * k` largest features of a layer are candidates."""
    floor: float
    """Pre-activations up to this count as not positive."""
    batch: bool = False
    """Choose the `k * n` candidates of largest score of the batch."""
    threshold: Float[Tensor, ""] | None = None
    """Choose all candidates of a larger score than this."""

    def __call__(self, h: PreActivations, u: Float[Tensor, "n d_in"], *, pull: bool = True) -> Encoded:
        """The chosen features of every token, with exact values and without gradients.

        pull: whether a feature may be chosen for the sake of a child.
        """
        found = self.scored(h, u, pull=pull)
        kept = self.kept(found)
        values, ids = torch.where(kept, found.code.values, 0), torch.where(kept, found.code.ids, 0)
        width = self.k
        if self.batch or self.threshold is not None:
            width = max(int(kept.sum(1).max()), 1) if len(kept) else 1
        code = largest([SparseCode(values, ids)], width)
        least = torch.where(kept, found.scores, torch.inf).min().reshape(1) if self.batch else None
        return Encoded(code, [u] * len(self.groups), least)

    def kept(self, found: Scored) -> Bool[Tensor, "n c"]:
        """Which candidates are chosen."""
        if self.threshold is not None:
            return found.scores > self.threshold
        return self.by_batch(found) if self.batch else self.by_token(found)

    @torch.no_grad()
    def scored(self, h: PreActivations, u: Float[Tensor, "n d_in"], *, pull: bool = True) -> Scored:
        """The candidates and their scores; without `pull`, no feature gains by its children."""
        active = torch.empty(len(u), 0, dtype=torch.int64, device=u.device)
        codes = []
        for features in self.groups:
            code = h.exact(u, self.gate(h, u, active, features, math.ceil(self.beam * self.k)))
            on = code.active(self.floor)
            active = torch.cat([active, torch.where(on, code.ids, ROOT)], dim=1)
            codes.append(SparseCode(torch.where(on, code.values, 0), torch.where(on, code.ids, 0)))
        code = concat_slots(codes)
        return Scored(code, closed_scores(code.values, code.ids, self.parent, len(codes) - 1, pull=pull))

    def by_token(self, found: Scored) -> Bool[Tensor, "n c"]:
        """The `k` candidates of largest score of every token. Equal scores: see `_first`."""
        scores = found.scores
        bound = top_positive(scores, min(self.k, scores.shape[1]))[0].amin(1, keepdim=True)
        kept, equal = scores > bound, (scores == bound) & (scores > 0)
        room = self.k - kept.sum(1)
        rows = (equal.sum(1) > room).nonzero().flatten()
        if len(rows):
            order = self._first(SparseCode(found.code.values[rows], found.code.ids[rows]), equal[rows])
            first = equal[rows].gather(1, order).cumsum(1) <= room[rows, None]
            equal[rows] &= torch.zeros_like(first).scatter_(1, order, first)
        return kept | equal

    def by_batch(self, found: Scored) -> Bool[Tensor, "n c"]:
        """The `k * n` candidates of largest score of the batch. Equal scores: see `_first`; then by row."""
        scores = found.scores
        positive, budget = scores[scores > 0], self.k * len(scores)
        if len(positive) <= budget:
            return scores > 0
        bound = kth_largest(positive, budget)
        kept, equal = scores > bound, scores == bound
        rows = equal.any(1).nonzero().flatten()
        order = self._first(SparseCode(found.code.values[rows], found.code.ids[rows]), equal[rows])
        ordered = equal[rows].gather(1, order)
        first = (ordered.flatten().cumsum(0) <= budget - kept.sum()).view_as(ordered) & ordered
        equal[rows] = torch.zeros_like(first).scatter_(1, order, first)
        return kept | equal

    def _first(self, code: SparseCode, equal: Bool[Tensor, "n c"]) -> Int[Tensor, "n c"]:
        """The order in which slots of equal score are chosen: earlier layers first, so that parents come before their
        children; within a layer larger pre-activations first, and then smaller ids. Other slots come last."""
        order = code.ids.argsort(dim=1, stable=True)
        order = order.gather(1, code.values.gather(1, order).argsort(dim=1, descending=True, stable=True))
        layer = torch.where(equal, layer_of(code.ids, self.starts), len(self.starts))
        return order.gather(1, layer.gather(1, order).argsort(dim=1, stable=True))
