"""A forest of the same shape with its parents shuffled: a null for whatever depends on who is whose parent."""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor

from .forest import ROOT, Forest


def shuffled_within_levels(forest: Forest, generator: torch.Generator) -> Int[Tensor, "d_sae"]:
    """The parents after shuffling them among the features of a layer, or of a depth if the forest is not layered.

    Features under the root stay there, and every parent keeps its number of children in each layer (at each depth), so
    the result is a forest of the same shape.

    Example:
        >>> forest = Forest(torch.tensor([-1, -1, 0, 0, 1]), (2, 3))
        >>> shuffled_within_levels(forest, torch.Generator().manual_seed(0)).sort().values.tolist()
        [-1, -1, 0, 0, 1]
    """
    level = forest.level
    parent = forest.parent.clone()
    for group in range(int(level.max()) + 1):
        children = ((level == group) & (parent != ROOT)).nonzero().flatten()
        order = torch.randperm(len(children), generator=generator)
        parent[children] = forest.parent[children[order]]
    return parent
