"""The Hierarchy metric: against a slow oracle of the whole protocol, by hand, and on a planted hierarchy."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from oracles import hierarchy as oracle
from oracles.pairs import lda_direction
from saeforest.errors import InputError
from saeforest.measures import hierarchy_scores
from saeforest.measures.hierarchy import HierarchyConfig, hierarchy
from saeforest.measures.mcs import VARIANTS
from saeforest.measures.probes import ProbeConfig
from saeforest.measures.record import Record
from saeforest.measures.subject import Subject
from saeforest.saes import SAE, TopKConfig, TopKSAE, TreeSAE
from saeforest.structure.directions import RIDGE
from saeforest.structure.forest import Forest, flat_forest
from seen_cases import GivenProbes, above_threshold, random_values, seen_of, tree_of, with_decoder

D_SAE, D = 14, 10
FOREST = Forest(torch.tensor([-1, -1, -1, -1, 0, 0, 0, 0, 1, 1, 1, 2, 3, 2]), (4, 10))
SMALL = HierarchyConfig(
    parents=4, seeds=(0, 1, 2), dense_share=0.6, children=3, min_count=10, top=3, rank_curve=4
)
REFERENCE = replace(
    HierarchyConfig.reference(),
    parents=11,
    dense_share=0.6,
    children=3,
    min_count=20,
    top=3,
    rank_curve=4,
    variants=VARIANTS,
)
READINGS = {
    "recommended": SMALL,
    "reference": replace(REFERENCE, top_before_filter=5),
    "by index": replace(SMALL, order="index", min_count=25),
}


STRATA = (12, 30)


@pytest.fixture(autouse=True)
def few_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Strata for children that fire on a few dozen tokens."""
    monkeypatch.setattr(hierarchy_scores, "STRATA", STRATA)


def topk_of(decoder: Tensor) -> SAE:
    config = TopKConfig(layer_sizes=(len(decoder),), k_per_layer=(2,), normalize_activations="none")
    return with_decoder(TopKSAE(config, decoder.shape[1]), decoder)


def random_case(seed: int, kind: str = "tree") -> tuple[Subject, Tensor]:
    """Directions near decoder rows of child and parent, so that there are hits and misses."""
    generator = torch.Generator().manual_seed(seed)
    decoder, other = torch.randn(2, D_SAE, D, generator=generator)
    values = random_values(seed)
    directions = decoder + decoder[FOREST.parent.clamp(min=0)] + 1.2 * other
    x = values.float() @ directions + torch.randn(len(values), D, generator=generator)
    sae = tree_of(FOREST, decoder) if kind == "tree" else topk_of(decoder)
    forest = Forest(FOREST.parent, (D_SAE,), layered=False) if kind == "flat, inferred" else None
    return seen_of(sae, values, forest=forest, x=x, directions=directions), values


def wanted(
    case: Subject, values: Tensor, config: HierarchyConfig, record: Record
) -> tuple[oracle.Chosen, Any]:
    assert isinstance(case.probes, GivenProbes)
    a = above_threshold(values)
    draws = record.detail["parents"]["by_seed"]
    lda, difference = np.zeros((2, D_SAE, D))
    x = case.x.double().numpy()
    for c in range(D_SAE):
        on = a[:, c] > 0
        if 0 < on.sum() < len(a):
            lda[c] = lda_direction(x, on, RIDGE)
            difference[c] = x[on].mean(0) - x[~on].mean(0)
    chosen = oracle.choose(
        a,
        case.sae.W_dec.detach().double().numpy(),
        case.probes.table.double().numpy(),
        lda,
        difference,
        case.forest.parent.tolist(),
        sorted({p for draw in draws for p in draw}),
        own_tree=isinstance(case.sae, TreeSAE),
        **config.__dict__,
    )
    return chosen, draws


@pytest.mark.parametrize("kind", ["tree", "flat, inferred"])
@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize("seed", range(2))
def test_every_value_equals_the_oracle(seed: int, reading: str, kind: str) -> None:
    config = READINGS[reading]
    case, values = random_case(seed, kind)
    record = hierarchy(case, config)
    chosen, draws = wanted(case, values, config, record)
    once = dict.fromkeys(chosen["tree"], 1)
    found = oracle.values(chosen, draws, kind == "tree", once, STRATA, config.min_count)
    variants = {f"variant_{name}" for name in config.variants}
    assert record.value.keys() == found.keys() | variants
    for name, value in found.items():
        assert record.value[name] == (None if np.isnan(value) else pytest.approx(value, abs=1e-6)), name
    # Hardly any child fires on 25 to 29 tokens, so there the first stratum may be empty.
    assert record.value["mcs_unconditional_stratified"] is not None or config.min_count == 25
    assert 0 < found["mcs_unconditional"] < 1

    for i, draw in enumerate(draws):
        one = oracle.values(chosen, [draw], kind == "tree", once, STRATA, config.min_count)
        for name, by_seed in record.detail["by_seed"].items():
            assert by_seed[i] == pytest.approx(one[name], abs=1e-6)
        for name, count in record.detail["counts"].items():
            if name in variants and i:  # only of the first seed
                assert count.keys() == {"pairs", "parents"}
                assert len(count["pairs"]) == 1
                continue
            assert count["pairs"][i] == sum(len(chosen[name][p]) for p in draw)
            assert count["parents"][i] == sum(bool(chosen[name][p]) for p in draw)
    for name, curve in record.detail["curve"].items():
        best = oracle.best_first(chosen[f"{name}_unconditional"], once)
        assert curve[-1][0] == len(best)
        for n, precision in curve:
            assert precision == pytest.approx(oracle.mean([float(pair.hit) for pair in best[:n]]))
    for name, procedure in (("tree", "tree"), ("lda_mcs_unconditional", "mcs_unconditional")):
        pairs = [pair for draw in draws for p in draw for pair in chosen[procedure][p]]
        rare = sum(pair.n < STRATA[0] for pair in pairs)
        assert record.detail["strata_left_out"][name] == rare
        assert sum(stratum["pairs"] for stratum in record.detail["strata"][name]) == len(pairs) - rare
    scores = {
        "tree": ("tree", lambda pair: -pair.rank),
        "tree_unconditional": ("tree_unconditional", lambda pair: -pair.rank),
        "lda_tree": ("tree", lambda pair: -pair.lda_rank),
        "mean_tree": ("tree", lambda pair: -pair.mean_rank),
        "s_res_tree": ("tree", lambda pair: min(pair.cos_parent, pair.cos_child)),
    }
    assert record.edge_scores.keys() == scores.keys()
    for name, (procedure, score) in scores.items():
        expected = {pair.child: score(pair) for of in chosen[procedure].values() for pair in of}
        of_edges = dict(zip(*(part.tolist() for part in record.edge_scores[name]), strict=True))
        assert of_edges == pytest.approx(expected, abs=1e-6), name
        assert len(expected) > 3
    assert record.detail["tree_conditional"] == (kind == "tree")
    assert record.detail["error_rate_of"] == ("tree" if kind == "tree" else "mcs")


@pytest.mark.parametrize("reading", READINGS)
def test_figures_13_and_16_and_the_list_of_pairs_equal_the_oracle(reading: str) -> None:
    config = READINGS[reading]
    case, values = random_case(0)
    record = hierarchy(case, config)
    chosen, draws = wanted(case, values, config, record)
    first = sorted(set(draws[0]))
    resamples = np.random.default_rng(0).integers(len(first), size=(1000, len(first)))
    for kind in VARIANTS:

        def score(parents: list[int], of: Any = chosen[f"variant_{kind}"]) -> float:
            return oracle.mean([float(pair.hit) for p in parents for pair in of[p] * draws[0].count(p)])

        name = f"variant_{kind}"
        assert record.detail["counts"][name]["pairs"] == [sum(len(chosen[name][p]) for p in draws[0])]
        assert record.value[name] == pytest.approx(score(first))
        drawn = [v for r in resamples if np.isfinite(v := score([first[i] for i in r]))]
        if len(drawn) < 950:
            assert record.interval[name] is None
        else:
            assert record.interval[name] == pytest.approx(tuple(np.percentile(drawn, (2.5, 97.5))))
    full = [chosen["all_mcs"][p][:4] for p in sorted(set(draws[0])) if len(chosen["all_mcs"][p]) >= 4]
    curve = record.detail["rank_curve"]
    assert curve["parents"] == len(full) > 0
    for rank in range(4):
        column = [pairs[rank] for pairs in full]
        assert curve["cos_parent"][rank] == pytest.approx(
            oracle.mean([x.cos_parent for x in column]), abs=1e-6
        )
        assert curve["hit"][rank] == pytest.approx(oracle.mean([float(x.hit) for x in column]))

    listed = [
        (name, pair)
        for name in ("tree", "mcs_unconditional")
        for p in sorted(set(draws[0]))
        for pair in chosen[name][p]
    ]
    assert len(record.detail["pairs"]) == len(listed) > 5
    for row, (name, pair) in zip(record.detail["pairs"], listed, strict=True):
        assert (row["procedure"], row["parent"], row["child"], row["n"]) == (
            name,
            pair.parent,
            pair.child,
            pair.n,
        )
        assert (row["rank_parent"], row["rank_child"]) == (pair.rank_parent, pair.rank_child)
        assert row["coverage"] == pair.coverage
        for key in ("cos_parent", "cos_child"):
            assert row[key] == pytest.approx(getattr(pair, key), abs=1e-6)
        assert row["s_res"] == min(row["cos_parent"], row["cos_child"])


@pytest.mark.parametrize("reading", ["recommended", "reference"])
def test_intervals_are_of_resampled_parents(reading: str) -> None:
    """Every resample by hand: a parent that was drawn twice counts twice, with all its children."""
    case, values = random_case(1)
    record = hierarchy(case, READINGS[reading])
    chosen, draws = wanted(case, values, READINGS[reading], record)
    parents = sorted(chosen["tree"])
    resamples = np.random.default_rng(0).integers(len(parents), size=(1000, len(parents)))
    drawn = [
        oracle.values(
            chosen,
            draws,
            True,
            dict(zip(parents, np.bincount(r, minlength=len(parents)), strict=True)),
            STRATA,
            READINGS[reading].min_count,
        )
        for r in resamples
    ]
    for name, interval in record.interval.items():
        if name.startswith("variant_"):  # of the first seed\'s parents, tested above
            continue
        defined = [one[name] for one in drawn if np.isfinite(one[name])]
        if len(defined) < 950:
            assert interval is None
        else:
            assert interval == pytest.approx(tuple(np.percentile(defined, (2.5, 97.5))), abs=1e-6), name
    assert sum(interval is not None for interval in record.interval.values()) > 4


def test_samples_are_of_the_most_frequent_half() -> None:
    case, values = random_case(0)
    n = (above_threshold(values) > 0).sum(0)
    record = hierarchy(case, replace(SMALL, dense_share=0.5))
    candidates = sorted(range(D_SAE), key=lambda i: (-n[i], i))[:7]
    draws = record.detail["parents"]["by_seed"]
    assert record.detail["parents"]["candidates"] == 7
    assert all(len(set(draw)) == len(draw) == 4 and set(draw) <= set(candidates) for draw in draws)
    assert len({tuple(draw) for draw in draws}) > 1
    every = hierarchy(case, replace(SMALL, dense_share=0.5, parents=100)).detail["parents"]["by_seed"]
    assert every == [sorted(candidates)] * 3  # fewer than asked for: all
    draws = hierarchy(case, READINGS["reference"]).detail["parents"]["by_seed"]
    assert len(draws) == 1
    assert len(draws[0]) == 11 > len(set(draws[0]))


# ---- by hand


def by_hand(forest: Forest | None, sae: SAE | None = None) -> Subject:
    """Feature 0 with 4 (30 times), 2 (20) and 3 (12) within it, 1 with 5 (15); 6 and 7 never fire.

    The tree has 0 -> 2, 3. The concepts of 2, 3 and 5 lie between child and parent; that of 4 is its own row.
    """
    values = torch.zeros(200, 8)
    values[:90, 0] = values[100:150, 1] = 1
    values[:30, 4] = values[30:50, 2] = values[50:62, 3] = values[100:115, 5] = 1
    rows = torch.eye(8)
    directions = rows.clone()
    directions[[2, 3]] += rows[0]
    directions[5] += rows[1]
    directions[4] += 0.1 * rows[6] - 0.1 * rows[0]
    return seen_of(sae or tree_of(forest or flat_forest((2, 6)), rows), values, directions=directions)


HAND = HierarchyConfig(parents=9, seeds=(0, 1), dense_share=0.25, min_count=12, top=2, rank_curve=3)
HAND_TREE = Forest(torch.tensor([-1, -1, 0, 0, -1, -1, -1, 1]), (2, 6))


def test_the_tree_selects_parents_by_hand() -> None:
    value = hierarchy(by_hand(HAND_TREE), HAND).value
    assert value["tree"] == value["tree_unconditional"] == 1  # 0 -> 2, 3
    assert value["mcs"] == 1 / 2  # as many: 0 -> 4, 2
    assert value["mcs_unconditional"] == 3 / 4  # 0 -> 4, 2, 3 and 1 -> 5
    assert value["tree_parents_share"] == 1 / 2  # 7, the child of 1, never fires
    assert value["error_rate"] == 0
    assert value["mean_over_parents_mcs_unconditional"] == pytest.approx((2 / 3 + 1) / 2)
    # 4 fires on 30 tokens and misses; the others fire on fewer and hit.
    assert (value["mcs_stratified"], value["mcs_unconditional_stratified"]) == (1 / 2, 1 / 2)
    assert value["tree_stratified"] is None


def test_curves_by_hand() -> None:
    record = hierarchy(by_hand(HAND_TREE), HAND)
    detail = record.detail
    # Both seeds draw 0 and 1 alike, so each pair counts twice.
    assert detail["strata"]["mcs_unconditional"] == [
        {"from": 12, "below": 30, "pairs": 6, "score": 1},
        {"from": 30, "below": None, "pairs": 2, "score": 0},
    ]
    assert detail["strata"]["tree"] == [{"from": 12, "below": 30, "pairs": 4, "score": 1}]
    assert record.null["tree_stratified"].startswith("the pairs lack children of some frequency")
    # By n_c: 4 misses, 2, 5 and 3 hit. Points at 10^(i / 6), and all pairs.
    assert detail["curve"]["mcs"] == [[1, 0], [2, 1 / 2], [3, 2 / 3], [4, 3 / 4]]
    assert detail["curve"]["tree"] == [[1, 1], [2, 1]]
    assert detail["rank_curve"]["parents"] == 1
    assert detail["rank_curve"]["hit"] == [0, 1, 1]
    assert detail["rank_curve"]["cos_parent"] == pytest.approx([-0.1 / 1.02**0.5, 0.5**0.5, 0.5**0.5])


@pytest.mark.parametrize("sae", [None, topk_of(torch.eye(8))])
def test_without_edges_mcs_is_unconditional_and_the_tree_undefined(sae: SAE | None) -> None:
    record = hierarchy(by_hand(None, sae), HAND)
    assert record.value["mcs"] == record.value["mcs_unconditional"] == 3 / 4
    assert record.value["error_rate"] == 1 / 4
    none = {name for name, value in record.value.items() if value is None}
    assert none == {
        "tree", "tree_unconditional", "tree_parents_share",
        "mean_over_parents_tree", "s_res_tree", "lda_tree", "mean_tree", "tree_stratified", "lda_tree_stratified",
    }  # fmt: skip
    assert set(record.null.values()) == {"the forest has no edges"}
    assert record.detail["curve"]["tree"] == []
    assert {record.value[f"variant_{name}"] for name in VARIANTS} == {3 / 4}


def test_no_child_in_the_forest_of_a_sampled_parent() -> None:
    record = hierarchy(by_hand(Forest(torch.tensor([-1, -1, -1, -1, -1, -1, 0, 1]), (2, 6))), HAND)
    assert record.value["tree_parents_share"] == 0
    assert record.value["mcs_unconditional"] == 3 / 4
    measured = "12 or more, but not all, of the 200 measured tokens"
    for name in ("tree", "mcs", "error_rate"):
        assert record.value[name] is None
        assert record.null[name] == f"no sampled parent has a child in the forest that fired on {measured}"


def test_too_few_tokens() -> None:
    record = hierarchy(by_hand(HAND_TREE), HierarchyConfig(min_count=91))
    assert set(record.value.values()) == {None}
    assert set(record.null.values()) == {
        "no feature fired on 91 or more, but not all, of the 200 measured tokens: measure more text, or lower min_count"
    }
    assert record.value["variant_mcs_binary"] is None
    nothing = seen_of(tree_of(HAND_TREE, torch.eye(8)), torch.zeros(0, 8))
    record = hierarchy(nothing, HierarchyConfig())
    assert record.tokens == 0
    assert set(record.null.values()) == {"no token was measured"}


def test_a_child_that_always_fires_is_left_out() -> None:
    values = torch.zeros(50, 4)
    values[:, [0, 3]] = 1
    values[:20, 1] = 1
    forest = Forest(torch.tensor([-1, 0, 0, 0]), (1, 3))
    case = seen_of(tree_of(forest, torch.eye(4)), values)
    record = hierarchy(case, replace(HAND, min_count=1, dense_share=0.25, top=4))
    assert [(row["procedure"], row["child"]) for row in record.detail["pairs"]] == [
        ("tree", 1),
        ("mcs_unconditional", 1),
    ]


def test_a_rare_child_crowds_out_the_others_in_the_reference_reading() -> None:
    """docs/spec/hierarchy.md#filter-before-top."""
    values = torch.zeros(60, 4)
    values[:40, 0] = values[:20, 1] = 1
    values[3, 2] = values[4, 3] = 1
    values[41:43, 1] = 1  # coverage below 1
    case = seen_of(tree_of(flat_forest((1, 3)), torch.eye(4)), values)
    crowded = replace(HAND, filter_before_topk=False, top_before_filter=2, children=2, rank_curve=0)
    assert hierarchy(case, replace(crowded, filter_before_topk=True)).detail["counts"]["mcs"]["pairs"] == [
        1,
        1,
    ]
    record = hierarchy(case, crowded)
    assert record.detail["counts"]["mcs"]["pairs"] == [0, 0]
    assert record.null["mcs"].startswith(
        "no sampled parent fires together with another feature that fired on 12"
    )
    assert record.detail["rank_curve"] == {"parents": 0, "cos_parent": [], "hit": []}


# ---- a planted hierarchy

N_PARENTS, N_CHILDREN = 4, 3
PLANTED = torch.tensor([-1] * N_PARENTS + [p for p in range(N_PARENTS) for _ in range(N_CHILDREN)])


def planted(forest: Tensor = PLANTED, n: int = 3000, d: int = 48) -> Subject:
    """The ideal SAE: concepts made of their parent's direction and one of their own, and the code that has both."""
    generator = torch.Generator().manual_seed(0)
    d_sae = len(PLANTED)
    rows = torch.linalg.qr(torch.randn(d, d, generator=generator))[0][:d_sae]
    on = torch.rand(n, d_sae - N_PARENTS, generator=generator) < 0.06
    of_children = on * (1.5 + torch.rand(on.shape, generator=generator))
    of_parents = torch.stack(
        [of_children[:, PLANTED[N_PARENTS:] == p].sum(1) for p in range(N_PARENTS)], dim=1
    )
    values = torch.cat([of_parents, of_children], dim=1)
    x = values @ rows + 0.05 * torch.randn(n, d, generator=generator)
    sae = tree_of(Forest(forest, (N_PARENTS, d_sae - N_PARENTS)), rows)
    return seen_of(sae, values, x=x, probes=ProbeConfig(epochs=10, batch_size=500))


def test_a_planted_tree_is_hierarchical_and_a_shuffled_one_is_not() -> None:
    # Half of the 16 features is 8: the parents, and four children.
    config = HierarchyConfig(parents=8, seeds=(0,), top=2, rank_curve=0)
    true = hierarchy(planted(), config).value
    assert true["tree"] == true["mcs"] == true["lda_tree"] == true["mean_tree"] == 1
    assert true["error_rate"] == 0
    assert true["tree_parents_share"] == 1 / 2
    assert true["s_res_tree"] is not None
    assert true["s_res_tree"] > 0.3
    # Without the tree's help MCS names unrelated children too, of parents that have none above all.
    assert true["mcs_unconditional"] is not None
    assert true["mcs_unconditional"] < 0.6
    turned = torch.where(PLANTED >= 0, (PLANTED + 1) % N_PARENTS, -1)
    false = hierarchy(planted(turned), config).value
    assert false["tree"] == false["lda_tree"] == false["mean_tree"] == 0
    assert false["error_rate"] == 1
    assert false["mcs"] == 1  # MCS still finds the true children


def test_two_runs_agree_to_the_last_bit(tmp_path: Any) -> None:
    config = HierarchyConfig(parents=6, top=2)
    first, second = (json.dumps(hierarchy(planted(), config).to_json(), allow_nan=False) for _ in range(2))
    assert first == second
    record = hierarchy(planted(), config)
    record.write(tmp_path / "record.json")
    assert Record.read(tmp_path / "record.json").value == record.value


def test_all_children_are_given_directions_at_once() -> None:
    case, _ = random_case(0)
    assert isinstance(case.probes, GivenProbes)
    hierarchy(case, SMALL)
    assert case.probes.calls == 1


def test_a_tree_sae_without_coverage_1_is_an_error_of_ours() -> None:
    case = by_hand(
        None, tree_of(Forest(torch.tensor([-1, -1, 0, 0, 1, 1, 1, 1]), (2, 6)), torch.eye(8), TreeSAE)
    )
    with pytest.raises(RuntimeError, match=r"hierarchy: coverage 1 of every pair of a Tree SAE must hold"):
        hierarchy(case, HAND)
    hierarchy(by_hand(None, tree_of(HAND_TREE, torch.eye(8), TreeSAE)), HAND)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"parents": 0}, r"hierarchy.parents = 0: expected 1 or more"),
        ({"children": 21}, r"hierarchy.top_before_filter = 20: expected 21 or more"),
        ({"rank_curve": -1}, r"hierarchy.rank_curve = -1: expected 0 or more"),
        ({"dense_share": 0.0}, r"hierarchy.dense_share = 0.0: expected more than 0, at most 1"),
        ({"seeds": ()}, r"hierarchy.seeds = \(\): expected one or more"),
    ],
)
def test_settings_out_of_range(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"^{message}$"):
        HierarchyConfig(**wrong)


@pytest.mark.parametrize(
    ("name", "value", "known"),
    [
        ("sampling", "twice", "without, with"),
        ("order", "size", "frequency, index"),
        ("variants", ("coverage",), "mcs_binary, .*"),
    ],
)
def test_settings_of_an_unknown_name(name: str, value: Any, known: str) -> None:
    config = HierarchyConfig()
    object.__setattr__(config, name, value)  # the type checker of the tests would refuse it otherwise
    word = value if isinstance(value, str) else value[0]
    with pytest.raises(InputError, match=rf"^hierarchy\.{name} = '{word}': expected one of {known}$"):
        config.__post_init__()
