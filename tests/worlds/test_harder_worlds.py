"""Worlds that are less favorable, and the nulls that stand beside every score of a tree."""

from __future__ import annotations

import itertools
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import saeforest
from oracles import recovery as oracle
from saeforest.errors import InputError
from saeforest.saes import RunLength, start_training
from saeforest.sparse_code import SparseCode
from saeforest.structure.forest import ROOT, Forest, flat_forest
from saeforest.worlds import GENERATORS, Recovery, Sample, TreeSpec, World, recover, sample_code
from saeforest.worlds.config import SyntheticConfig
from saeforest.worlds.edges import ancestor_pairs
from saeforest.worlds.generators import settings_of, synth_bench, tree
from saeforest.worlds.nulls import NULLED, SHUFFLES, shuffles
from saeforest.worlds.presets import SYSTEM_NAMES, system_for
from saeforest.worlds.run import _trained, compare, layer_l0

N = 10_000


def small(**settings: Any) -> World:
    return tree(**{"roots": 3, "branching": 2, "d": 24, "p_root": 0.3, "p_child": 0.4, **settings})


def parents_of(world: World) -> list[set[int]]:
    return [{int(p[g]) for p in world.spec.parents if p[g] != ROOT} for g in range(world.m)]


def above(world: World, feature: int) -> set[int]:
    found: set[int] = set()
    for parent in parents_of(world)[feature]:
        found |= {parent} | above(world, parent)
    return found


# -- two parents


def test_half_of_the_features_below_the_roots_have_a_second_parent_in_another_tree() -> None:
    world = tree(two_parents=0.5)
    forest, (first, second) = world.forest, world.spec.parents
    has = second != ROOT
    assert [int(has[forest.layer == level].sum()) for level in range(3)] == [0, 16, 64]
    for feature in has.nonzero().flatten().tolist():
        other = int(second[feature])
        assert forest.depth[other] == forest.depth[feature] - 1
        assert forest.path(other)[0] != forest.path(feature)[0]
    assert world.spec.edges.shape[1] == 160 + 80
    assert len(second[has].unique()) > 20
    plain = tree()
    assert torch.equal(first, plain.forest.parent)
    assert torch.equal(world.vectors, plain.vectors)


def test_both_parents_fire_where_their_child_does_and_all_that_is_above() -> None:
    world = small(two_parents=0.5)
    on = world.held_out(N).code.dense(world.m) > 0
    for feature in range(world.m):
        for higher in above(world, feature):
            assert not bool((on[:, feature] & ~on[:, higher]).any())
    # Nothing fires for another reason: without what was drawn in, it is the sample of the plain tree.
    plain = small().held_out(N).code.dense(world.m) > 0
    closed = plain.clone()
    for feature in reversed(range(world.m)):
        for higher in above(world, feature):
            closed[:, higher] |= plain[:, feature]
    assert torch.equal(on, closed)
    rates = on.double().mean(0)
    drawn_in = {p for g in range(world.m) for p in above(world, g) if p not in world.forest.ancestors(g)}
    for feature in range(world.m):
        assert (rates[feature] > plain[:, feature].double().mean()) == (feature in drawn_in)


def test_what_is_drawn_in_has_magnitudes_as_any_other() -> None:
    world = small(two_parents=1.0, magnitude_mean=3.0, magnitude_std=0.5)
    values = world.held_out(N).code.values
    fired = values[values != 0]
    assert float(fired.mean()) == pytest.approx(3.0, abs=0.02)
    assert float(fired.std()) == pytest.approx(0.5, abs=0.02)


def test_children_lean_on_both_parents() -> None:
    world, straight = small(two_parents=0.5, parent_offset=0.5), small()
    for feature, parents in enumerate(parents_of(world)):
        lean = sum((world.vectors[p] for p in parents), torch.zeros(24))
        expected = torch.nn.functional.normalize(straight.vectors[feature] + 0.5 * lean, dim=0)
        torch.testing.assert_close(world.vectors[feature], expected)


def test_every_pair_of_an_ancestor_and_a_descendant_is_found_once() -> None:
    world = small(two_parents=0.5, depth=4)
    found = ancestor_pairs(world.spec.parents)
    pairs = {(int(a), int(b)) for a, b in found.T}
    assert len(pairs) == found.shape[1]
    assert pairs == {(higher, g) for g in range(world.m) for higher in above(world, g)}


@pytest.mark.parametrize(
    ("second", "says"),
    [
        ([-1, -1, -1, 3], "second parent 3 of feature 3"),
        ([-1, -1, 0, 1], "second parent 0 of feature 2"),
        ([-1, 0, -1, -1], "second parent 0 of feature 1"),
        ([-1, -1, 9, -1], "second parent 9 of feature 2: expected -1"),
    ],
    ids=["itself", "its parent", "of a root", "no feature"],
)
def test_second_parents_that_cannot_be_are_refused(second: list[int], says: str) -> None:
    forest = Forest(torch.tensor([ROOT, ROOT, 0, 0]), (2, 2))
    with pytest.raises(InputError, match=says):
        TreeSpec(forest, torch.full((4,), 0.1), torch.ones(4), torch.zeros(4), second=torch.tensor(second))


def test_worlds_that_cannot_have_second_parents_are_refused() -> None:
    with pytest.raises(InputError, match=r"two_parents = 1\.5: expected 0 to 1"):
        tree(two_parents=1.5)
    with pytest.raises(InputError, match="two roots or more"):
        tree(two_parents=0.5, roots=1)
    spec = synth_bench(features=20, d=8, trees=2, branching=2, depth=1).spec
    with pytest.raises(InputError, match="do not scale"):
        replace(spec, second=torch.full((20,), ROOT))


# -- the other worlds


def test_overlapping_siblings_fire_together_and_leaning_children_lean() -> None:
    world = GENERATORS["tree-overlapping"](roots=3, p_child=0.4)
    on = (world.held_out(4000).code.dense(world.m) > 0).int()
    assert max(int(on[:, world.forest.children(g)].sum(1).max()) for g in range(world.m)) >= 3
    leaning = GENERATORS["tree-leaning"](seed=2, roots=3)
    assert torch.equal(leaning.vectors, tree(seed=2, roots=3, parent_offset=0.5).vectors)
    two = GENERATORS["tree-two-parents"](seed=2, roots=3)
    assert torch.equal(two.held_out(50).x, tree(seed=2, roots=3, two_parents=0.5).held_out(50).x)


def test_settings_of_generators_and_of_those_that_fix_some() -> None:
    assert settings_of("matryoshka") == {}
    known = settings_of("tree")
    assert (known["depth"], known["exclusive"], known["parent_offset"]) == (int, bool, float)
    assert known["d"] == int | None
    assert settings_of("tree-leaning").keys() == known.keys()
    assert saeforest.synthetic("tree-leaning", depth=2, roots=2).forest.layer_sizes == (2, 8)


def test_the_active_features_are_divided_among_layers_that_are_not_the_worlds() -> None:
    world = tree(roots=4, branching=3)
    sizes, (most, mean) = world.forest.layer_sizes, layer_l0(world)
    total, average = sum(most), sum(mean)
    config = SyntheticConfig(layer_sizes=(10, 20, 15, 7))
    found = system_for("tree", sizes, most, mean, config)
    assert found.layer_sizes == (10, 20, 15, 7)
    assert sum(found.k_per_layer) == max(total, 4)
    assert max(found.k_per_layer) - min(found.k_per_layer) <= 1
    assert list(found.k_per_layer) == sorted(found.k_per_layer, reverse=True)
    flat = system_for("batchtopk", sizes, most, mean, config)
    assert (flat.layer_sizes, flat.k_per_layer) == ((52,), (max(round(average), 1),))
    assert system_for("topk", sizes, most, mean, config).k_per_layer == (max(total, 4),)
    for name in SYSTEM_NAMES:
        system_for(name, sizes, most, mean, SyntheticConfig(layer_sizes=(13, 26, 13)))
    told = system_for("tree", sizes, most, mean, SyntheticConfig())
    assert (told.layer_sizes, told.k_per_layer) == (sizes, most)
    with pytest.raises(InputError, match=r"system tree with layer_sizes \[1, 30\]"):
        system_for("tree", sizes, (4, 4, 4), mean, SyntheticConfig(layer_sizes=(1, 30)))
    with pytest.raises(InputError, match=r"size = 2\.0 and layer_sizes: give only one"):
        SyntheticConfig(size=2.0, layer_sizes=(5,))
    with pytest.raises(InputError, match=r"layer_sizes = \[0\]"):
        SyntheticConfig(layer_sizes=(0,))


# -- recovery where features have two parents


def as_code(dense: Tensor) -> SparseCode:
    values, ids = dense.sort(1, descending=True)
    return SparseCode(values, ids.where(values > 0, 0))


def scored(world: World, sample: Sample, parent: Tensor, **changes: Any) -> Recovery:
    """The truth itself, under these parents."""
    given: dict[str, Any] = {
        "decoder": world.vectors,
        "encoder": world.vectors,
        "code": as_code(sample.code.dense(world.m)),
        "forest": Forest(parent, (world.m,), layered=False),
    }
    return recover(world, sample, **{**given, **changes})


def test_either_parent_is_right() -> None:
    world = small(two_parents=0.5)
    sample = world.held_out(1000)
    first, second = world.spec.parents
    either = torch.where(second != ROOT, second, first)
    for parent in (first, either):
        edges = scored(world, sample, parent).edges
        assert (edges.precision, edges.recall, edges.f1, edges.parent_accuracy) == (1, 1, 1, 1)
        assert (edges.learned_edges, edges.true_edges) == (18, 27)
        assert edges.ancestor_precision == 1
        assert edges.ancestor_recall is not None
        assert edges.ancestor_recall < 1
    wrong = either.clone()
    child = int((second != ROOT).nonzero()[-1])
    wrong[child] = next(g for g in range(3, 9) if g not in (int(first[child]), int(second[child])))
    edges = scored(world, sample, wrong).edges
    assert (edges.precision, edges.recall, edges.parent_accuracy) == pytest.approx((17 / 18,) * 3)


@pytest.mark.parametrize("seed", range(10))
def test_edges_of_two_parents_agree_with_a_slow_count(seed: int) -> None:
    rng = np.random.default_rng(seed)
    world = small(seed=seed, two_parents=0.5)
    sample = world.held_out(200)
    parent = torch.tensor(
        [ROOT if i == 0 or rng.random() < 0.3 else int(rng.integers(i)) for i in range(world.m)]
    )
    right = rng.random(world.m) < 0.5
    parent = torch.where(torch.from_numpy(right), world.spec.parents[int(rng.integers(2))], parent)
    # Some latents stand for nothing.
    decoder = world.vectors.clone()
    lost = rng.random(world.m) < 0.2
    decoder[torch.from_numpy(lost)] = torch.linalg.qr(world.vectors.T, mode="complete")[0][:, -1]
    found = scored(world, sample, parent, decoder=decoder).edges

    fires = (sample.code.dense(world.m) > 0).any(0).tolist()
    pi = {g: g for g in range(world.m) if fires[g] and not lost[g]}
    truth = parents_of(world)
    learned = {
        c: int(p) for c, p in enumerate(parent) if p != ROOT and c in pi.values() and int(p) in pi.values()
    }
    latent_of = {c: {pi[p] for p in truth[c] if p in pi} for c in range(world.m)}
    hits = sum(1 for c in range(world.m) if c in pi and learned.get(pi[c]) in latent_of[c])
    children = [c for c in range(world.m) if truth[c]]
    assert found.precision == (pytest.approx(hits / len(learned)) if learned else None)
    assert found.recall == pytest.approx(hits / len(children))
    matched = [c for c in children if c in pi]
    assert found.parent_accuracy == pytest.approx(hits / len(matched))
    assert found.root_rate == pytest.approx(np.mean([parent[pi[c]] == ROOT for c in matched]))
    pairs = {(pi[a], pi[c]) for c in pi for a in above(world, c) if a in pi}
    guessed = {(a, c) for a, c in oracle.ancestors(parent.tolist()) if a in pi.values() and c in pi.values()}
    assert found.ancestor_precision == (
        pytest.approx(len(pairs & guessed) / len(guessed)) if guessed else None
    )
    every = sum(len(above(world, c)) for c in range(world.m))
    assert found.ancestor_recall == pytest.approx(len(pairs & guessed) / every)


def test_absorption_is_over_the_edges_of_both_parents() -> None:
    world = small(two_parents=0.5)
    sample = world.held_out(1000)
    child = int((world.spec.parents[1] != ROOT).nonzero()[0])
    other = int(world.spec.parents[1][child])
    dense = sample.code.dense(world.m)
    dense[:, other] *= dense[:, child] == 0  # silent wherever its second-hand child is active
    found = scored(world, sample, world.forest.parent, code=as_code(dense)).absorption
    assert found.edges == 27
    on = sample.code.dense(world.m) > 0
    silent = [
        float((on[:, c] & on[:, child]).sum() / on[:, c].sum()) for p, c in world.spec.edges.T if p == other
    ]
    assert max(silent) == 1
    assert found.silent == pytest.approx(sum(silent) / 27)


# -- nulls


def test_shuffled_scores_are_the_mean_of_the_scores_of_shuffled_forests(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert SHUFFLES == 20
    monkeypatch.setattr("saeforest.worlds.nulls.SHUFFLES", 8)
    world = small(parent_offset=0.4)
    sample = world.held_out(1000)
    found = scored(world, sample, world.forest.parent)
    assert found.shuffled.keys() == set(NULLED)
    forests = list(shuffles(Forest(world.forest.parent, (world.m,), layered=False), world.seed))
    assert len(forests) == 8
    again = [scored(world, sample, forest.parent) for forest in forests]
    for name in ("hierarchy", "hierarchy_mean", "coverage_mean"):
        assert found.shuffled[name] == pytest.approx(np.mean([getattr(one, name) for one in again]), abs=1e-6)
    for name in ("precision", "recall", "f1"):
        for suffix, edges in (("", "edges"), ("_06", "edges_loose")):
            each = [getattr(getattr(one, edges), name) for one in again]
            assert found.shuffled[f"edge_{name}{suffix}"] == pytest.approx(np.mean(each))
    for name in ("ancestor_f1", "parent_accuracy"):
        assert found.shuffled[name] == pytest.approx(np.mean([getattr(one.edges, name) for one in again]))
    # By chance: of 6 children one in three draws its own parent, of 12 grandchildren one in six.
    assert found.shuffled["edge_f1"] == pytest.approx((6 / 3 + 12 / 6) / 18, abs=0.15)
    assert found.edges.f1 == 1


def test_a_forest_without_edges_has_no_null_to_compare_with() -> None:
    world = small()
    found = scored(world, world.held_out(500), flat_forest((world.m,)).parent).shuffled
    assert (found["edge_f1"], found["edge_precision"], found["hierarchy"], found["coverage_mean"]) == (
        0,
        None,
        None,
        None,
    )


def test_the_mean_direction_has_the_parent_in_it_and_the_own_vector_has_not() -> None:
    world = tree()
    sample = world.held_out(N)
    straight = scored(world, sample, world.forest.parent)
    assert straight.hierarchy is not None
    assert straight.hierarchy < 0.1
    assert straight.hierarchy_mean is not None
    assert straight.hierarchy_mean > 0.99
    assert straight.shuffled["hierarchy_mean"] is not None
    assert straight.shuffled["hierarchy_mean"] < 0.15


@pytest.mark.parametrize("seed", range(5))
def test_hierarchy_by_mean_directions_agrees_with_the_oracle(seed: int) -> None:
    rng = np.random.default_rng(seed)
    world = small(seed=seed, p_root=0.5)
    sample = world.held_out(300)
    dense = sample.code.dense(world.m)
    x = torch.from_numpy(rng.normal(size=(300, 24))).float() + sample.x
    sample = Sample(x, as_code(dense))
    parent = torch.tensor([ROOT, *(int(rng.integers(i)) for i in range(1, world.m))])
    on, values = dense.numpy() > 0, x.double().numpy()
    directions = np.zeros((world.m, 24))
    for g in range(world.m):
        directions[g] = values[on[:, g]].mean(0) - values[~on[:, g]].mean(0)
    pi = {g: g for g in range(world.m) if on[:, g].any()}
    expected, _ = oracle.hierarchy(parent.tolist(), pi, directions, world.vectors.double().numpy())
    assert scored(world, sample, parent).hierarchy_mean == pytest.approx(expected)


def test_untrained_saes_have_what_training_takes_from_a_batch() -> None:
    """Links for an HSAE, and a threshold for a BatchTopK SAE: without them their nulls would be empty, or all fire."""
    config = SyntheticConfig(steps=1, batch_size=64, held_out=500)
    world = small(seed=1)
    most, mean = layer_l0(world)
    for name in ("hsae", "batchtopk"):
        system = system_for(name, world.forest.layer_sizes, most, mean, config)
        _, untrained = _trained(system, world, config, 1, name)
        code = untrained.encode(world.held_out(500).x)
        assert float(code.active().sum(1).double().mean()) < 3 * sum(mean), name
        assert name != "hsae" or len(untrained.forest.edges[0]) > 0


def test_the_untrained_sae_is_the_one_that_training_starts_from() -> None:
    config = SyntheticConfig(steps=3, batch_size=64, held_out=500)
    found = compare(lambda seed: small(seed=seed), [0, 1], ["tree"], config)["tree"]
    for name, null in itertools.product(NULLED, ("shuffled", "untrained")):
        assert len(found[f"{name}_{null}"]["values"]) == 2
    assert found["edge_f1_untrained"]["median"] == 0
    world = small(seed=1)
    most, mean = layer_l0(world)
    system = system_for("tree", world.forest.layer_sizes, most, mean, config)
    training = start_training(system, 24, RunLength(3, 64), seed=1)
    first = world.block(0, 0).x[:64]
    with torch.no_grad():
        sae = training.untrained(first, first)
        sample = world.held_out(500)
        code, _ = sae.encode_with_stats(sample.x)
    expected = recover(
        world, sample, decoder=sae.decoder, encoder=sae.encoder, code=code, forest=sae.forest, threshold=0.2
    )
    assert found["coverage_mean_untrained"]["values"][1] == expected.coverage_mean
    assert found["edge_precision_all_untrained"]["values"][1] == expected.edges.precision_all
    assert found["hierarchy_untrained"]["values"][1] == expected.hierarchy


def test_a_tree_that_starts_without_edges_is_untrained_under_the_parents_it_learned() -> None:
    config = SyntheticConfig(steps=40, batch_size=64, held_out=500)
    world = small(seed=1)
    most, mean = layer_l0(world)
    system = system_for("tree-earned", world.forest.layer_sizes, most, mean, config)
    sae, untrained = _trained(system, world, config, 1, "tree-earned")
    assert (sae.parent != ROOT).any()
    assert torch.equal(untrained.parent, sae.parent)
    assert torch.equal(untrained.encoder, start_training(system, 24, RunLength(1, 64), seed=1).sae.encoder)
    assert not torch.equal(untrained.encoder, sae.encoder)
    fires = untrained.encode(world.held_out(500).x).dense(world.m) > 0.2
    children = (sae.parent != ROOT).nonzero().flatten()
    assert fires[:, children].any()
    assert not (fires[:, children] & ~fires[:, sae.parent[children]]).any()


def test_a_small_copy_of_the_benchmark_keeps_its_shape() -> None:
    world = synth_bench(features=200, d=64, trees=8, branching=4, depth=2, orthogonal_steps=20)
    assert world.forest.layer_sizes == (8 + 32, 32, 128)
    assert [len(world.forest.children(g)) for g in (0, 7, 8, 39, 40)] == [4, 4, 0, 0, 4]
    on = (sample_code(world.spec, 4000, torch.Generator().manual_seed(0)).dense(200) > 0).int()
    assert max(int(on[:, world.forest.children(g)].sum(1).max()) for g in range(72)) == 1
    assert asdict(SyntheticConfig())["layer_sizes"] is None
