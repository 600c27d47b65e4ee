"""A Tree SAE that earns its edges learns a small known tree."""

from __future__ import annotations

from functools import partial

from saeforest.worlds.config import SyntheticConfig
from saeforest.worlds.generators import tree
from saeforest.worlds.run import compare


def test_it_learns_a_small_known_tree() -> None:
    """4 roots and 12 children: it finds most of both and their edges, though no feature has a parent at the start. Not
    every seed comes as far in so few steps."""
    world = partial(tree, depth=2, branching=3, roots=4, p_root=0.15, p_child=0.25, d=16)
    config = SyntheticConfig(steps=250, batch_size=256, lr=1e-2, held_out=2_000)
    found = compare(world, [1], ["tree-earned"], config)["tree-earned"]
    score = {name: both["median"] for name, both in found.items()}
    assert score["matched"] >= 14
    assert score["edge_f1"] >= 0.85
    assert score["edge_f1"] > score["edge_f1_shuffled"] + 0.4
    assert score["edge_f1_untrained"] == 0
