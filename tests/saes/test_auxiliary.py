"""The auxiliary loss on a part of a batch's activations."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from saeforest.errors import InputError
from saeforest.optim import OptimConfig
from saeforest.saes import (
    AuxConfig,
    RunLength,
    Setup,
    TopKConfig,
    TreeAuxConfig,
    TreeConfig,
    build,
    training_of,
)
from saeforest.saes.normalizer import TokenStats
from saeforest.saes.tree_training import TreeTraining

D, N, STRIDE = 10, 22, 4
REFERENCE: dict[str, Any] = {"detach": True, "bias": False, "rescale": True}


def rand(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def setup() -> Setup:
    return Setup(RunLength(10, N), OptimConfig(batch_size=N), torch.float64)


def test_dead_features_reconstruct_the_residual_of_every_nth_activation() -> None:
    aux = AuxConfig(k=3, stride=STRIDE, **REFERENCE)
    sae = build(TopKConfig((30,), (4,), aux=aux), D, seed=1).double()
    training, x = training_of(sae, setup()), rand(N, D, seed=0)
    dead = torch.arange(30) % 3 == 0
    sae.encoder.data[dead] *= 0.01  # they are not among the largest
    training.steps_since_fired[dead] = training.dead_steps
    step = training(x, x)
    assert not step.fired[dead].any()

    u, stats = sae.normalize(x[::STRIDE])
    h = torch.where(dead, ((u - sae.b_dec) @ sae.encoder.T).relu(), 0).detach()
    best = h.topk(3).indices
    code = torch.zeros_like(h).scatter(1, best, h.gather(1, best))
    residual = (x - step.x_hat)[::STRIDE]
    error = code @ sae.decoder * stats.std - residual
    spread = residual - residual.mean(1, keepdim=True)
    expected = error.square().mean() / spread.square().mean()
    (found,) = step.terms["auxiliary"]
    torch.testing.assert_close(found, expected.detach())


@pytest.mark.parametrize("layer", [0, 1])
def test_a_layer_of_a_tree_does_so_too(layer: int) -> None:
    def loss(stride: int, rows: slice) -> torch.Tensor:
        aux = TreeAuxConfig(layers=(0, 1), k=3, stride=stride, **REFERENCE)
        training = training_of(build(TreeConfig((10, 40), (3, 1), aux=aux), D, seed=1).double(), setup())
        assert isinstance(training, TreeTraining)
        sae = training.sae
        x, residual, dead = rand(N, D, seed=0), rand(N, D, seed=2), torch.arange(50) % 2 == 0
        u, stats = sae.normalize(x)
        h, u = sae.pre_activations(torch.float64), sae.centered(u)
        code = sae.encode_centered(h, u).detach()
        part = TokenStats(*(s[rows] for s in stats))
        return training._auxiliary(layer, h, u[rows], code[rows], residual[rows], part, dead).detach()

    every = slice(None)
    torch.testing.assert_close(loss(STRIDE, every), loss(1, slice(None, None, STRIDE)))
    assert loss(STRIDE, every) != loss(1, every)


def test_a_stride_is_one_or_more() -> None:
    with pytest.raises(InputError, match=r"sae\.aux\.stride = 0: expected 1 or more"):
        AuxConfig(stride=0)
