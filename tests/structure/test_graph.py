"""Graphs of features: every step of their inference against a slow oracle, and by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from oracles import graph as oracle
from saeforest.errors import InputError
from saeforest.sparse_code import SparseCode
from saeforest.structure import pairs as pairs_module
from saeforest.structure.forest import Forest
from saeforest.structure.graph import (
    EdgeEvidence,
    FeatureGraph,
    GraphRules,
    Shape,
    acyclic,
    graph_of,
    infer_graph,
    pruned,
    transitive_reduction,
)
from saeforest.structure.pairs import PairStatistics

D_SAE, THRESHOLD = 16, 1e-3


def nested_values(seed: int, n: int = 150) -> torch.Tensor:
    """Chains of features within features, with a few exceptions; the values of a child lean on its parent's."""
    rng = np.random.default_rng(seed)
    on = rng.random((n, D_SAE)) < 0.75
    value = 1 + rng.random((n, D_SAE))
    for c in range(4, D_SAE):
        for p in rng.choice(c, size=2, replace=False):
            on[:, c] &= on[:, p] | (rng.random(n) < 0.1)
            value[:, c] = 0.7 * value[:, p] + 0.3 * value[:, c]
    on[:, 11] = on[:, 5]  # a copy: neither is above the other
    on[:, 15] &= rng.random(n) < 0.05
    return torch.from_numpy(np.where(on, value, 0)).float()


def pairs_of(values: torch.Tensor) -> PairStatistics:
    n, d_sae = values.shape
    pairs = PairStatistics(d_sae, THRESHOLD)
    pairs.add(SparseCode(values, torch.arange(d_sae).expand(n, d_sae).contiguous()))
    return pairs


def listed(graph: FeatureGraph) -> oracle.Edges:
    return list(zip(graph.parent.tolist(), graph.child.tolist(), strict=True))


def by_child(edges: oracle.Edges) -> oracle.Edges:
    return sorted(edges, key=lambda edge: edge[::-1])


def random_dag(seed: int, d_sae: int = 12, share: float = 0.25) -> FeatureGraph:
    rng = np.random.default_rng(seed)
    name = rng.permutation(d_sae)  # so that parents are not always the lower numbers
    drawn = np.triu(rng.random((d_sae, d_sae)) < share, 1)
    parent, child = (torch.from_numpy(name[end]) for end in drawn.nonzero())
    return FeatureGraph(parent, child, d_sae)


@pytest.mark.parametrize("shape", ["dag", "tree"])
@pytest.mark.parametrize(
    ("kind", "above", "below"), [("weighted", 0.75, 0.75), ("conditional", 0.8, 0.95), ("mcs", 0.8, 0.75)]
)
@pytest.mark.parametrize("seed", [0, 1])
def test_inference_equals_the_oracle(
    seed: int, kind: EdgeEvidence, above: float, below: float, shape: Shape
) -> None:
    values = nested_values(seed)
    a = values.double().numpy()
    rules = GraphRules(kind, shape, above, below, max_children=0.2, min_descendants=2, min_count=8)
    found = infer_graph(pairs_of(values), rules)

    implied = oracle.implied(kind, a, above, below, 8)
    if shape == "tree":
        implied = oracle.strongest(kind, a, implied)
    one_way = oracle.without_cycles(implied)
    reduced = oracle.reduced(one_way)
    kept = oracle.pruned(reduced, D_SAE, 0.2, 2)
    assert listed(found.graph) == by_child(kept)
    assert found.steps == {
        "implied": len(implied),
        "acyclic": len(one_way),
        "reduced": len(reduced),
        "kept": len(kept),
    }
    assert len(reduced) > 2


def test_the_steps_do_something() -> None:
    """Otherwise the comparison with the oracle shows little."""
    steps = [
        infer_graph(pairs_of(nested_values(seed)), GraphRules("weighted", "dag", 0.75, 0.75, 0.2, 2, 8)).steps
        for seed in range(2)
    ]
    assert any(s["reduced"] < s["acyclic"] for s in steps)
    assert any(s["kept"] < s["reduced"] for s in steps)


@pytest.mark.parametrize("seed", range(6))
def test_reduction_pruning_and_depth_equal_the_oracle(seed: int) -> None:
    graph = random_dag(seed)
    edges = listed(graph)
    assert edges == by_child(edges)
    assert listed(transitive_reduction(graph)) == by_child(oracle.reduced(edges))
    assert graph.depth.tolist() == [oracle.depth(edges, f) for f in range(12)]
    for f in range(12):
        bits = {p for p in range(12) if graph.ancestors[f] >> p & 1}
        assert bits == {p for p in range(12) if oracle.reaches(edges, p, f)}
    for max_children, min_descendants in ((0.3, 1), (0.25, 4), (1, 6)):
        kept = oracle.pruned(edges, 12, max_children, min_descendants)
        assert listed(pruned(graph, max_children, min_descendants)) == by_child(kept)


@pytest.mark.parametrize("seed", range(4))
def test_edges_in_cycles_are_left_out(seed: int) -> None:
    rng = np.random.default_rng(seed)
    edges = sorted({(int(p), int(c)) for p, c in rng.integers(9, size=(14, 2)) if p != c})
    parent, child = torch.tensor(edges).T
    kept = [edge for edge, stays in zip(edges, acyclic(parent, child, 9).tolist(), strict=True) if stays]
    assert kept == oracle.without_cycles(edges)
    assert len(kept) < len(edges)
    with pytest.raises(ValueError, match="its own ancestor"):
        FeatureGraph(parent, child, 9)


def test_a_diamond_by_hand() -> None:
    """0 is above 1 and 2, which are both above 3; and 0 above 3 follows."""
    parent, child = torch.tensor([(0, 1), (0, 2), (1, 3), (2, 3), (0, 3)]).T
    graph = transitive_reduction(FeatureGraph(parent, child, 5))
    assert listed(graph) == [(0, 1), (0, 2), (1, 3), (2, 3)]
    assert graph.depth.tolist() == [0, 1, 1, 2, 0]


def test_a_forest_is_a_graph() -> None:
    forest = Forest(torch.tensor([-1, 3, 0, -1, 0]), (5,), layered=False)
    graph = graph_of(forest)
    assert listed(graph) == [(3, 1), (0, 2), (0, 4)]
    assert graph.families == {3: [1], 0: [2, 4]}
    assert graph.features.tolist() == [0, 1, 2, 3, 4]
    assert repr(graph) == "FeatureGraph(5 features, 3 edges between 5)"


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = pairs_of(nested_values(1))
    rules = GraphRules("weighted", "dag", 0.75, 0.75, 1, 1, 8)
    whole = infer_graph(pairs, rules)
    monkeypatch.setattr(pairs_module, "_BLOCK_ENTRIES", 3 * D_SAE)
    parts = infer_graph(pairs, rules)
    assert (listed(parts.graph), parts.steps) == (listed(whole.graph), whole.steps)


def test_a_part_of_the_tokens() -> None:
    values = nested_values(0)
    found, expected = pairs_of(values).part(40, 110), pairs_of(values[40:110])
    assert (found.n_tokens, found.n_firings) == (expected.n_tokens, expected.n_firings)
    for feature in range(D_SAE):
        for one, other in zip(found.firings(feature), expected.firings(feature), strict=True):
            assert torch.equal(one, other)
    assert pairs_of(values).part(150, 200).n_tokens == 0


def test_nothing_fires() -> None:
    found = infer_graph(pairs_of(torch.zeros(5, 4)), GraphRules())
    assert found.steps == {"implied": 0, "acyclic": 0, "reduced": 0, "kept": 0}
    assert found.graph.depth.tolist() == [0] * 4


def test_thresholds_by_default() -> None:
    assert (GraphRules().above, GraphRules().below) == (0.9, 0.9)
    assert (GraphRules("mcs").above, GraphRules("mcs", reverse=0.5).below) == (0.8, 0.5)
    assert GraphRules(threshold=0.7).below == 0.7


def test_rules_out_of_range() -> None:
    with pytest.raises(InputError, match=r"^graph.threshold = 1.5: expected a number from 0 to 1$"):
        GraphRules(threshold=1.5)
    with pytest.raises(InputError, match=r"^graph.max_children = 0: expected a fraction above 0, up to 1$"):
        GraphRules(max_children=0)
    with pytest.raises(InputError, match=r"^graph.min_descendants = 0: expected 1 or more$"):
        GraphRules(min_descendants=0)
