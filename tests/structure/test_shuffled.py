"""Which parents change places."""

from __future__ import annotations

from collections import Counter

import numpy as np
import torch

from saeforest.structure.forest import ROOT, Forest
from saeforest.structure.shuffled import BLOCK, shuffled_parents


def drawn_forest(sizes: tuple[int, ...]) -> Forest:
    """A forest with parents from all earlier layers, or none."""
    generator = torch.Generator().manual_seed(0)
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    layers = [
        torch.randint(-1, max(s, 1), (n,), generator=generator) for s, n in zip(starts, sizes, strict=True)
    ]
    return Forest(torch.cat([torch.full((sizes[0],), ROOT), *layers[1:]]), sizes)


def counts(n: int, seed: int = 2) -> torch.Tensor:
    return torch.randint(0, 50, (n,), generator=torch.Generator().manual_seed(seed))


def test_shuffled_parents_keep_layers_numbers_of_children_and_neighborhoods_of_density() -> None:
    forest, density = drawn_forest((40, 90, 200)), counts(330)
    new = shuffled_parents(forest, density)
    layer = forest.layer.tolist()
    old, drawn = forest.parent.tolist(), new.tolist()
    rank: dict[tuple[int, int, int], int] = {}
    for above in range(3):
        for below in range(3):
            parents = {
                p for p, i in zip(old, layer, strict=True) if p != ROOT and (layer[p], i) == (above, below)
            }
            for place, p in enumerate(sorted(parents, key=lambda p: (int(density[p]), p))):
                rank[above, below, p] = place
    moved = 0
    for i, (a, b) in enumerate(zip(old, drawn, strict=True)):
        assert (a == ROOT) == (b == ROOT)
        if a == ROOT:
            continue
        assert layer[a] == layer[b]
        group = layer[a], layer[i]
        # A block holds at most twice BLOCK - 1 parents, those that are neighbors in density.
        assert abs(rank[(*group, a)] - rank[(*group, b)]) < 2 * BLOCK
        moved += a != b
    edges = sum(p != ROOT for p in old)
    assert moved == edges  # no child of this forest needs to keep its parent
    of_layer = [Counter((p, layer[i]) for i, p in enumerate(parents)) for parents in (old, drawn)]
    assert of_layer[0] == of_layer[1]
    assert torch.equal(new, shuffled_parents(forest, density))
    assert not torch.equal(new, shuffled_parents(forest, density, seed=1))
    siblings = [
        {(a, b) for a in range(330) for b in range(a) if parents[a] == parents[b] != ROOT}
        for parents in (old, drawn)
    ]
    assert len(siblings[0] & siblings[1]) < 0.3 * len(siblings[0])  # families are broken up too


def test_a_forest_without_layers_keeps_its_depths() -> None:
    rng = np.random.default_rng(0)
    parent = torch.tensor([ROOT] * 20 + [int(rng.integers(-1, i)) for i in range(20, 200)])
    order = torch.from_numpy(rng.permutation(200))
    mixed = torch.full((200,), ROOT)
    mixed[order] = torch.where(parent == ROOT, ROOT, order[parent.clamp(min=0)])
    forest = Forest(mixed, (200,), layered=False)
    new = Forest(shuffled_parents(forest, counts(200)), (200,), layered=False)
    assert torch.equal(new.depth, forest.depth)
    assert torch.equal(new.n_children, forest.n_children)
    assert (new.parent != forest.parent).sum() > 100


def test_a_single_parent_keeps_its_children() -> None:
    forest = Forest(torch.tensor([ROOT, ROOT, 0, 0]), (2, 2))
    assert torch.equal(shuffled_parents(forest, torch.zeros(4).long()), forest.parent)
    two = Forest(torch.tensor([ROOT, ROOT, 0, 0, 0, 1]), (2, 4))
    new = shuffled_parents(two, torch.zeros(6).long()).tolist()
    assert new[5] == 0  # its parent is one of three equal ones, and someone else has its own
    assert sorted(new[2:]) == [0, 0, 0, 1]
