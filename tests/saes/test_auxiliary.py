"""The auxiliary loss on a part of a batch's activations."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from saeforest.errors import InputError
from saeforest.kernels import sparse_decode
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
from saeforest.structure.forest import group_by_parent

D, N, STRIDE = 10, 22, 4
REFERENCE: dict[str, Any] = {"detach": True, "bias": False, "rescale": True}


def rand(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gradient(weight: torch.Tensor) -> torch.Tensor:
    assert weight.grad is not None
    return weight.grad.to_dense() if weight.grad.is_sparse else weight.grad


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
        errors = [-residual[rows]] * 2
        return training.auxiliary([layer], h, [u[rows]] * 2, code[rows], errors, part, dead)[layer].detach()

    every = slice(None)
    torch.testing.assert_close(loss(STRIDE, every), loss(1, slice(None, None, STRIDE)))
    assert loss(STRIDE, every) != loss(1, every)


def test_the_layers_of_a_tree_do_so_together_as_each_by_itself() -> None:
    """One product for all layers, and gradients of few rows, give the loss and the gradients of layer after layer."""
    aux = TreeAuxConfig(layers=(0, 1, 2), k=3, stride=STRIDE, **REFERENCE)
    training = training_of(build(TreeConfig((10, 20, 40), (3, 1, 1), aux=aux), D, seed=1).double(), setup())
    assert isinstance(training, TreeTraining)
    sae, x, dead = training.sae, rand(N, D, seed=0), torch.arange(70) % 2 == 0
    errors = [rand(N, D, seed=2 + i) for i in range(3)]
    u, stats = sae.normalize(x)
    h, u = sae.pre_activations(torch.float64), sae.centered(u)
    code = sae.encode_centered(h, u).detach()
    found = training.auxiliary([0, 1, 2], h, [u] * 3, code, errors, stats, dead)
    torch.stack(list(found.values())).sum().backward()
    weights = (sae.encoder, sae.decoder, sae.b_dec)
    together = [gradient(w) for w in weights]
    total, u = torch.zeros((), dtype=torch.float64), u[::STRIDE]
    for layer, error in enumerate(errors):
        mine = dead & (torch.arange(70) >= sae.starts[layer]) & (torch.arange(70) < sae.starts[layer + 1])
        features = group_by_parent(sae.parent, mine.nonzero().flatten())
        chosen = h.exact(u, sae.gate(h, u, sae.active(code)[::STRIDE], features, aux.k))
        assert chosen.values.count_nonzero(1).unique().numel() > 1  # some places are empty
        e_hat = sparse_decode(chosen.values, chosen.ids, sae.decoder) * stats.std[::STRIDE]
        residual = -error[::STRIDE]
        loss = (e_hat - residual).square().mean() / residual.var(1, correction=0).mean()
        torch.testing.assert_close(found[layer], loss)
        total = total + loss
    sae.zero_grad()
    total.backward()
    for ours, weight in zip(together, weights, strict=True):
        torch.testing.assert_close(ours, gradient(weight))
        assert ours.any()


def test_a_stride_is_one_or_more() -> None:
    with pytest.raises(InputError, match=r"sae\.aux\.stride = 0: expected 1 or more"):
        AuxConfig(stride=0)
