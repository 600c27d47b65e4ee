import time
from itertools import pairwise

import numpy as np
import pytest
import torch

from oracles import allocation as oracle
from saeforest.allocation import greedy_allocation, reallocation_steps, reassign_dead


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


def test_greedy_at_the_papers_size() -> None:
    # The bound is generous (0.1 s here): it tells a quadratic algorithm, not a slow machine.
    capacity = torch.rand(13_825, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    start = time.perf_counter()
    children = greedy_allocation(capacity, torch.ones(13_825, dtype=torch.bool), 24_576)
    assert time.perf_counter() - start < 5
    assert int(children.sum()) == 24_576


@pytest.mark.parametrize("seed", range(30))
def test_reassignment_equals_the_oracle(seed: int) -> None:
    rng = np.random.default_rng(seed)
    start, size = 6, 14
    parent = np.concatenate([np.full(start, -1), rng.integers(-1, start, size)])
    dead = rng.random(start + size) < 0.6
    quota = rng.multinomial(size, rng.dirichlet(np.ones(start + 1)))
    expected, _ = oracle.reallocate_layer(parent, start, size, quota, dead)
    moved = reassign_dead(torch.tensor(parent[start:]), torch.tensor(dead[start:]), torch.tensor(quota))
    assert moved.tolist() == expected[start:].tolist()
    assert (moved.numpy() == parent[start:])[~dead[start:]].all(), "a living child moved"


def test_schedule() -> None:
    doubling = reallocation_steps(3_000, "double", 10_000, until=50_000)
    assert sorted(doubling) == [3_000, 9_000, 19_000, 29_000, 39_000, 49_000]
    additive = sorted(reallocation_steps(3_000, "add", 10_000, until=50_000))
    assert (len(additive), additive[:2], additive[-1]) == (16, [3_000, 6_002], 48_240)
    assert max(b - a for a, b in pairwise(additive)) == 3_030
    assert reallocation_steps(0, "double", 10, until=100) == set()
    assert reallocation_steps(100, "double", 10, until=100) == set()
