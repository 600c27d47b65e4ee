"""Features together with all below them, by a forest and by forests of the same shape with other parents.

Whatever is done to a feature may be done to its whole subtree. Only beside subtrees of equally many children, which
hang there by chance, does the outcome say anything about the forest: parents are shuffled among those that fire about
equally often (`structure.shuffled`), while the SAE and its codes stay as they are.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Int64
from numpy import ndarray as Array
from torch import Tensor

from ..structure.forest import ROOT, Forest
from ..structure.shuffled import shuffled_parents

#: Why there are no subtrees in a forest.
NO_EDGES = "the forest has no edges: every feature hangs from the root"
#: Why there are none in an SAE whose levels reconstruct alone.
NOTHING_BELOW = "no feature that takes part in the reconstruction has one below it"


def why_none(forest: Forest, usable: Bool[Array, "d_sae"]) -> str | None:
    """Why no subtree has more than its root; None if some has. usable: the features of which subtrees may consist."""
    above, below = forest.edges.numpy()
    if not len(below):
        return NO_EDGES
    return None if bool((usable[above] & usable[below]).any()) else NOTHING_BELOW


def with_shuffled(forest: Forest, fired: Int64[Tensor, "d_sae"], n: int) -> list[Forest]:
    """The forest, followed by `n` with shuffled parents. fired: how often each feature fires."""
    parents = [shuffled_parents(forest, fired, seed) for seed in range(n)]
    return [forest, *(Forest(parent, forest.layer_sizes, layered=forest.layered) for parent in parents)]


def with_all_below(forest: Forest, features: Bool[Array, "d_sae"]) -> Bool[Array, "d_sae"]:
    """Which features are among these, or below one of them."""
    found, has_parent = torch.from_numpy(features).clone(), forest.parent != ROOT
    for _ in range(int(forest.depth.max())):
        found[has_parent] |= found[forest.parent[has_parent]]
    return found.numpy()
