"""Features that change places with those of an earlier layer, and detectors and windows of small budgets."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from saeforest import InputError, SparseCode
from saeforest.optim import OptimConfig
from saeforest.saes import AllocationConfig, RunLength, Setup, TreeConfig, TreeSAE
from saeforest.saes.parents_from_data import Evidence, FromDataConfig, Seen
from saeforest.saes.promote import places, rearranged
from saeforest.saes.tree_training import TreeTraining
from saeforest.structure.forest import Forest

SIZES, D = (3, 5, 8), 12
STARTS = (0, 3, 8, 16)
CPU = torch.device("cpu")


def batch(n: int, seed: int) -> Tensor:
    """Non-negative sums of a few of 16 directions, the first of which are more frequent."""
    data = torch.Generator().manual_seed(seed)
    directions = torch.randn(16, D, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    often = torch.linspace(0.6, 0.05, 16)
    return ((torch.rand(n, 16, generator=data) < often) * 1.0).double() @ directions


def start(n_steps: int = 40, **settings: Any) -> TreeTraining:
    data = FromDataConfig(
        **{"every": 8, "promote": 1.2, "sample": 32, "window": 128, "min_count": 4, **settings}
    )
    allocation = AllocationConfig(
        rule="data", start="root", root_reset_at=0, dead_after_tokens=200, from_data=data
    )
    config = TreeConfig(SIZES, (3,), "none", selection="closed", budget="batch", allocation=allocation)
    sae = TreeSAE(config, D, seed=1).to(torch.float64)
    return TreeTraining(
        sae, Setup(RunLength(n_steps, 32), OptimConfig(lr=0.02, batch_size=32), torch.float64)
    )


def test_places_by_hand() -> None:
    """docs/spec/test-vectors.md#promotion."""
    energy = torch.tensor([9.0, 1.0, 4.0, 2.0, 8.0, 7.0, 3.0])
    starts = (0, 2, 4, 7)
    # Feature 1 (energy 1) and 4 (8) change places: 8 > 1.5; 0 (9) stays before 5 (7). Then 1, now in the last layer, is
    # out; 3 (2) goes for 5 (7), and 2 (4) stays, as 3 is less.
    assert places(energy, starts, 1.5).tolist() == [0, 4, 2, 5, 1, 3, 6]
    assert places(energy, starts, 8.0).tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert places(energy, (0, 7), 1.5).tolist() == list(range(7))


def slow_places(energy: list[float], starts: tuple[int, ...], times: float) -> list[int]:
    """One pair after the other."""
    at = list(range(len(energy)))
    for start, end in list(pairwise(starts))[:-1]:
        weak = sorted(range(start, end), key=lambda i: (energy[at[i]], i))
        strong = sorted(range(end, len(at)), key=lambda i: (-energy[at[i]], i))
        pairs = [(w, s) for w, s in zip(weak, strong, strict=False) if energy[at[s]] > times * energy[at[w]]]
        for w, s in pairs:
            at[w], at[s] = at[s], at[w]
    return at


@pytest.mark.parametrize("seed", range(30))
def test_places_and_parents_equal_slow_ones(seed: int) -> None:
    """And the result is a forest in which nobody has a parent it had not before."""
    rng = random.Random(seed)
    energy = [float(rng.randrange(12)) for _ in range(16)]
    parent = [-1] * 3 + [rng.randrange(-1, 3) for _ in range(5)] + [rng.randrange(-1, 8) for _ in range(8)]
    at = places(torch.tensor(energy), STARTS, 1.5)
    assert at.tolist() == slow_places(energy, STARTS, 1.5)
    layer = np.repeat(np.arange(3), SIZES)
    for previous in (False, True):
        new = rearranged(torch.tensor(parent), at, STARTS, previous=previous)
        Forest(new, SIZES)
        for i, old in enumerate(at.tolist()):
            expected = -1
            if parent[old] >= 0:
                there = at.tolist().index(parent[old])
                gap = layer[i] - layer[there]
                expected = there if gap == 1 or (gap > 1 and not previous) else -1
            assert int(new[i]) == expected


def test_features_take_everything_with_them() -> None:
    """A feature that changes places keeps its weights, its moments, its silence, its evidence, and what it codes."""
    training = start()
    for number in range(1, 9):
        before = {
            "encoder": training.sae.encoder.detach().clone(),
            "parent": training.sae.parent.clone(),
        }
        training.step(batch(32, number))
        if number < 8:
            assert torch.equal(training.sae.parent, before["parent"])
    # A second training, without promotion, is the same up to the places.
    plain = start(promote=0.0)
    for number in range(1, 9):
        plain.step(batch(32, number))
    old, new = plain.sae, training.sae
    at = [int((old.encoder == row).all(1).nonzero()) for row in new.encoder]
    assert sorted(at) == list(range(16))
    assert sum(i != j for i, j in enumerate(at)) >= 2
    assert torch.equal(new.decoder, old.decoder[at])
    for weight, other in ((new.encoder, old.encoder), (new.decoder, old.decoder)):
        for name in ("exp_avg", "exp_avg_sq"):
            assert torch.equal(training.optimizer.state[weight][name], plain.optimizer.state[other][name][at])
    assert torch.equal(training.steps_since_fired, plain.steps_since_fired[at])
    seen, expected = training.allocator.evidence, plain.allocator.evidence
    assert seen is not None
    assert expected is not None
    to = torch.tensor([*torch.tensor(at).argsort().tolist(), 16])
    assert torch.equal(seen.own_ids.long(), to[expected.own_ids.long()])
    assert torch.equal(new.parent, rearranged(old.parent, torch.tensor(at), STARTS, previous=False))
    x = batch(20, 99)
    if torch.equal(new.parent == -1, old.parent[at] == -1):  # nobody lost its parent
        torch.testing.assert_close(new.decode(new.encode(x)), old.decode(old.encode(x)))


def test_promotion_ends_with_the_moves_of_the_living_and_is_logged() -> None:
    """The last update sees none, so that whoever lost its parent can find another."""
    training, seen = start(until=0.7), []
    for number in range(1, 41):
        events = training.step(batch(32, number)).events
        seen += [e.log for e in events if e.log["event"] == "promoted"]
        Forest(training.sae.parent, SIZES)
    assert {log["step"] for log in seen} <= {8, 16}
    assert seen[0]["step"] == 8
    assert seen[0]["features"] >= 2
    assert seen[0]["moved"] >= 0


@pytest.mark.parametrize("promote", [-1.0, 0.5, float("nan")])
def test_a_promotion_that_would_never_end_is_refused(promote: float) -> None:
    with pytest.raises(InputError, match=r"from_data\.promote"):
        FromDataConfig(promote=promote)


# -- budgets below a feature for each layer


def test_a_closed_selection_takes_one_k_for_the_whole_tree() -> None:
    whole = TreeConfig(SIZES, (3,), "none", selection="closed")
    x = torch.randn(30, D, generator=torch.Generator().manual_seed(0))
    one, three = (TreeSAE(config, D, seed=2) for config in (whole, replace(whole, k_per_layer=(1, 1, 1))))
    a, b = one.encode(x), three.encode(x)
    assert torch.equal(a.dense(16), b.dense(16))
    assert int(a.active().sum(1).max()) == 3
    with pytest.raises(InputError, match="k_per_layer"):
        TreeConfig(SIZES, (3,))
    with pytest.raises(InputError, match="size of the whole tree"):
        TreeConfig(SIZES, (17,), selection="closed")


@pytest.mark.parametrize("selection", ["closed", "layer"])
def test_detectors_that_share_the_batch_are_the_largest_of_all_tokens(selection: Any) -> None:
    data = FromDataConfig(detectors="batch")
    k = (2,) if selection == "closed" else (1, 1, 2)
    config = TreeConfig(
        SIZES, k, "none", selection=selection, allocation=AllocationConfig(rule="data", from_data=data)
    )
    sae = TreeSAE(config, D, seed=2).to(torch.float64)
    x = batch(40, 3)
    x[:10] *= 0.1  # tokens on which nothing is on
    h = sae.pre_activations(torch.float64)
    dense = x @ sae.encoder.detach().T
    expected = torch.zeros(40, 16, dtype=torch.bool)
    parts = [(0, 16, 2)] if selection == "closed" else [(3, 8, 2), (8, 16, 4)]
    for first, end, each in parts:
        bound = dense[:, first:end].flatten().topk(each * 40).values[-1]
        expected[:, first:end] = dense[:, first:end] >= bound
    expected[:, :3] = False
    found = sum(code.dense(16) for code in sae.own_detectors(h, [x] * 3))
    assert torch.equal(torch.as_tensor(found) > 0, expected & (dense > 1e-3))
    assert int(expected.sum(1).max()) > 2


def test_the_window_is_as_long_as_a_rare_detector_needs() -> None:
    """A feature is on at 128 tokens of it on average; a token has room for more features than the mean."""
    for d_sae, k, tokens in ((168, 2, 10_752), (6144, 32, 24_576), (100, 200, 64)):
        evidence = Evidence(FromDataConfig(sample=64), d_sae, k, CPU)
        assert evidence.n_steps == tokens // 64
        assert evidence.own_ids.shape[2] == max(2 * k, k + 16)
    assert Evidence(FromDataConfig(sample=64), 168, 2, CPU, batch=32).n_steps == 336, (
        "a step has no more tokens"
    )
    full = SparseCode(torch.ones(1, 12), torch.arange(12)[None])
    evidence = Evidence(FromDataConfig(sample=1, window=1), 20, 2, CPU)
    evidence.add(Seen(full, full), 1)
    assert set(evidence.active_ids.flatten().tolist()) == {*range(12), 20}
