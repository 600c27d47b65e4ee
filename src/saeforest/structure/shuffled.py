"""A forest of the same shape with its parents shuffled: a null for whatever depends on who is whose parent."""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor

from ..seeds import seeded
from .forest import ROOT, Forest

#: Number of parents, neighbors by how often they fire, among which the parents of edges change places.
BLOCK = 16


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


def shuffled_parents(forest: Forest, fired: Int[Tensor, "d_sae"], seed: int = 0) -> Int[Tensor, "d_sae"]:
    """The parents of a forest, exchanged between edges that are alike.

    The edges from one layer to another are sorted by how often their parents fire, and cut into blocks of `BLOCK`
    parents. Within a block, parents are permuted at random among the edges. An edge that still has its parent then
    changes places with another, if that moves both. Every parent keeps its number of children in each layer, and every
    feature its layer or, in a forest without layers, its number of ancestors.

    fired: on how many activations each feature fires.
    """
    generator = seeded(seed, "nulls", "parents")
    layer = forest.level
    above, below = forest.edges
    found = forest.parent.clone()
    groups = layer[above] * (int(layer.max()) + 1) + layer[below]
    for group in groups.unique().tolist():
        edges = (groups == group).nonzero().flatten()
        parents = above[edges].unique()
        parents = parents[fired[parents].argsort(stable=True)]
        n_blocks = max(len(parents) // BLOCK, 1)
        place = torch.empty(forest.d_sae, dtype=torch.int64)
        place[parents] = torch.arange(len(parents)) * n_blocks // len(parents)
        for block in range(n_blocks):
            own = edges[place[above[edges]] == block]
            found[below[own]] = _deranged(above[own], generator)
    return found


def _deranged(parent: Int[Tensor, "e"], generator: torch.Generator) -> Int[Tensor, "e"]:
    """The parents in random order, as few as possible of them in their own place."""
    new = parent[torch.randperm(len(parent), generator=generator)]
    for e in (new == parent).nonzero().flatten().tolist():
        if new[e] != parent[e]:  # moved since, by another edge
            continue
        others = ((parent != new[e]) & (new != parent[e])).nonzero().flatten()
        if len(others):
            other = int(others[int(torch.randint(len(others), (1,), generator=generator))])
            new[e], new[other] = new[other].clone(), new[e].clone()
    return new
