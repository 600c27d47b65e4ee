"""Worlds whose tree is known: what fires, and where it points."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from oracles import recovery as oracle
from saeforest.activations import Blocks
from saeforest.errors import InputError
from saeforest.structure.forest import ROOT, Forest, flat_forest
from saeforest.worlds import GENERATORS, TreeSpec, World, sample_code
from saeforest.worlds.generators import (
    compensated,
    hedging_four,
    mp,
    synth_bench,
    synth_bench_spec,
    tree,
    zipf,
)
from saeforest.worlds.geometry import nearly_orthogonal, unit_vectors

N = 40_000
SMALL = [name for name in GENERATORS if name != "synth-bench" and not name.startswith("tree-")]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def on(world: World, n: int = N) -> Tensor:
    """`[n, m]`: which true features are active."""
    return world.held_out(n).code.dense(world.m) > 0


def small_synth_bench(seed: int = 42) -> World:
    return synth_bench(seed, features=120, d=32, trees=4, branching=3, depth=2)


def assert_rates(measured: Tensor, expected: Tensor, n: int) -> None:
    """Every frequency within five standard errors."""
    error = (expected * (1 - expected) / n).sqrt()
    assert bool(((measured - expected).abs() <= 5 * error + 1e-12).all())


# -- what fires


@pytest.mark.parametrize(
    ("name", "l0"),
    [
        ("matryoshka", 1.12),
        ("mp", 1.36),
        ("hedging-single", 0.3),
        ("hedging-four", 0.25 * 1.45),
        ("hedging-four-unbalanced", 0.25 * 1.67),
        ("tree", 8 * 0.1 * (1 + 0.8 + 0.64)),
    ],
)
def test_as_many_features_fire_as_the_specification_says(name: str, l0: float) -> None:
    active = on(GENERATORS[name]()).sum(1).double()
    assert abs(float(active.mean()) - l0) < 5 * float(active.std()) / N**0.5


@pytest.mark.parametrize("name", SMALL)
def test_every_feature_fires_as_often_as_its_path_says(name: str) -> None:
    world = GENERATORS[name]()
    p, expected = world.spec.p, world.spec.p.clone()
    for feature in range(world.m):
        for above in world.forest.ancestors(feature):
            expected[feature] *= p[above]
    assert_rates(on(world).double().mean(0), expected, N)


@pytest.mark.parametrize("name", [*SMALL, "synth-bench"])
def test_a_child_fires_only_with_its_parent(name: str) -> None:
    world = small_synth_bench() if name == "synth-bench" else GENERATORS[name]()
    active = on(world, 4000)
    parent, child = world.forest.edges
    assert bool(active[:, child].any(0).float().mean() > 0.9)
    assert not bool((active[:, child] & ~active[:, parent]).any())


@pytest.mark.parametrize(
    ("make", "at_most_one"),
    [
        (GENERATORS["matryoshka"], True),
        (mp, True),
        (tree, True),
        (small_synth_bench, True),
        (hedging_four, False),
        (lambda: tree(exclusive=False, p_child=0.5), False),
    ],
)
def test_siblings_exclude_each_other_where_they_should(make: Any, at_most_one: bool) -> None:
    world = make()
    active = on(world).int()
    most = max(int(active[:, world.forest.children(g)].sum(1).max()) for g in range(world.m))
    assert most == 1 if at_most_one else most > 1


def test_exactly_one_top_level_feature_fires_in_the_toy_of_the_matching_pursuit_sae() -> None:
    world = mp()
    assert bool((on(world)[:, world.forest.roots].sum(1) == 1).all())
    assert int(on(GENERATORS["matryoshka"]())[:, world.forest.roots].sum(1).max()) > 1


def test_choices_that_use_up_all_probability_leave_no_sample_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    forest = flat_forest((10,))
    spec = TreeSpec(forest, torch.full((10,), 0.1), torch.ones(10), torch.zeros(10), roots="choice")
    assert bool((sample_code(spec, N, generator()).active().sum(1) == 1).all())
    # Rounded probabilities may add up to a little less than 1, and chance may fall in between.
    spec = replace(spec, p=spec.p * (1 - 1e-7))
    monkeypatch.setattr(torch, "rand", lambda *shape, **_: torch.full(shape, 1 - 1e-12, dtype=torch.float64))
    assert sample_code(spec, 3, generator()).ids.tolist() == [[9], [9], [9]]


def test_magnitudes_are_folded_and_follow_their_mean_and_deviation() -> None:
    world = tree(magnitude_mean=0.5, magnitude_std=0.5)
    values = world.held_out(N).code.values
    fired = values[values != 0]
    folded = (0.5 + 0.5 * torch.randn(1_000_000, generator=generator())).abs()
    assert float(fired.min()) > 0
    assert abs(float(fired.mean() - folded.mean())) < 0.01
    assert abs(float(fired.std() - folded.std())) < 0.01

    child = mp().held_out(N).code
    magnitude = child.values[child.ids >= 11]
    assert abs(float(magnitude.mean()) - 1.5) < 0.01
    assert abs(float(magnitude.std()) - 0.25) < 0.01
    assert bool((child.values[child.active() & (child.ids < 11)] == 1).all())


def test_children_scale_with_their_parents() -> None:
    forest = Forest(torch.tensor([ROOT, 0, 1]), (1, 1, 1))
    spec = TreeSpec(
        forest,
        torch.ones(3).double(),
        mean=torch.tensor([2.0, 3.0, 4.0]),
        std=torch.tensor([0.5, 0.0, 0.0]),
        children="independent",
        scale_by_parent=True,
    )
    values = sample_code(spec, 100, generator()).dense(3)
    torch.testing.assert_close(values[:, 1], 3 * values[:, 0] / 2)
    torch.testing.assert_close(values[:, 2], 4 * values[:, 0] / 2)


# -- T4


def test_synth_bench_has_the_probabilities_and_the_sparsity_of_the_specification() -> None:
    spec = synth_bench_spec()
    assert spec.m == 16_384
    assert spec.forest.layer_sizes == (128 + 5504, 512, 2048, 8192)
    p = zipf(16_384)
    assert (float(p[0]), float(p[-1])) == pytest.approx((0.4, 5e-4))
    # Where the shift is undone, rank^-0.5 is left.
    span = (p - p[-1]) / (p[0] - p[-1]) * (1 - 1 / 128) + 1 / 128
    torch.testing.assert_close(span, torch.arange(1, 16_385, dtype=torch.float64) ** -0.5)

    # Magnitudes fall from 5 to 4 with frequency: over roots, the levels of the trees, and what belongs to none.
    by_rank = torch.cat([spec.mean[:128], spec.mean[5632:], spec.mean[128:5632]])
    torch.testing.assert_close(by_rank, torch.linspace(5, 4, 16_384))
    # |N(0.5, 0.5)| has mean 0.583.
    assert float(spec.std.mean()) == pytest.approx(0.583, abs=0.015)
    assert spec.scale_by_parent
    assert spec.factor is not None
    assert spec.factor.shape[1] == 25
    assert float(spec.factor.std()) == pytest.approx(0.1, rel=0.01)

    n = 4096
    fired = sample_code(spec, n, generator()).fired(spec.m).double() / n
    assert 33.5 < float(fired.sum()) < 35.5
    in_trees = torch.cat([torch.arange(128), torch.arange(5632, spec.m)])
    assert 24 < float(fired[in_trees[:4096]].sum()) < 26
    # Roots and features of no tree have nothing to lose: they fire as often as they should.
    assert_rates(fired[:128], p[:128], n)
    assert float(fired[128:5632].sum()) == pytest.approx(float(p[10_880:].sum()), rel=0.03)


def test_features_in_contest_fire_as_often_as_one_sample_at_a_time() -> None:
    parent = [ROOT, ROOT, 0, 0, 0, 1, 1, 2, 2]
    forest = Forest(torch.tensor(parent), (2, 5, 2))
    target = torch.tensor([0.5, 0.3, 0.2, 0.15, 0.1, 0.1, 0.05, 0.15, 0.1], dtype=torch.float64)
    spec = TreeSpec(forest, compensated(forest, target), torch.ones(9), torch.zeros(9), children="contest")
    fired = sample_code(spec, N, generator()).fired(9).double() / N
    slow = oracle.l0_of_contest(parent, target.numpy(), 20_000, np.random.default_rng(0))
    assert_rates(fired, torch.from_numpy(slow), 20_000 // 2)
    assert float(fired[2:].sum()) < float(target[2:].sum())


def test_trials_are_correlated_as_the_factor_says_and_no_more_frequent() -> None:
    factor = torch.tensor([[0.9], [0.9], [-0.9], [0.0]])
    spec = TreeSpec(
        flat_forest((4,)), torch.full((4,), 0.3).double(), torch.ones(4), torch.zeros(4), factor=factor,
        children="contest",
    )  # fmt: skip
    code = sample_code(spec, N, generator())
    assert_rates(code.fired(4).double() / N, spec.p, N)
    correlation = np.corrcoef((code.dense(4) > 0).T.numpy())
    assert correlation[0, 1] > 0.4
    assert correlation[0, 2] < -0.2
    assert abs(correlation[0, 3]) < 0.03


def test_children_are_correlated_too() -> None:
    forest = Forest(torch.tensor([ROOT, ROOT, 0, 1]), (2, 2))
    spec = TreeSpec(
        forest, torch.tensor([1.0, 1, 0.3, 0.3]).double(), torch.ones(4), torch.zeros(4),
        children="contest", factor=torch.tensor([[0.0], [0.0], [0.9], [0.9]]),
    )  # fmt: skip
    active = (sample_code(spec, N, generator()).dense(4) > 0).T.numpy()
    assert np.corrcoef(active[2:])[0, 1] > 0.4


# -- where features point


@pytest.mark.parametrize("name", ["mp", "hedging-single", "hedging-four", "hedging-four-unbalanced"])
def test_features_that_fit_are_orthonormal(name: str) -> None:
    v = GENERATORS[name]().vectors
    torch.testing.assert_close(v @ v.T, torch.eye(len(v)), atol=1e-5, rtol=0)


def test_the_matryoshka_toy_is_orthogonal_with_uneven_norms() -> None:
    v = torch.cat([GENERATORS["matryoshka"](seed).vectors for seed in range(20)])
    gram = v[:20] @ v[:20].T
    assert float((gram - gram.diag().diag()).abs().max()) < 1e-5
    assert abs(float(v.norm(dim=1).std()) - 0.05) < 0.01
    assert abs(float(v.norm(dim=1).mean()) - 1) < 0.01


@pytest.mark.parametrize("setting", range(9))
def test_correlation_settings_give_even_cosines_within_levels(setting: int) -> None:
    v = mp(correlation=setting).vectors
    cosine = v @ v.T
    groups = torch.tensor([0] * 11 + [1] * 3 + [2] * 3 + [3] * 3)
    same = (groups[:, None] == groups) & ~torch.eye(20, dtype=torch.bool)
    assert float((cosine[same] - setting / 10).abs().max()) < 2e-3
    assert float(cosine[groups[:, None] != groups].abs().max()) < 1e-5


def test_crowded_vectors_are_more_nearly_orthogonal_than_random_ones() -> None:
    start = torch.nn.functional.normalize(torch.randn(168, 64, generator=generator()))

    def crowding(v: Tensor) -> float:
        return float((v @ v.T - torch.eye(len(v))).square().sum())

    v = nearly_orthogonal(start, steps=300, lr=0.01)
    torch.testing.assert_close(v.norm(dim=1), torch.ones(168))
    # m (m - d) / d: no unit vectors do better.
    bound = 168 * (168 - 64) / 64
    assert bound <= crowding(v) < bound + 0.05 * (crowding(start) - bound)


def test_a_step_towards_orthogonality_follows_the_gradient_of_the_pairs() -> None:
    start = torch.randn(7, 3, generator=generator()).requires_grad_()
    adam = torch.optim.Adam([start], lr=0.1)
    for _ in range(20):
        adam.zero_grad()
        gram = start @ start.T
        loss = (gram - gram.diag().diag()).square().sum() + 7 * (gram.diag() - 1).square().sum()
        loss.backward()
        adam.step()
    expected = torch.nn.functional.normalize(start.detach())
    before = torch.randn(7, 3, generator=generator())
    torch.testing.assert_close(nearly_orthogonal(before, steps=20, lr=0.1), expected, atol=1e-4, rtol=0)


def test_children_lean_on_their_parents() -> None:
    straight, leaning = tree(d=200), tree(d=200, parent_offset=0.5)
    parent, child = leaning.forest.edges
    torch.testing.assert_close(leaning.vectors.norm(dim=1), torch.ones(168))
    expected = torch.nn.functional.normalize(straight.vectors[child] + 0.5 * leaning.vectors[parent])
    torch.testing.assert_close(leaning.vectors[child], expected)
    cosine = (leaning.vectors[child] * leaning.vectors[parent]).sum(1)
    torch.testing.assert_close(cosine, torch.full_like(cosine, 0.5 / 1.25**0.5))


def test_superposition_sets_the_width() -> None:
    assert tree().d_in == 64
    assert tree(superposition=4.0).d_in == 42
    assert tree(depth=1, branching=7, roots=5).forest.layer_sizes == (5,)
    assert tree(depth=4, branching=2, roots=3).forest.layer_sizes == (3, 6, 12, 24)


@pytest.mark.parametrize("name", [*SMALL, "synth-bench"])
def test_samples_are_sums_of_the_vectors_that_fire_in_order(name: str) -> None:
    world = small_synth_bench() if name == "synth-bench" else GENERATORS[name]()
    sample = world.held_out(500)
    torch.testing.assert_close(sample.x, sample.code.dense(world.m) @ world.vectors, atol=1e-4, rtol=1e-4)
    ids, active = sample.code.ids, sample.code.active()
    assert bool((ids[:, 1:] > ids[:, :-1])[active[:, 1:]].all())


# -- worlds as sources


@pytest.mark.parametrize("name", [*SMALL, "synth-bench"])
def test_a_seed_fixes_a_world_bit_for_bit(name: str) -> None:
    make = small_synth_bench if name == "synth-bench" else GENERATORS[name]
    first, again, other = (replace(make(seed=s), block_rows=300) for s in (7, 7, 8))
    assert torch.equal(first.vectors, again.vectors)
    assert torch.equal(first.block(1, 2).x, again.block(1, 2).x)
    assert torch.equal(first.held_out(50).x, again.held_out(50).x)
    assert not torch.equal(first.vectors, other.vectors)
    assert not torch.equal(first.held_out(50).code.dense(first.m), other.held_out(50).code.dense(first.m))


def test_every_block_is_fresh() -> None:
    world = replace(tree(), block_rows=400, n_blocks=3)
    assert isinstance(world, Blocks)
    at = [(epoch, index) for epoch in range(2) for index in range(3)]
    blocks = [world.block(*where) for where in at]
    samples = [*(block.x for block in blocks), world.held_out(400).x]
    for i, x in enumerate(samples):
        assert x.shape == (400, 64)
        assert not any(torch.equal(x, other) for other in samples[:i])
    assert torch.equal(torch.cat([block.rows for block in blocks]), torch.arange(6 * 400))
    assert torch.equal(world.block_sample(1, 2).x, blocks[5].x)
    with pytest.raises(InputError):
        world.block(0, 3)


def test_large_samples_are_drawn_in_slices_with_all_their_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("saeforest.worlds.trees._CANDIDATES", 11 * 64)
    world = mp()
    code = world.held_out(1000).code
    assert bool((code.active() & (code.ids < 11)).sum(1).eq(1).all())
    assert len(code.dense(20).unique(dim=0)) > 100


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"depth": 0}, "depth = 0: expected 1 or more"),
        ({"roots": 0}, "roots = 0: expected 1 or more"),
        ({"branching": 0}, "branching = 0"),
        ({"p_child": 0.3}, "p_child = 0.3: the probabilities of 4 mutually exclusive children add up to 1.2"),
        ({"p_root": 1.5}, "probability 1.5 of feature 0"),
        ({"exclusive": False, "p_child": -0.1}, "probability -0.1 of feature 8"),
        ({"magnitude_std": -1.0}, "standard deviation -1"),
        ({"d": 0}, "168 features in 0 dimensions"),
        ({"d": 5, "superposition": 2.0}, "give only one of them"),
        ({"superposition": 0.0}, "superposition = 0"),
        ({"parent_offset": -1.0}, "parent_offset = -1"),
    ],
)
def test_a_tree_that_cannot_be_is_refused(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        tree(**arguments)


def test_other_worlds_that_cannot_be_are_refused() -> None:
    with pytest.raises(InputError, match="correlation = 9: expected 0 to 8"):
        mp(correlation=9)
    with pytest.raises(InputError, match="have 10880"):
        synth_bench(features=100)
    with pytest.raises(InputError, match=r"the root have probabilities that add up to 1\.2"):
        TreeSpec(
            flat_forest((3,)), torch.full((3,), 0.4).double(), torch.ones(3), torch.zeros(3), roots="choice"
        )
    with pytest.raises(InputError, match="block_rows = 0"):
        replace(mp(), block_rows=0)
    with pytest.raises(InputError, match="0 samples"):
        mp().held_out(0)
    with pytest.raises(InputError, match="0 features in 4 dimensions"):
        unit_vectors(0, 4, generator())
