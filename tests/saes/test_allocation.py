from itertools import pairwise
from typing import Literal

import numpy as np
import pytest
import torch

from oracles import allocation as oracle
from saeforest.saes.allocation import Growth, ReallocationSteps, greedy_allocation, reassign_dead


def allocate(
    capacity: list[float], n: int, eligible: list[bool] | None = None, min_last: int = 0
) -> list[int]:
    eligible = eligible or [True] * len(capacity)
    return greedy_allocation(
        torch.tensor(capacity, dtype=torch.float64), torch.tensor(eligible), n, min_last=min_last
    ).tolist()


@pytest.mark.parametrize(
    ("capacity", "n", "expected"),
    [
        ([10, 6, 1], 5, [3, 2, 0]),
        ([10, 6, 1, 0], 8, [5, 3, 0, 0]),
        ([5, 5, 5], 4, [2, 1, 1]),
        ([100, 1, 1], 10, [10, 0, 0]),
    ],
)
def test_greedy_hand_checked(capacity: list[float], n: int, expected: list[int]) -> None:
    assert allocate(capacity, n) == expected


def test_no_capacity_spreads_over_the_eligible() -> None:
    assert allocate([0, 0, 0], 5, [True, False, True]) == [3, 0, 2]


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("min_last", [0, 2])
def test_greedy_is_optimal(seed: int, min_last: int) -> None:
    rng = np.random.default_rng(seed)
    capacity, eligible = rng.uniform(0.1, 5, 4), rng.random(4) < 0.8
    eligible[-1] = True
    children = np.array(allocate(capacity.tolist(), 6, eligible.tolist(), min_last))
    assert children.sum() == 6
    assert children[-1] >= min_last
    best = oracle.brute_force_best_payoff(capacity, eligible, 6, min_last)
    assert oracle.min_payoff(capacity, children) == pytest.approx(best, rel=1e-12)


@pytest.mark.parametrize("seed", range(60))
def test_greedy_is_optimal_with_ties_and_zeros(seed: int) -> None:
    """Up to four parents, seven children: few different capacities, some of them 0, some parents not eligible."""
    rng = np.random.default_rng(1000 + seed)
    parents, n, min_last = int(rng.integers(1, 5)), int(rng.integers(0, 8)), int(rng.integers(0, 3))
    capacity, eligible = rng.integers(0, 4, parents).astype(float), rng.random(parents) < 0.7
    eligible[-1] = True
    children = np.array(allocate(capacity.tolist(), n, eligible.tolist(), min_last))
    assert children.tolist() == oracle.greedy_allocation(capacity, eligible, n, min_last).tolist()
    assert children.sum() == n
    assert not children[:-1][~eligible[:-1]].any()
    best = oracle.brute_force_best_payoff(capacity, eligible, n, min_last)
    assert oracle.min_payoff(capacity, children) == best


@pytest.mark.parametrize("capacity", ["uniform", "heavy-tailed"])
def test_greedy_is_optimal_at_the_papers_size(capacity: str) -> None:
    """No allocation can do better: so few children fit in at any higher payoff. benchmarks/allocation.py times it."""
    rng = np.random.default_rng(0)
    parents, n = 13_825, 24_576
    capacities = rng.random(parents) if capacity == "uniform" else rng.pareto(1, parents)
    eligible = rng.random(parents) < 0.9
    children = greedy_allocation(torch.tensor(capacities), torch.tensor(eligible), n).numpy()
    assert children.sum() == n
    assert not children[~eligible].any()
    worst = (capacities[children > 0] / children[children > 0]).min()
    fit = np.floor(capacities[eligible] / (worst * (1 + 1e-12)))
    assert fit.sum() < n


@pytest.mark.parametrize("count", ["all", "living"])
@pytest.mark.parametrize("seed", range(30))
def test_reassignment_equals_the_oracle(seed: int, count: Literal["all", "living"]) -> None:
    rng = np.random.default_rng(seed)
    start, size = 6, 14
    parent = np.concatenate([np.full(start, -1), rng.integers(-1, start, size)])
    dead = rng.random(start + size) < 0.6
    quota = rng.multinomial(size, rng.dirichlet(np.ones(start + 1)))
    expected, _ = oracle.reallocate_layer(parent, start, size, quota, dead, count)
    moved = reassign_dead(
        torch.tensor(parent[start:]), torch.tensor(dead[start:]), torch.tensor(quota), count=count
    )
    assert moved.tolist() == expected[start:].tolist()
    assert (moved.numpy() == parent[start:])[~dead[start:]].all(), "a living child moved"


def test_the_living_and_the_dead_counted() -> None:
    """Parent 0 has two dead children and a living one, parents 1 and the root a living one, parent 2 a dead one."""
    parent, quota = torch.tensor([0, 0, 0, 1, 2, -1]), torch.tensor([2, 2, 1, 1])
    dead = torch.tensor([True, True, False, False, True, False])
    # Of all children parent 0 has one too many, parent 1 one too few, and the others what they should have.
    assert reassign_dead(parent, dead, quota, count="all").tolist() == [1, 0, 0, 1, 2, -1]
    # Of living ones parents 0, 1 and 2 lack one each: the three dead, in the order of their parents, fill the places.
    assert reassign_dead(parent, dead, quota, count="living").tolist() == [0, 1, 0, 1, 2, -1]


@pytest.mark.parametrize("seed", range(30))
def test_all_the_dead_find_a_place_when_the_living_count(seed: int) -> None:
    """And then no parent has fewer living and moved children than its quota, but for those that are over theirs."""
    rng = np.random.default_rng(seed)
    parent, dead = torch.tensor(rng.integers(-1, 6, 20)), torch.tensor(rng.random(20) < 0.5)
    quota = torch.tensor(rng.multinomial(20, rng.dirichlet(np.ones(7))))
    moved = reassign_dead(parent, dead, quota, count="living")
    living = torch.bincount(torch.where(parent == -1, 6, parent)[~dead], minlength=7)
    after = torch.bincount(torch.where(moved == -1, 6, moved), minlength=7)
    assert (after <= torch.maximum(quota, living)).all()
    assert int((after - living).sum()) == int(dead.sum())


def test_schedule() -> None:
    doubling = ReallocationSteps(3_000, "double", 10_000, until=50_000)
    assert sorted(doubling) == [3_000, 9_000, 19_000, 29_000, 39_000, 49_000]
    additive = sorted(ReallocationSteps(3_000, "add", 10_000, until=50_000))
    assert (len(additive), additive[:2], additive[-1]) == (16, [3_000, 6_002], 48_240)
    assert max(b - a for a, b in pairwise(additive)) == 3_030
    assert list(ReallocationSteps(0, "double", 10, until=100)) == []
    assert list(ReallocationSteps(100, "double", 10, until=100)) == []


@pytest.mark.parametrize(
    ("first", "growth", "cap"),
    [(3, "double", 40), (3, "add", 11), (1, "double", 1), (9, "add", 4), (0, "add", 3)],
)
def test_a_step_is_one_of_them(first: int, growth: Growth, cap: int) -> None:
    every = set(ReallocationSteps(first, growth, cap, until=500))
    steps = ReallocationSteps(first, growth, cap, until=500)
    for order in (range(600), range(0, 600, 7), reversed(range(600))):
        assert all((step in steps) == (step in every) for step in order)


def test_a_run_may_be_of_any_length() -> None:
    """A list of its steps would take more memory than there is."""
    steps = ReallocationSteps(1, "double", 2, until=10**15)
    assert 10**14 + 1 in steps
    assert 10**14 not in steps
    assert 10**15 + 1 not in steps
