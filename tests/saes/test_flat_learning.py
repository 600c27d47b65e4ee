"""Flat SAEs learn on data from known directions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from saeforest.optim import OptimConfig
from saeforest.saes import (
    SAE,
    BatchTopKConfig,
    MatchingPursuitConfig,
    MatryoshkaConfig,
    MatryoshkaSAE,
    RunLength,
    SAEConfig,
    ThresholdConfig,
    TopKConfig,
    start_training,
)

# Learning


@dataclass(frozen=True)
class Learner:
    """A system, and what it must reach on data from 60 known directions."""

    config: SAEConfig
    fve: float
    found: float


SMALL: dict[str, Any] = {"layer_sizes": (64,), "k_per_layer": (4,)}
NESTED_SMALL: dict[str, Any] = {"layer_sizes": (32, 32), "k_per_layer": (4,)}
QUICK = ThresholdConfig(momentum=0.95)  # 300 steps are too few for the usual average
# Measured: FVE 0.85, 0.86, 0.82, 0.82, 0.93 and found 0.82, 0.72, 0.48, 0.40, 0.90; before training FVE 0.37 to 0.54
# and none found. The inner prefix of a Matryoshka SAE mixes directions, for it has too few features for all; alone it
# reaches an FVE of 0.69 and 0.74.
LEARNERS = {
    "topk": Learner(TopKConfig(**SMALL), 0.8, 0.7),
    "batchtopk": Learner(BatchTopKConfig(**SMALL, threshold=QUICK), 0.82, 0.6),
    "matryoshka": Learner(MatryoshkaConfig(**NESTED_SMALL), 0.78, 0.35),
    "matryoshka by batch": Learner(
        MatryoshkaConfig(**NESTED_SMALL, selection="batch", threshold=QUICK), 0.79, 0.25
    ),
    "matching pursuit": Learner(MatchingPursuitConfig(**SMALL), 0.9, 0.8),
}
TRUTH = F.normalize(torch.randn(60, 24, generator=torch.Generator().manual_seed(0)))


def sparse_data(n: int, generator: torch.Generator) -> torch.Tensor:
    on = torch.rand(n, 60, generator=generator) < 0.06
    return (on * torch.rand(n, 60, generator=generator)) @ TRUTH + 0.3


def trained(config: SAEConfig, n_steps: int, batch: int = 256, seed: int = 0) -> SAE:
    optim = OptimConfig(lr=6e-3, batch_size=batch)
    run = RunLength(n_steps, batch)
    training = start_training(config, 24, run, seed=seed, optim=optim, precision=torch.float32)
    generator = torch.Generator().manual_seed(1)
    for _ in range(n_steps):
        training.step(sparse_data(batch, generator))
    return training.finish()


def fve(x_hat: torch.Tensor, x: torch.Tensor) -> float:
    return 1 - float((x - x_hat).square().sum() / (x - x.mean(0)).square().sum())


@pytest.mark.parametrize("name", LEARNERS)
def test_every_system_learns(name: str) -> None:
    learner = LEARNERS[name]
    sae = trained(learner.config, 300)
    x = sparse_data(4096, torch.Generator().manual_seed(2))
    code = sae.encode(x)
    l0 = float(code.active(1e-3).sum(1).float().mean())
    cosines = (TRUTH @ sae.decoder.detach().T).amax(1)
    found = float((cosines > 0.9).float().mean())
    assert fve(sae(x).detach(), x) > learner.fve
    assert found > learner.found
    if isinstance(sae, MatryoshkaSAE):
        assert fve(sae.decode(*sae.encode_with_stats(x), layer=0).detach(), x) > 0.62
    if sae.at_most_k:
        assert l0 <= 4
    else:
        assert l0 == pytest.approx(4, abs=0.5), "the threshold keeps what training chose on average"


@pytest.mark.parametrize("name", LEARNERS)
def test_a_seed_fixes_the_weights(name: str) -> None:
    config = LEARNERS[name].config
    first, second, other = (trained(config, 12, batch=64, seed=seed) for seed in (5, 5, 6))
    for key, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[key]), key
    assert not torch.equal(first.decoder, other.decoder)
