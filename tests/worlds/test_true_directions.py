"""What estimates of a concept's direction find where the truth is known (benchmarks/directions.py)."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from saeforest.errors import InputError
from saeforest.structure.forest import Forest, flat_forest
from saeforest.structure.shuffled import shuffled_within_levels
from saeforest.worlds import TreeSpec, World
from saeforest.worlds.directions import mean_directions
from saeforest.worlds.generators import GENERATORS, hedging_four, mp, tree

sys.path.insert(0, str(Path(__file__).parents[2]))  # the benchmarks are run from the repository

from benchmarks import directions as benchmark


def sampled_means(world: World, n: int = 30_000) -> Tensor:
    """The same directions by definition, one feature at a time, from a sample."""
    code = world.held_out(n).code.dense(world.m).double()
    x = code @ world.vectors.double()
    on = code > 0
    return torch.stack(
        [F.normalize(x[on[:, c]].mean(0) - x[~on[:, c]].mean(0), dim=0) for c in range(world.m)]
    )


@pytest.mark.parametrize(
    "world",
    [
        tree(roots=2, branching=2, d=14, p_root=0.4, p_child=0.4, parent_offset=0.3),
        tree(roots=2, branching=2, d=14, p_root=0.4, p_child=0.5, exclusive=False),
        mp(),
        hedging_four(),
    ],
    ids=["exclusive", "independent", "roots exclude each other", "one root"],
)
def test_mean_directions_are_those_of_a_large_sample(world: World) -> None:
    cosine = (mean_directions(world).double() * sampled_means(world)).sum(1)
    assert float(cosine.min()) > 0.999


def test_the_mean_direction_of_a_child_by_hand() -> None:
    # A root of 0.5 with two exclusive children of 0.25; magnitudes 1, vectors the axes.
    forest = Forest(torch.tensor([-1, 0, 0]), (1, 2))
    spec = TreeSpec(forest, torch.tensor([0.5, 0.25, 0.25]), torch.ones(3), torch.zeros(3))
    found = mean_directions(World("hand", spec, torch.eye(3), 0))
    # Child 1 fires on 1/8: elsewhere the root fires on (1/2 - 1/8) / (7/8) = 3/7, the sibling on (1/8) / (7/8) = 1/7.
    torch.testing.assert_close(found[1], F.normalize(torch.tensor([4 / 7, 1.0, -1 / 7]), dim=0))
    # The root is absent on the other half, and a quarter of its firings have each child.
    torch.testing.assert_close(found[0], F.normalize(torch.tensor([1.0, 0.25, 0.25]), dim=0))


def test_mean_directions_know_folded_magnitudes() -> None:
    forest = flat_forest((2,))
    spec = TreeSpec(forest, torch.full((2,), 0.5), torch.tensor([0.2, 1.0]), torch.tensor([1.0, 0.0]))
    vectors = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    world = World("folded", replace(spec, children="independent"), vectors, 0)
    torch.testing.assert_close(mean_directions(world)[1], F.normalize(vectors[1], dim=0))
    child = replace(spec, forest=Forest(torch.tensor([-1, 0]), (1, 1)), children="independent")
    drawn = np.abs(np.random.default_rng(0).normal(0.2, 1, 1_000_000)).mean()
    # P(parent | child) = 1, P(parent | not child) = (1/2 - 1/4) / (3/4) = 1/3.
    expected = F.normalize(vectors[1] + float(drawn) * 2 / 3 * vectors[0], dim=0)
    torch.testing.assert_close(mean_directions(replace(world, spec=child))[1], expected, atol=2e-3, rtol=0)


def test_worlds_without_exact_mean_directions_are_refused() -> None:
    small = GENERATORS["synth-bench"](features=20, d=8, trees=2, branching=2, depth=1)
    with pytest.raises(InputError, match="without contests"):
        mean_directions(small)
    with pytest.raises(InputError, match="second parents"):
        mean_directions(tree(two_parents=0.5))
    with pytest.raises(InputError, match="between 0 and 1"):
        mean_directions(tree(roots=1, p_root=1.0))


def test_shuffled_parents_keep_the_shape_of_the_forest() -> None:
    forest = tree(roots=3, branching=3).forest
    found = Forest(shuffled_within_levels(forest, torch.Generator().manual_seed(0)), forest.layer_sizes)
    assert torch.equal(found.n_children, forest.n_children)
    assert torch.equal(found.depth, forest.depth)
    assert not torch.equal(found.parent, forest.parent)
    # One layer: by depth, so that no feature becomes its own ancestor (Forest raises if one does).
    loose = Forest(torch.tensor([3, 0, 0, -1, 3, 4, 4, -1]), (8,), layered=False)
    seen = set()
    for seed in range(20):
        parent = shuffled_within_levels(loose, torch.Generator().manual_seed(seed))
        again = Forest(parent, (8,), layered=False)
        assert torch.equal(again.depth, loose.depth)
        assert torch.equal(again.n_children, loose.n_children)
        seen.add(tuple(parent.tolist()))
    assert len(seen) > 3


# -- which estimate finds which truth: what docs/results/directions.md says, on a world a quarter as large


@pytest.fixture(scope="module")
def scores() -> dict[str, benchmark.Agreement]:
    case = benchmark.Case(tree(0, roots=2, d=64), 6_000, noise=0.0, seed=0, batch_size=256)
    names = [name for name in benchmark.ESTIMATORS if "sixteenth" not in name]
    return {name: benchmark.agreement(case, benchmark.ESTIMATORS[name](case)) for name in names}


def test_a_perfect_detector_of_the_child_has_no_reconstruction_score(
    scores: dict[str, benchmark.Agreement],
) -> None:
    truth, lda = scores["truth: the child's own vector"], scores["LDA, ridge 1e-4"]
    assert truth.s_res == pytest.approx(0, abs=1e-6)
    assert lda.own > 0.99
    assert lda.s_res < 0.02
    # The more the direction is regularized or the less it is trained, the higher the score of the same true edges.
    by_effort = ["LDA, ridge 1e-4", "LDA, ridge 0.1", "probe, 50 epochs", "probe, 5 epochs"]
    s_res = [scores[name].s_res for name in by_effort]
    assert s_res == sorted(s_res)
    assert s_res[-1] > 0.4
    own = [scores[name].own for name in by_effort]
    assert own == sorted(own, reverse=True)


def test_the_mean_difference_is_the_concepts_mean_and_has_the_parent_in_it(
    scores: dict[str, benchmark.Agreement],
) -> None:
    truth, found = scores["truth: the concept's mean"], scores["mean difference"]
    assert found.mean > 0.99
    assert found.own == pytest.approx(truth.own, abs=0.01)
    assert found.parent == pytest.approx(truth.parent, abs=0.01)
    assert found.parent > 0.5
    assert all(
        scores[name].mean < 0.9
        for name in scores
        if name not in ("truth: the concept's mean", "mean difference")
    )


def test_a_child_with_four_children_cannot_pass_by_a_detectors_direction(
    scores: dict[str, benchmark.Agreement],
) -> None:
    for ridge in ("1e-4", "0.1"):
        lda = scores[f"LDA, ridge {ridge}"]
        assert (lda.hits, lda.hits_leaf, lda.hits_inner) == (0.8, 1.0, 0.0)
    for name in ("mean difference", "probe, 5 epochs"):
        assert scores[name].hits == scores[name].hits_inner == 1.0
    # Three children leave the parent its place.
    three = benchmark.Case(tree(0, roots=2, branching=3, d=64), 6_000, noise=0.0, seed=0)
    found = benchmark.agreement(three, three.lda(0.1))
    assert (found.hits, found.hits_inner) == (1.0, None)


def test_shuffled_parents_do_not_pass(scores: dict[str, benchmark.Agreement]) -> None:
    # A tenth at most of the children drew their own parent again or one whose rank is chance.
    assert max(found.hits_shuffled for found in scores.values()) < 0.25


def test_the_table_has_a_row_for_every_direction(scores: dict[str, benchmark.Agreement]) -> None:
    lines = benchmark.table({name: [found, found] for name, found in scores.items()}).splitlines()
    assert len(lines) == 2 + len(scores)
    row = next(line for line in lines if line.startswith("| LDA, ridge 1e-4"))
    assert row.split(" | ")[5:8] == ["0.80", "1.00", "0.00"]
