"""The measure `graph`: all values of forest and graph against a slow oracle, the groups of siblings, and by hand."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import torch

from oracles import graph as oracle
from oracles.pairs import FloatArray
from saeforest.measures import graph_families
from saeforest.measures.bootstrap import units_of_sae
from saeforest.measures.graph import SPEC, graph
from saeforest.measures.graph_families import sibling_cosines, swapped
from saeforest.measures.record import Record
from saeforest.measures.subject import Subject
from saeforest.structure.forest import Forest, flat_forest
from saeforest.structure.graph import FeatureGraph, GraphRules
from seen_cases import above_threshold, seen_of, tree_of

D_SAE, D = 14, 6
PARENT = [-1, -1, -1, 0, 0, 1, 0, 3, 3, 5, 5, 1, 13, -1]
FOREST = Forest(torch.tensor(PARENT), (D_SAE,), layered=False)
RULES = GraphRules("weighted", "dag", 0.8, max_children=1, min_descendants=1, min_count=12)


def values_of(seed: int, n: int = 240) -> torch.Tensor:
    """Children mostly within their parents in FOREST, and leaning on them; feature 12 is too rare to be measured."""
    rng = np.random.default_rng(seed)
    on = rng.random((n, D_SAE)) < 0.7
    value = 1 + rng.random((n, D_SAE)).round(1)  # with ties
    for c, p in enumerate(PARENT):
        if p >= 0:
            on[:, c] &= on[:, p] | (rng.random(n) < 0.15)
            value[:, c] += 0.5 * value[:, p] * on[:, p]
    on[:, 12] &= np.arange(n) < 9
    return torch.from_numpy(np.where(on, value, 0))


def case_of(seed: int) -> tuple[Subject, FloatArray, FloatArray]:
    decoder = torch.randn(D_SAE, D, generator=torch.Generator().manual_seed(seed))
    values = values_of(seed)
    sae = tree_of(flat_forest((D_SAE,)), decoder)
    return seen_of(sae, values, forest=FOREST), above_threshold(values), sae.W_dec.detach().double().numpy()


def mean(numbers: list[float]) -> float:
    """The mean of those that are defined; NaN if there are none."""
    defined = [x for x in numbers if math.isfinite(x)]
    return sum(defined) / len(defined) if defined else math.nan


def expected(a: FloatArray, decoder: FloatArray, edges: oracle.Edges) -> dict[str, float]:
    families = {p: [c for q, c in edges if q == p] for p, _ in edges}
    by_edge = [oracle.of_edge(a, p, c, families[p]) for p, c in edges]
    by_family = [oracle.of_family(a, p, family) for p, family in families.items()]
    nodes = sorted({f for edge in edges for f in edge})
    large = [family for family in families.values() if len(family) > 1]
    at = {f: i for i, f in enumerate(nodes)}
    nearest = [
        mean([oracle.most_alike(decoder[nodes], at[seed], len(family)) for seed in nodes]) for family in large
    ]
    depths = [oracle.depth(edges, f) for f in nodes]
    return {
        **{name: mean([one[name] for one in by_edge]) for name in by_edge[0]},
        **{name: mean([one[name] for one in by_family]) for name in by_family[0]},
        "sibling_cosine": mean([oracle.mean_cosine(decoder[family]) for family in large]),
        "sibling_random": oracle.mean_cosine(decoder[nodes]),
        "sibling_nearest": mean(nearest),
        "features": len(nodes),
        "edges": len(edges),
        "families": len(families),
        "children_per_parent": len(edges) / len(families),
        "parents_per_child": len(edges) / len({c for _, c in edges}),
        "depth": max(depths),
        "depth_mean": mean([float(d) for d in depths]),
    }


def measured(edges: oracle.Edges, a: FloatArray) -> oracle.Edges:
    n = (a > 0).sum(0)
    return [(p, c) for p, c in edges if min(n[p], n[c]) >= 12]


@pytest.mark.parametrize("seed", range(3))
def test_every_value_equals_the_oracle(seed: int) -> None:
    case, a, decoder = case_of(seed)
    record = graph(case, RULES)
    forest = measured([(p, c) for c, p in enumerate(PARENT) if p >= 0], a)
    half = len(a) // 2
    edges = oracle.reduced(oracle.without_cycles(oracle.implied("weighted", a[:half], 0.8, 0.8, 12)))
    assert sorted(map(tuple, record.detail["edges"])) == sorted(edges)
    again = measured(edges, a[half:])
    assert record.detail["steps"]["measured"] == len(again)
    assert len(forest) == 9
    assert len(again) > 4
    numbers = expected(a, decoder, forest)
    numbers |= {f"graph_{name}": number for name, number in expected(a[half:], decoder, again).items()}
    numbers["in_graph"] = mean([float(oracle.reaches(edges, p, c)) for p, c in forest])
    shuffled = {name for name in record.value if name.endswith("_shuffled")}
    assert record.value.keys() == numbers.keys() | shuffled
    for name, number in numbers.items():
        found = record.value[name]
        assert (math.nan if found is None else found) == pytest.approx(number, abs=1e-6, nan_ok=True), name
    assert sum(math.isnan(number) for number in numbers.values()) < 3


def test_the_graphs_null_keeps_parents_and_frequencies() -> None:
    case, a, _ = case_of(0)
    record = graph(case, RULES)
    a = a[len(a) // 2 :]
    n = torch.from_numpy((a > 0).sum(0))
    families: dict[int, list[int]] = {}
    for p, c in measured(record.detail["edges"], a):
        families.setdefault(p, []).append(c)
    null = swapped(families, n)
    edges = sorted((p, c) for p, family in null.items() for c in family)
    assert not set(edges) & set(map(tuple, record.detail["edges"]))
    numbers = [oracle.of_edge(a, p, c, list(null[p])) for p, c in edges]
    for name in ("p_parent_child", "spearman", "soft_absorption"):
        assert record.value[f"graph_{name}_shuffled"] == pytest.approx(mean([one[name] for one in numbers]))
    assert record.value["graph_p_parent_child"] > 0.8 > record.value["graph_p_parent_child_shuffled"]  # type: ignore[operator]

    # Every child is replaced by one of the few that fire about as often.
    many = {100 + i: list(range(i, 60, 6)) for i in range(6)}
    n = torch.arange(106)
    swaps = swapped(many, n, among=10)
    of = {c: p for p, family in many.items() for c in family}
    assert sum(map(len, swaps.values())) > 40
    for p, family in swaps.items():
        assert not set(family) & set(many[p])
        assert {c // 10 for c in family} <= {c // 10 for c in of if of[c] == p}
    assert swapped({3: [1], 1: [3]}, n) == {}  # swapped, each would be its own child


def test_intervals_resample_parents() -> None:
    case, a, _ = case_of(1)
    record = graph(case, RULES)
    forest = measured([(p, c) for c, p in enumerate(PARENT) if p >= 0], a)
    parents = sorted({p for p, _ in forest})
    share = [[(a[a[:, c] > 0, p] > 0).mean() for q, c in forest if q == p] for p in parents]
    resamples = np.random.default_rng(0).integers(len(parents), size=(1000, len(parents)))
    drawn = [np.mean([x for i in r for x in share[i]]) for r in resamples]
    assert record.interval["p_parent_child"] == pytest.approx(tuple(np.percentile(drawn, (2.5, 97.5))))
    assert record.interval["depth"] is None

    replicates = record.replicates["p_parent_child"]
    assert replicates.drawn == pytest.approx(drawn, rel=1e-5)
    assert replicates.units == units_of_sae("parents", case.sae, torch.tensor(parents))
    assert not any(name.startswith("graph_") for name in record.replicates)


def test_scores_of_edges() -> None:
    case, a, _ = case_of(1)
    record = graph(case, RULES)
    assert set(record.edge_scores) < set(SPEC.nulls)
    for name, found in record.edge_scores.items():
        edges = [(PARENT[c], c) for c in found.child.tolist()]
        families = {p: [c for c, q in enumerate(PARENT) if q == p and c != 12] for p, _ in edges}
        expected = [oracle.of_edge(a, p, c, families[p])[name] for p, c in edges]
        assert found.score.tolist() == pytest.approx(expected)
        # Some parents never fire alone, and have no value there to compare with.
        assert len(edges) == (6 if name == "soft_absorption" else 9), name


def test_soft_absorption_by_hand() -> None:
    """docs/spec/test-vectors.md#graph: the parent has 4 alone and 1 beside its child, whose value is 2."""
    rows = [[4.0, 0.0]] * 10 + [[1.0, 2.0]] * 10 + [[0.0, 2.0]] * 5
    forest = Forest(torch.tensor([-1, 0]), (1, 1))
    sae = tree_of(flat_forest((1, 1)), torch.eye(2))
    record = graph(seen_of(sae, torch.tensor(rows), forest=forest), GraphRules(min_count=1))
    assert record.value["soft_absorption"] == pytest.approx(3 / 4)
    assert record.value["p_parent_child"] == pytest.approx(10 / 15)
    assert record.value["coverage_by_children"] == pytest.approx(10 / 20)
    assert record.value["child_rate"] == pytest.approx(15 / 20)
    assert record.value["child_parent_ratio"] == pytest.approx(2)
    assert record.value["parent_larger"] == 0
    # Where both fire, the parent is always the same; where the child fires, only the child is.
    assert (
        record.null["pearson"] == record.null["spearman_max"] == "on fewer than 10 tokens, or always the same"
    )


def test_groups_of_nearest_features_are_drawn_where_there_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = torch.nn.functional.normalize(torch.randn(40, 5, generator=torch.Generator().manual_seed(0)))
    parent, child = torch.tensor([[20, 20, 20, 30, 30, 33], [1, 2, 3, 5, 6, 8]])
    monkeypatch.setattr(graph_families, "_SEEDS", 7)
    found = sibling_cosines(rows, FeatureGraph(parent, child, 40))
    drawn = np.random.default_rng(0).permutation(9)[:7]
    dense = rows[[1, 2, 3, 5, 6, 8, 20, 30, 33]].double().numpy()
    for place, size in ((0, 3), (1, 2)):
        assert found[place, 2] == pytest.approx(
            mean([oracle.most_alike(dense, s, size) for s in drawn.tolist()])
        )
    assert np.isnan(found[2]).all()


def test_undefined_values_say_why() -> None:
    sae = tree_of(flat_forest((3,)), torch.eye(3))
    record = graph(seen_of(sae, torch.ones(4, 3)), GraphRules(min_count=2))
    assert record.null["p_parent_child"] == record.null["depth_mean"] == "the forest has no edges"
    assert record.null["graph_mcs"].startswith("no edge is left in the graph: ")
    assert (record.value["edges"], record.value["graph_edges"], record.value["graph_depth"]) == (0, 0, 0)
    forest = Forest(torch.tensor([-1, 0, -1]), (3,), layered=False)
    rare = graph(seen_of(sae, torch.ones(4, 3), forest=forest), GraphRules(min_count=5))
    why = "the forest has no edge between two features that fire on 5 or more of the 4 measured tokens"
    assert rare.null["in_graph"] == why
    none = graph(seen_of(sae, torch.zeros(0, 3)), GraphRules())
    assert set(none.null.values()) == {"no token was measured"}


def test_units_and_declaration(tmp_path: Any) -> None:
    record = graph(case_of(0)[0], RULES)
    record.write(tmp_path / "graph.json")
    assert Record.read(tmp_path / "graph.json").value == record.value
    assert json.dumps(record.to_json())
    assert record.unit_of("graph_spearman_max_shuffled") == record.unit_of("pearson") == "correlation"
    assert record.unit_of("graph_mcs") == record.unit_of("sibling_nearest") == "cosine"
    assert record.unit_of("depth") == record.unit_of("graph_edges") == "edges"
    assert record.unit_of("graph_soft_absorption_shuffled") == "fraction"
    assert set(SPEC.nulls) < set(record.value)
