"""Null parents match in level and density and stand in another tree; AUC by counting all pairs."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from oracles.relatedness import auc as all_pairs
from saeforest.measures.matched import NullParents, auc, tops
from saeforest.structure.forest import Forest


def a_forest(seed: int = 0) -> Forest:
    rng = np.random.default_rng(seed)
    parent = np.concatenate([[-1] * 8, rng.integers(-1, 8, 16), rng.integers(-1, 24, 40)])
    return Forest(torch.tensor(parent), (8, 16, 40))


@pytest.mark.parametrize("seed", range(3))
def test_null_parents_match(seed: int) -> None:
    forest, rng = a_forest(seed), np.random.default_rng(seed)
    fired = rng.integers(0, 60, forest.d_sae)
    nulls = NullParents(forest, fired)
    drawn = set[int | None]()
    for p, c in forest.edges.T.tolist():
        if fired[p] == 0:
            continue
        allowed = [
            q
            for q in range(forest.d_sae)
            if forest.layer[q] == forest.layer[p]
            and len(forest.children(q)) > 0
            and forest.path(q)[0] != forest.path(c)[0]
            and 0.5 <= fired[q] / fired[p] <= 2
        ]
        nearest = sorted(abs(np.log(fired[q] / fired[p])) for q in allowed)[:5]
        for _ in range(3):
            q = nulls.draw((p, c), rng, lambda _: True)
            assert (q is None) == (not allowed)
            if q is not None:
                assert q in allowed
                assert abs(np.log(fired[q] / fired[p])) <= nearest[-1]
                drawn.add(q)
        assert nulls.draw((p, c), rng, lambda _: False) is None
        if allowed:
            assert nulls.draw((p, c), rng, lambda q, only=allowed[0]: q == only) in (allowed[0], None)
    assert len(drawn) > 5


def test_levels_and_tops() -> None:
    # 0 > 1 > 2 and 3 > 4, without layers
    forest = Forest(torch.tensor([-1, 0, 1, -1, 3]), (5,), layered=False)
    assert forest.level.numpy().tolist() == [0, 1, 2, 0, 1]
    assert tops(forest).tolist() == [0, 0, 0, 3, 3]
    layered = a_forest()
    assert tops(layered).tolist() == [layered.path(f)[0] for f in range(layered.d_sae)]
    nulls = NullParents(forest, np.full(5, 9))
    assert nulls.draw((0, 1), np.random.default_rng(0), lambda _: True) == 3
    assert nulls.draw((1, 2), np.random.default_rng(0), lambda _: True) is None  # 4 has no child


def test_auc_counts_pairs() -> None:
    rng = np.random.default_rng(0)
    edge, matched = rng.integers(0, 6, 30) / 3, rng.integers(0, 5, 30) / 3  # with ties
    weights = rng.integers(0, 4, (7, 30)).astype(float)
    expected = [all_pairs(w, edge.tolist(), matched.tolist()) for w in weights.tolist()]
    assert auc(edge, matched, weights, weights) == pytest.approx(expected, abs=1e-12)
    one = np.ones((1, 2))
    assert auc(np.array([2.0, 3.0]), np.array([0.0, 1.0]), one, one) == 1
    assert auc(np.array([0.0, 1.0]), np.array([2.0, 3.0]), one, one) == 0
    assert auc(np.ones(2), np.ones(2), one, one) == 0.5
