"""The penalty on children whose own detector is on where their parent is silent."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from saeforest import InputError
from saeforest.optim import OptimConfig
from saeforest.saes import AllocationConfig, RunLength, Setup, TreeAuxConfig, TreeConfig, TreeSAE
from saeforest.saes.parents_from_data import FromDataConfig
from saeforest.saes.tree_training import TreeTraining

SIZES, K, D, N = (6, 8, 10), (2, 2, 2), 12, 16


def start(silence: float, **settings: Any) -> TreeTraining:
    """In float64, with the first 9 tokens of a batch as the sample."""
    allocation = AllocationConfig(from_data=FromDataConfig(sample=9))
    config = TreeConfig(
        SIZES,
        K,
        "none",
        silence=silence,
        aux=TreeAuxConfig(coefficient=0.0),
        allocation=allocation,
        **settings,
    )
    sae = TreeSAE(config, D, seed=1).to(torch.float64)
    run = RunLength(30, N)
    return TreeTraining(
        sae, Setup(run, OptimConfig(lr=0.02, batch_size=N, precision="float32"), torch.float64)
    )


def batch(seed: int) -> torch.Tensor:
    return torch.randn(N, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def dense_penalty(training: TreeTraining, x: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
    """From all pre-activations, the code, and where detectors are on."""
    sae = training.sae
    u = x - sae.b_dec
    h = u @ sae.encoder.T
    active = sae.encode(x).dense(sae.d_sae).detach() > 1e-3
    total = x.new_zeros(())
    for t in range(9):
        for c in range(6, 24):
            p = int(sae.parent[c])
            if own[t, c] and p >= 0 and not active[t, p]:
                total = total + h[t, c] ** 2
    return total / u[:9].detach().square().sum()


def test_the_penalty_and_its_gradients() -> None:
    training, without = start(0.3), start(0.0)
    x = batch(1)
    h = (x - training.sae.b_dec) @ training.sae.encoder.T
    own = torch.zeros(N, 24, dtype=torch.bool)
    for first, end in ((6, 14), (14, 24)):
        own[:, first:end].scatter_(1, h[:, first:end].topk(4).indices, True)
    own &= h > 1e-3
    penalty = dense_penalty(training, x, own)
    step, plain = training(x, x), without(x, x)
    assert float(penalty.detach()) > 0.01
    torch.testing.assert_close(step.loss, plain.loss + 0.3 * penalty)
    logged = step.terms["silence"][0]
    assert logged is not None
    torch.testing.assert_close(logged, penalty.detach())
    (plain.loss + 0.3 * dense_penalty(without, x, own)).backward()
    step.loss.backward()
    for ours, theirs in zip(training.sae.parameters(), without.sae.parameters(), strict=True):
        if ours.requires_grad:
            torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.mark.parametrize("settings", [{}, {"selection": "closed"}, {"reads": "residual"}], ids=str)
def test_children_become_silent(settings: dict[str, Any]) -> None:
    """The penalty falls below a fifth of what it is at the start."""
    training = start(10.0, **settings)
    found = []
    for number in range(30):
        term = training.step(batch(number)).terms["silence"][0]
        assert term is not None
        found.append(float(term))
    assert found[-1] < 0.2 * found[0]


def test_it_looks_at_more_tokens_than_the_evidence_for_parents_keeps() -> None:
    rule = FromDataConfig(sample=9, window=4, every=2, min_count=1)
    config = TreeConfig(
        SIZES, K, "none", silence=0.1, allocation=AllocationConfig(rule="data", from_data=rule)
    )
    training = TreeTraining(TreeSAE(config, D, seed=1), Setup(RunLength(30, N), OptimConfig(batch_size=N)))
    events = [event for number in range(4) for event in training.step(batch(number).float()).events]
    assert any(event.log["event"] == "parents" for event in events)


def test_a_negative_weight_is_refused() -> None:
    with pytest.raises(InputError, match=r"sae\.silence = -1: expected 0 or more"):
        TreeConfig(SIZES, K, silence=-1)
