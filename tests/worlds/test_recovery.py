"""How much of a known tree an SAE is said to have found."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from oracles import recovery as oracle
from saeforest.sparse_code import SparseCode
from saeforest.structure.forest import ROOT, Forest, flat_forest
from saeforest.worlds import Recovery, Sample, TreeSpec, World, recover
from saeforest.worlds.generators import (
    hedging_four,
    tree,
)
from saeforest.worlds.recovery import _TopFive


def as_code(dense: Tensor) -> SparseCode:
    values, ids = dense.sort(1, descending=True)
    return SparseCode(values, ids.where(values > 0, 0))


def perfect(world: World, sample: Sample, order: Tensor | None = None, **changes: Any) -> Recovery:
    """The scores of the truth itself, with latent `i` standing for true feature `order[i]`, but for the changes."""
    order = torch.arange(world.m) if order is None else order
    latent_of = order.argsort()
    parent = world.forest.parent[order]
    parent = torch.where(parent == ROOT, ROOT, latent_of[parent])
    given: dict[str, Any] = {
        "decoder": world.vectors[order],
        "encoder": world.vectors[order],
        "code": as_code(sample.code.dense(world.m)[:, order]),
        "forest": Forest(parent, (world.m,), layered=False),
    }
    return recover(world, sample, **{**given, **changes})


@pytest.fixture(scope="module")
def leaning() -> tuple[World, Sample]:
    """Two trees of 1 + 2 + 4 features whose children lean on their parents."""
    world = tree(roots=2, branching=2, p_root=0.5, p_child=0.4, d=20, parent_offset=0.4)
    return world, world.held_out(3000)


@pytest.mark.parametrize("permuted", [False, True])
def test_the_truth_recovers_itself(leaning: tuple[World, Sample], permuted: bool) -> None:
    world, sample = leaning
    order = torch.randperm(world.m, generator=torch.Generator().manual_seed(0)) if permuted else None
    found = perfect(world, sample, order)
    ones = ("mcc", "mcc_truth", "mcc_abs", "mcc_abs_truth", "uniqueness", "hierarchy")
    ones += ("latent_precision", "latent_recall", "latent_f1", "coverage_mean", "coverage_min")
    assert {name: getattr(found, name) for name in ones} == pytest.approx(dict.fromkeys(ones, 1.0), abs=1e-6)
    assert (found.alive, found.hierarchy_pairs, found.coverage_edges) == (14, 12, 12)
    for scores in (found.edges, found.edges_loose):
        shares = {k: v for k, v in asdict(scores).items() if isinstance(v, float) and k != "cosine"}
        assert shares == {**dict.fromkeys(shares, 1.0), "root_rate": 0.0}
        assert (scores.matched, scores.true_edges, scores.learned_edges) == (14, 12, 12)
    assert (found.absorption.silent, found.absorption.silent_excess) == (0, 0)
    assert found.absorption.edges == 12
    assert found.absorption.hedging == pytest.approx(0.4 / 1.16**0.5, abs=1e-5)


def reparented(world: World, moves: dict[int, int]) -> Forest:
    parent = world.forest.parent.clone()
    for child, above in moves.items():
        parent[child] = above
    return Forest(parent, (world.m,), layered=False)


def test_a_swapped_parent_costs_its_edges(leaning: tuple[World, Sample]) -> None:
    world, sample = leaning
    # Features 2 and 3 hang from 0, and 6 and 7 from 2: one grandchild now hangs from its uncle 3.
    edges = perfect(world, sample, forest=reparented(world, {6: 3})).edges
    assert (edges.precision, edges.recall, edges.f1) == pytest.approx((11 / 12,) * 3)
    assert (edges.parent_accuracy, edges.root_rate) == pytest.approx((11 / 12, 0))
    # Of 12 + 8 pairs only (2, 6) is missed and (3, 6) wrong.
    assert edges.ancestor_f1 == pytest.approx(19 / 20)


def test_a_skipped_level_costs_an_edge_but_only_one_ancestor(leaning: tuple[World, Sample]) -> None:
    world, sample = leaning
    edges = perfect(world, sample, forest=reparented(world, {6: 0})).edges
    assert (edges.precision, edges.recall) == pytest.approx((11 / 12, 11 / 12))
    assert (edges.ancestor_precision, edges.ancestor_recall) == pytest.approx((1, 19 / 20))


def test_hanging_from_the_root_is_counted_apart(leaning: tuple[World, Sample]) -> None:
    world, sample = leaning
    edges = perfect(world, sample, forest=reparented(world, {6: ROOT, 7: 3})).edges
    assert (edges.precision, edges.recall) == pytest.approx((10 / 11, 10 / 12))
    assert (edges.parent_accuracy, edges.root_rate) == pytest.approx((10 / 12, 1 / 12))


def test_a_flat_forest_has_no_precision_and_recovers_nothing(leaning: tuple[World, Sample]) -> None:
    world, sample = leaning
    found = perfect(world, sample, forest=flat_forest((world.m,)))
    edges = found.edges
    assert (edges.precision, edges.precision_all, edges.recall, edges.f1) == (None, None, 0, 0)
    assert (edges.ancestor_precision, edges.ancestor_recall, edges.ancestor_f1) == (None, 0, 0)
    assert (edges.parent_accuracy, edges.root_rate) == (0, 1)
    assert (found.hierarchy, found.hierarchy_pairs) == (None, 0)
    assert (found.coverage_mean, found.coverage_min, found.coverage_edges) == (None, None, 0)
    assert found.mcc == pytest.approx(1)


def test_a_world_without_edges_has_no_recall() -> None:
    world = tree(depth=1, roots=4, d=8, p_root=0.5)
    found = perfect(world, world.held_out(100))
    assert (found.edges.precision, found.edges.recall, found.edges.f1) == (None, None, None)
    assert found.edges.parent_accuracy is None
    assert (found.absorption.silent, found.absorption.hedging) == (None, None)


def test_a_dead_latent_is_no_latent(leaning: tuple[World, Sample]) -> None:
    world, sample = leaning
    dense = sample.code.dense(world.m)
    dense[:, 2] = 0
    found = perfect(world, sample, code=as_code(dense))
    assert (found.alive, found.edges.matched, found.edges.learned_edges) == (13, 13, 9)
    assert found.mcc == pytest.approx(1, abs=1e-6)
    assert found.mcc_truth == pytest.approx(13 / 14, abs=1e-6)
    # The edges (0, 2), (2, 6) and (2, 7) are gone; 6 and 7 hang from a latent that stands for nothing.
    assert (found.edges.precision, found.edges.recall) == pytest.approx((1, 9 / 12))
    assert (found.edges.parent_accuracy, found.edges.root_rate) == pytest.approx((9 / 11, 0))
    assert found.latent_f1 == pytest.approx(1)
    # Its own edge has no child that fires; those of its children have a parent that never does.
    assert found.coverage_edges == 11
    assert found.coverage_mean == pytest.approx(9 / 11)


def test_all_latents_dead(leaning: tuple[World, Sample]) -> None:
    world, sample = leaning
    found = perfect(world, sample, code=as_code(torch.zeros(len(sample), world.m)))
    assert (found.alive, found.mcc, found.mcc_truth, found.uniqueness) == (0, None, 0, None)
    assert (found.latent_f1, found.edges.recall, found.edges.f1, found.edges.precision) == (None, 0, 0, None)


def test_an_unmatched_child_is_a_miss_and_its_edge_false(leaning: tuple[World, Sample]) -> None:
    world, sample = leaning
    decoder = world.vectors.clone()
    decoder[6] = torch.linalg.qr(world.vectors.T, mode="complete")[0][:, -1]
    edges = perfect(world, sample, decoder=decoder).edges
    assert (edges.matched, edges.learned_edges, edges.learned_matched) == (13, 12, 11)
    assert (edges.precision, edges.recall) == pytest.approx((1, 11 / 12))
    assert edges.precision_all == pytest.approx(11 / 12)


def test_a_negative_copy_is_no_recovery(leaning: tuple[World, Sample]) -> None:
    world, sample = leaning
    decoder = world.vectors.clone()
    decoder[6] *= -1
    found = perfect(world, sample, decoder=decoder)
    assert found.mcc_abs == pytest.approx(1, abs=1e-6)
    assert found.mcc == pytest.approx(13 / 14, abs=1e-6)
    assert found.edges.matched == 13


def test_a_half_way_match_counts_only_loosely(leaning: tuple[World, Sample]) -> None:
    world, sample = leaning
    decoder = world.vectors.clone()
    away = torch.linalg.qr(world.vectors.T, mode="complete")[0][:, -1]
    decoder[13] = 0.7 * decoder[13] + 0.51**0.5 * away
    found = perfect(world, sample, decoder=decoder)
    assert (found.edges.matched, found.edges_loose.matched) == (13, 14)
    assert (found.edges.recall, found.edges_loose.recall) == pytest.approx((11 / 12, 1))


def test_absorption_and_hedging_are_seen() -> None:
    world = hedging_four()
    sample = world.held_out(4000)
    dense = sample.code.dense(4)
    # The parent's latent is silent wherever child 1 is active, and its rows say so.
    dense[:, 0] *= dense[:, 1] == 0
    encoder = world.vectors.clone()
    encoder[0] -= 0.5 * world.vectors[1]
    decoder = world.vectors.clone()
    decoder[0] += 0.3 * world.vectors[1]
    found = perfect(world, sample, code=as_code(dense), encoder=encoder, decoder=decoder).absorption
    truth = sample.code.dense(4) > 0
    also = [float((truth[:, c] & truth[:, 1]).sum() / truth[:, c].sum()) for c in (1, 2, 3)]
    assert also[0] == 1
    assert found.silent == pytest.approx(sum(also) / 3)
    assert found.silent_excess == pytest.approx(sum(also) / 3)
    assert found.encoder_hole == pytest.approx(-0.5 / 1.25**0.5 / 3, abs=1e-5)
    assert found.hedging == pytest.approx(0.3 / 1.09**0.5 / 3, abs=1e-5)

    # An encoder row of zeros has no direction.
    assert perfect(world, sample, encoder=torch.zeros(4, 50)).absorption.encoder_hole is None

    # Silence that has nothing to do with children is no excess.
    dense = sample.code.dense(4)
    dense[::2, 0] = 0
    found = perfect(world, sample, code=as_code(dense)).absorption
    assert found.silent == pytest.approx(0.5, abs=0.1)
    assert found.silent_excess == pytest.approx(0, abs=0.1)


@pytest.mark.parametrize(("others", "hit"), [(3, 1.0), (4, 0.0)])
def test_both_ends_of_an_edge_must_be_near_the_childs_direction(others: int, hit: float) -> None:
    # The parent is nearest, then other latents, then the child.
    cosine = torch.tensor([0.99, 0.85, *[0.9] * others])
    decoder = torch.stack([cosine, (1 - cosine**2).sqrt()], 1)
    learned = Forest(torch.tensor([ROOT, 0] + [ROOT] * others), (2 + others,), layered=False)
    assert _TopFive(decoder, torch.tensor([[1.0, 0.0]]), torch.tensor([1]))(learned) == (hit, 1)


def random_forest(n: int, rng: np.random.Generator) -> list[int]:
    """Parents anywhere, without cycles: a random order, each under an earlier one or the root."""
    order, parent = rng.permutation(n), [ROOT] * n
    for place, node in enumerate(order):
        if place and rng.random() < 0.7:
            parent[node] = int(order[rng.integers(place)])
    return parent


@pytest.mark.parametrize("seed", range(40))
def test_recovery_agrees_with_the_oracle(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n, m, n_latents, d = 60, int(rng.integers(3, 7)), int(rng.integers(2, 8)), 8
    true_parent, learned = random_forest(m, rng), random_forest(n_latents, rng)
    truth = rng.normal(size=(m, d))
    # Latents are noisy copies of true features, some negative; some never fire.
    decoder = truth[rng.permutation(m)[np.arange(n_latents) % m]]
    decoder = decoder + rng.normal(size=decoder.shape) * rng.choice([0.1, 0.7, 2.0], size=(n_latents, 1))
    decoder *= rng.choice([1, 1, 1, -1], size=(n_latents, 1))
    encoder = rng.normal(size=(n_latents, d))
    values = rng.random((n, n_latents)) * (rng.random((n, n_latents)) < 0.4)
    values[:, rng.random(n_latents) < 0.15] = 0
    values[0, 0] = 1.0
    truth_on = rng.random((n, m)) < rng.choice([0.05, 0.5], size=m)

    forest = Forest(torch.tensor(true_parent), (m,), layered=False)
    spec = TreeSpec(forest, torch.full((m,), 0.1).double(), torch.ones(m), torch.zeros(m))
    world = World("random", spec, torch.from_numpy(truth).float(), seed)
    sample = Sample(torch.zeros(n, d), as_code(torch.from_numpy(truth_on).float()))
    threshold = 0.1
    found = recover(
        world,
        sample,
        decoder=torch.from_numpy(decoder).float(),
        encoder=torch.from_numpy(encoder).float(),
        code=as_code(torch.from_numpy(values).float()),
        forest=Forest(torch.tensor(learned), (n_latents,), layered=False),
        threshold=threshold,
    )

    latent_on = values > threshold
    live = oracle.alive(latent_on)
    pi = oracle.matching(decoder, truth, live, 0.8)
    coverage = oracle.coverage(learned, latent_on)
    hierarchy, pairs = oracle.hierarchy(learned, pi, truth, decoder)
    detection = oracle.detection(decoder, truth, live, truth_on, latent_on)
    expected: dict[str, Any] = {
        "alive": len(live),
        "uniqueness": oracle.uniqueness(decoder, truth, live),
        "hierarchy": hierarchy,
        "hierarchy_pairs": pairs,
        "coverage_edges": len(coverage),
        "coverage_mean": oracle.mean_or_none(coverage),
        "coverage_min": min(coverage) if coverage else None,
    }
    expected["mcc"], expected["mcc_truth"] = oracle.mcc(decoder, truth, live, signed=True)
    expected["mcc_abs"], expected["mcc_abs_truth"] = oracle.mcc(decoder, truth, live, signed=False)
    expected["latent_precision"], expected["latent_recall"], expected["latent_f1"] = detection
    check(asdict(found), expected)
    check(asdict(found.edges), oracle.edge_scores(true_parent, learned, pi, live))
    loose = oracle.matching(decoder, truth, live, 0.6)
    check(asdict(found.edges_loose), oracle.edge_scores(true_parent, learned, loose, live))
    absorbed = oracle.absorption(true_parent, pi, truth_on, latent_on, truth, decoder, encoder)
    check(asdict(found.absorption), absorbed)


def check(found: dict[str, Any], expected: dict[str, Any]) -> None:
    for name, value in expected.items():
        assert found[name] == (None if value is None else pytest.approx(value, abs=1e-5)), name


def test_a_code_of_another_sample_is_refused(leaning: tuple[World, Sample]) -> None:
    world, sample = leaning
    with pytest.raises(ValueError, match="for 3000 samples and 14 decoder rows"):
        perfect(world, sample, code=as_code(torch.zeros(2, world.m)))
