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

from ..kernels import best_children, closed_best, closed_scores, kept_slots, kth_largest
from ..sparse_code import SparseCode, concat_slots
from ..structure.forest import ROOT, ByParent
from .by_layers import Encoded
from .encode import PreActivations
from .select import largest, top_k


class Scored(NamedTuple):
    """The candidates of a closed selection."""

    code: SparseCode
    """The candidates with their pre-activations, layer after layer."""
    scores: Float[Tensor, "n c"]
    """Their scores; 0 in unused slots."""


@dataclass(frozen=True)
class ClosedSelection:
    """Chooses the candidates of largest score: `k` of a token, `k * n` of a batch, or all above a threshold."""

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

    @torch.no_grad()
    def __call__(self, h: PreActivations, u: Float[Tensor, "n d_in"], *, pull: bool = True) -> Encoded:
        """The chosen features of every token, with exact values and without gradients.

        pull: whether a feature may be chosen for the sake of a child.
        """
        code, scores = self.scored(h, u, pull=pull)
        least = None
        if self.threshold is not None:
            code = _only(code, scores > self.threshold)
        elif self.batch:
            kept, least = self.of_batch(code, scores)
            code = _only(code, kept)
        else:
            slots, used = closed_best(scores, code.values, code.ids, self.starts, self.k)
            on = torch.arange(slots.shape[1], device=u.device) < used[:, None]
            values, ids = code.values.gather(1, slots), code.ids.gather(1, slots)
            code = SparseCode(torch.where(on, values, 0), torch.where(on, ids, 0))
        return Encoded(code, [u] * len(self.groups), least)

    @torch.no_grad()
    def scored(self, h: PreActivations, u: Float[Tensor, "n d_in"], *, pull: bool = True) -> Scored:
        """The candidates and their scores; without `pull`, no feature gains by its children."""
        width = math.ceil(self.beam * self.k)
        active = torch.empty(len(u), 0, dtype=torch.int64, device=u.device)
        codes = []
        for layer, features in enumerate(self.groups, 1):
            code = _best_of_layer(h, u, active, features, width)
            on = code.active(self.floor)
            codes.append(code.replace(values=torch.where(on, code.values, 0)))
            if layer < len(self.groups):
                active = torch.cat([active, torch.where(on, code.ids, ROOT)], dim=1)
        code = concat_slots(codes)
        return Scored(code, closed_scores(code.values, code.ids, self.parent, len(codes) - 1, pull=pull))

    def of_batch(
        self, code: SparseCode, scores: Float[Tensor, "n c"]
    ) -> tuple[Bool[Tensor, "n c"], Float[Tensor, "1"]]:
        """Which slots hold the `k * n` largest positive scores of the batch. Equal ones: by row, and then as in
        `plain.closed_best`, so that parents come before their children. And the smallest score among them."""
        budget = self.k * len(scores)
        bound = kth_largest(scores, budget)
        kept = scores > bound
        if bound == 0:  # fewer than that are positive
            return kept, torch.where(kept, scores, torch.inf).min().reshape(1)
        equal = scores == bound
        rows = equal.any(1).nonzero().flatten()  # few
        of_rows = torch.where(equal[rows], scores[rows], 0)
        slots, used = closed_best(of_rows, code.values[rows], code.ids[rows], self.starts, scores.shape[1])
        room = budget - kept.sum() - (used.cumsum(0) - used)
        first = torch.arange(slots.shape[1], device=slots.device) < torch.minimum(used, room)[:, None]
        # An additional last column is for unused slots.
        taken = torch.zeros(len(rows), scores.shape[1] + 1, dtype=torch.bool, device=slots.device)
        taken.scatter_(1, torch.where(first, slots, scores.shape[1]), True)
        kept[rows] |= taken[:, :-1]
        return kept, scores.new_tensor([bound])


def _best_of_layer(
    h: PreActivations,
    u: Float[Tensor, "n d_in"],
    active: Int[Tensor, "n a"],
    features: ByParent,
    width: int,
) -> SparseCode:
    """The `width` features of a layer with the largest exact pre-activations among those under active parents."""
    roots, below, first = features.roots, features.children, features.first
    codes = []
    if active.shape[1] and 0 < len(roots) <= width:
        # A few roots are cheapest as children of one more feature, which is active everywhere.
        active = torch.cat([active, active.new_full((len(u), 1), len(first) - 1)], dim=1)
        first = torch.cat([first, first[-1:] + len(roots)])
        roots, below = roots[:0], torch.cat([below, roots])
    if len(roots):
        codes.append(h.exact(u, h.choose(u, lambda dense: top_k(dense, width), roots)))
    if len(below) and active.shape[1]:
        k = min(width, len(below))
        codes.append(SparseCode(*best_children(u, h.encoder, active, first, below, k)))
    if sum(code.values.shape[1] for code in codes) > width:
        return largest(codes, width)
    if len(codes) == 1:
        return codes[0]
    return concat_slots([SparseCode(u.new_zeros(len(u), 0), roots.new_zeros(len(u), 0)), *codes])


def _only(code: SparseCode, kept: Bool[Tensor, "n c"]) -> SparseCode:
    """The entries that are kept, in as many slots as the fullest row needs."""
    return SparseCode(*kept_slots(code.values, code.ids, kept))
