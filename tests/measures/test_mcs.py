"""Masked cosine similarity over a dictionary: against a slow oracle, by hand, and the specification's vectors."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import torch

from oracles import hierarchy as oracle
from oracles import pairs
from saeforest.errors import InputError
from saeforest.measures import mcs as mcs_module
from saeforest.measures.mcs import VARIANTS, MCSConfig, mcs
from saeforest.measures.record import Record
from saeforest.measures.subject import Subject
from saeforest.saes import TreeSAE
from saeforest.structure import pairs as pairs_module
from saeforest.structure.forest import Forest, flat_forest
from seen_cases import above_threshold, random_values, seen_of, tree_of

D_SAE, D = 14, 10
# Of these edges only 0 -> 6, 1 -> 9, 9 -> 10 and those from 3 have coverage 1.
FOREST = Forest(torch.tensor([-1, 3, 0, -1, 0, 2, 0, 3, 5, 1, 9, 3, 3, -1]), (D_SAE,), layered=False)


def random_case(seed: int) -> tuple[Subject, oracle.FloatArray, oracle.FloatArray]:
    decoder = torch.randn(D_SAE, D, generator=torch.Generator().manual_seed(seed))
    values = random_values(seed)
    sae = tree_of(flat_forest((D_SAE,)), decoder)
    return seen_of(sae, values, forest=FOREST), above_threshold(values), sae.W_dec.detach().double().numpy()


def by_hand(rows: list[list[float]], parent: list[int] | None = None) -> Subject:
    """Values of the features on every token; decoder rows at angles of 60 degrees."""
    values = torch.tensor(rows)
    angle = torch.arange(values.shape[1]) * math.pi / 3
    decoder = torch.stack([angle.cos(), angle.sin()], dim=1)
    sae = tree_of(flat_forest((values.shape[1],)), decoder)
    forest = None if parent is None else Forest(torch.tensor(parent), (len(parent),), layered=False)
    return seen_of(sae, values, forest=forest)


@pytest.mark.parametrize("min_count", [1, 15])
@pytest.mark.parametrize("seed", range(4))
def test_every_value_equals_the_oracle(seed: int, min_count: int) -> None:
    case, a, decoder = random_case(seed)
    record = mcs(case, MCSConfig(min_count))
    numbers = oracle.mcs(a, decoder, FOREST.parent.tolist(), min_count)
    assert record.value.keys() == {*numbers, "k_random"}
    for name, of in numbers.items():
        assert record.value[name] == pytest.approx(oracle.mean(of), abs=1e-6), name
    assert record.detail["children"] == len(numbers["coverage"])
    assert record.detail["edges"] == len(numbers["edges_coverage"]) > 5
    assert record.detail["pairs"] == {name: len(of) for name, of in numbers.items() if name.startswith("k_")}
    assert record.detail["pairs"]["k_all_pairs"] > record.detail["pairs"]["k_edges"] > 2
    assert record.tokens == len(a)
    for name, (child, score) in record.edge_scores.items():
        assert score.tolist() == pytest.approx(numbers[name], abs=1e-6), name
        assert child.tolist() == sorted(set(child.tolist()))
        edges = [(int(FOREST.parent[c]), c) for c in child.tolist()]
        if name == "edges_mcs_correlation":
            assert score.tolist() == pytest.approx([pairs.score("mcs_correlation", a, *e) for e in edges])
    assert record.edge_scores.keys() == {name for name in numbers if name.startswith(("edges_", "k_edges"))}


def test_intervals_are_of_resampled_children_and_of_the_edges_resampled_parents() -> None:
    case, a, decoder = random_case(0)
    record = mcs(case, MCSConfig(15))
    numbers = oracle.mcs(a, decoder, FOREST.parent.tolist(), 15)
    children = [c for c in range(D_SAE) if (a[:, c] > 0).sum() >= 15]
    resamples = np.random.default_rng(0).integers(len(children), size=(1000, len(children)))
    drawn = [np.mean([numbers["mcs_correlation"][i] for i in r]) for r in resamples]
    assert record.interval["mcs_correlation"] == pytest.approx(tuple(np.percentile(drawn, (2.5, 97.5))))

    parents = sorted({FOREST.parent[c].item() for c in children if FOREST.parent[c] >= 0})
    edges = [FOREST.parent[c].item() for c in children if FOREST.parent[c] >= 0]
    score = numbers["edges_coverage"]
    resamples = np.random.default_rng(0).integers(len(parents), size=(1000, len(parents)))
    drawn = [
        np.mean([s for i in r for p, s in zip(edges, score, strict=True) if p == parents[i]])
        for r in resamples
    ]
    assert record.interval["edges_coverage"] == pytest.approx(tuple(np.percentile(drawn, (2.5, 97.5))))
    assert record.interval["k_random"] is None


def test_coverage_by_hand() -> None:
    """docs/spec/test-vectors.md#coverage."""
    rows = [[1.0, 1.0, 0.0], [1.0, 0.0, 1.0], [0.0, 1.0, 0.0], [1.0, 1.0, 0.0]]
    record = mcs(by_hand(rows, [-1, 0, 0]), MCSConfig(min_count=1, parents=(0, 2), children=3))
    assert record.value["coverage"] == pytest.approx((2 / 3 + 2 / 3 + 1) / 3)
    assert record.value["edges_coverage"] == pytest.approx((2 / 3 + 1) / 2)
    # Only 2 never fires without 0; the rows of 0 and 2 are 120 degrees apart.
    assert record.detail["pairs"] == {
        "k_all_pairs": 1, "k_all_pairs_any": 1, "k_edges": 1, "k_all_pairs_98": 1, "k_edges_98": 1,
    }  # fmt: skip
    assert record.value["k_all_pairs"] == record.value["k_edges"] == pytest.approx(1 / 2)
    first, second = record.detail["top_children"]
    assert (first["parent"], first["n"]) == (0, 3)
    assert [(row["child"], row["n"]) for row in first["children"]] == [(2, 1), (1, 3)]
    assert [row["coverage"] for row in first["children"]] == [1, 2 / 3]
    assert [row["mcs_binary"] for row in first["children"]] == [1, (2 / 3) ** 0.5]
    assert [row["child"] for row in second["children"]] == [0]


def test_a_parent_that_misses_one_token_in_fifty_is_nearly_certain() -> None:
    """Features 1 and 2 fire on 50 tokens each; 0 misses one of those of 1, and two of those of 2."""
    rows = [[1.0, 1.0, 0.0]] * 49 + [[0.0, 1.0, 0.0]] + [[1.0, 0.0, 1.0]] * 48 + [[0.0, 0.0, 1.0]] * 2
    record = mcs(by_hand(rows, [-1, 0, 0]), MCSConfig(min_count=50))
    assert record.value["k_edges"] is record.value["k_all_pairs"] is None
    assert record.detail["pairs"]["k_edges_98"] == record.detail["pairs"]["k_all_pairs_98"] == 1
    assert record.value["k_edges_98"] == record.value["k_all_pairs_98"] == pytest.approx(1 / 2)


def test_correlation_by_hand() -> None:
    """docs/spec/test-vectors.md#mcs."""
    record = mcs(by_hand([[1.0, 1.0], [2.0, 1.0], [0.0, 2.0]], [-1, 0]), MCSConfig(min_count=1))
    assert record.value["edges_mcs_correlation"] == pytest.approx(3 / 30**0.5)
    assert record.value["mcs_correlation"] == pytest.approx((3 / 30**0.5 + 3 / 10**0.5) / 2)
    assert record.value["mcs_binary"] == pytest.approx(((2 / 3) ** 0.5 + 1) / 2)
    # The largest values are 2 and 2.
    assert record.value["mcs_binary_scaled"] == pytest.approx(((2 / 3) ** 0.5 + 1) / 4)


def test_listed_children_equal_the_oracle() -> None:
    case, a, _ = random_case(2)
    record = mcs(case, MCSConfig(min_count=15, parents=(3, 0), children=4))
    n = oracle.firings(a)
    assert [listed["parent"] for listed in record.detail["top_children"]] == [3, 0]
    for listed in record.detail["top_children"]:
        p = listed["parent"]
        candidates = [
            c for c in range(D_SAE) if c != p and n[c] >= 15 and oracle.score("coverage", a, p, c) > 0
        ]
        ranked = sorted(
            candidates, key=lambda c: (-np.float32(oracle.score("mcs_binary", a, p, c)), -n[c], c)
        )
        assert [row["child"] for row in listed["children"]] == ranked[:4]
        for row in listed["children"]:
            for kind in ("coverage", *VARIANTS):
                assert row[kind] == pytest.approx(oracle.score(kind, a, p, row["child"]))


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    case, _, _ = random_case(1)
    whole = mcs(case, MCSConfig(5))
    monkeypatch.setattr(pairs_module, "_BLOCK_ENTRIES", 3 * D_SAE)
    monkeypatch.setattr(mcs_module, "_PAIRS", 2)
    parts = mcs(case, MCSConfig(5))
    assert json.dumps(parts.to_json()) == json.dumps(whole.to_json())


@pytest.mark.parametrize(("d", "mean"), [(1, 1.0), (2, 2 / math.pi), (3, 0.5), (768, 0.0288)])
def test_cosine_of_random_directions(d: int, mean: float) -> None:
    case = seen_of(tree_of(flat_forest((2,)), torch.ones(2, d)), torch.zeros(3, 2))
    assert mcs(case, MCSConfig()).value["k_random"] == pytest.approx(mean, abs=1e-5)


def test_undefined_values_say_why() -> None:
    rows = [[1.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]
    flat = mcs(by_hand(rows), MCSConfig(min_count=1))
    no_pair = "no feature fires whenever another does"
    assert flat.null == {
        **{f"edges_{kind}": "the forest has no edges" for kind in ("coverage", *VARIANTS)},
        "k_edges": "the forest has no edges",
        "k_edges_98": "the forest has no edges",
        "k_all_pairs_98": "no feature fires on 98 % of another's tokens, of those that fired on 1 or more of the 3 "
        "measured tokens",
        "k_all_pairs": f"{no_pair}, of those that fired on 1 or more of the 3 measured tokens",
        "k_all_pairs_any": no_pair,
    }
    few = mcs(by_hand(rows), MCSConfig(min_count=3))
    why = "no feature fired on 3 or more of the 3 measured tokens: measure more text, or lower min_count"
    assert set(few.null) == set(few.value) - {"k_random"}
    assert {few.null[name] for name in few.null if name != "k_all_pairs_any"} == {why}
    rare = mcs(by_hand(rows, [-1, -1, 0]), MCSConfig(min_count=2))
    why = "the forest has no edge whose child fired on 2 or more of the 3 measured tokens"
    assert rare.null["edges_mcs_binary"] == why
    leaky = mcs(by_hand(rows, [-1, 0, -1]), MCSConfig(min_count=2))
    assert leaky.value["edges_coverage"] == 1 / 2
    assert leaky.null["k_edges"] == f"{why}, and whose parent fired on all of these"
    none = mcs(seen_of(tree_of(flat_forest((3,)), torch.eye(3)), torch.zeros(0, 3)), MCSConfig())
    assert set(none.null.values()) == {"no token was measured"}


def test_the_record_is_written_and_read(tmp_path: Any) -> None:
    record = mcs(random_case(0)[0], MCSConfig(15, parents=(0,)))
    record.write(tmp_path / "mcs.json")
    assert Record.read(tmp_path / "mcs.json").value == record.value
    assert record.unit_of("k_edges") == "cosine"
    assert record.unit_of("edges_coverage") == "fraction"
    assert record.unit_of("mcs_binary") == "score"


def test_a_tree_sae_without_coverage_1_is_an_error_of_ours() -> None:
    forest = Forest(torch.tensor([-1, 0]), (1, 1))
    sae = tree_of(forest, torch.eye(2), TreeSAE)
    mcs(seen_of(sae, torch.tensor([[1.0, 1.0], [1.0, 0.0]])), MCSConfig(1))
    with pytest.raises(RuntimeError, match=r"^mcs: coverage 1 on every edge of a Tree SAE must hold"):
        mcs(seen_of(sae, torch.tensor([[1.0, 1.0], [0.0, 1.0]])), MCSConfig(1))


def test_settings_out_of_range() -> None:
    with pytest.raises(InputError, match=r"^mcs.min_count = 0: expected 1 or more$"):
        MCSConfig(min_count=0)
    with pytest.raises(InputError, match=r"^mcs.children = 0: expected 1 or more$"):
        MCSConfig(children=0)
    with pytest.raises(InputError, match=r"^mcs.parents: feature 14: expected 0 to 13$"):
        mcs(random_case(0)[0], MCSConfig(parents=(0, 14)))
