"""What was counted of the pairs of a parent and a child: the evidence that the columns of edges are functions of."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64, Int
from torch import Tensor

from ...saes import SAE
from ...structure.directions import Nearness
from ...structure.forest import ROOT


@dataclass(frozen=True, eq=False)
class Evidence:
    """One pair for each feature, as the child of `parent`; -1 is no pair.

    fired:    number of tokens on which each feature fires. together: number on which it and its parent fire.
    near:     cosines and ranks of its direction with the decoder rows of both.
    ungated, lift: of its own detector with the parent (docs/spec/hierarchy.md#ungated), NaN where undefined.
    tokens_alike: similarity of the tokens of the two, NaN where undefined.
    sibling_overlap: mean overlap with its siblings, NaN where it has none.
    """

    sae: SAE
    parent: Int[Tensor, "d_sae"]
    fired: Int[Tensor, "d_sae"]
    together: Int[Tensor, "d_sae"]
    near: Nearness
    ungated: Float64[Tensor, "d_sae"]
    lift: Float64[Tensor, "d_sae"]
    tokens_alike: Float64[Tensor, "d_sae"]
    sibling_overlap: Float64[Tensor, "d_sae"]

    @property
    def undefined(self) -> Float64[Tensor, "d_sae"]:
        """A column that is NaN everywhere."""
        return torch.full((len(self.parent),), torch.nan, dtype=torch.float64)

    def of_parent(self, of_features: Tensor) -> Tensor:
        """The number of each feature's parent; 0 for roots."""
        return torch.where(self.parent != ROOT, of_features[self.parent.clamp(min=0)], 0)

    def cosine(
        self, child: Float[Tensor, "d_sae d"], parent: Float[Tensor, "d_sae d"]
    ) -> Float64[Tensor, "d_sae"]:
        """The cosine of each feature's row of `child` with its parent's row of `parent`."""
        own = F.normalize(child.detach().cpu().double())
        above = F.normalize(parent.detach().cpu().double())
        cosine = (own * above[self.parent.clamp(min=0)]).sum(1)
        return torch.where(self.parent != ROOT, cosine, torch.nan)
