"""Training that updates active rows only: its gradients, what it equals, and that it resumes exactly."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from saeforest.kernels import Bytes
from saeforest.kernels.low_precision import widened
from saeforest.optim import OptimConfig
from saeforest.saes import (
    AllocationConfig,
    AuxConfig,
    BatchTopKConfig,
    HSAEConfig,
    MatryoshkaConfig,
    RunLength,
    SAEConfig,
    Setup,
    TopKConfig,
    Training,
    TreeAuxConfig,
    TreeConfig,
    build,
    training_of,
)

D, BATCH, STEPS = 12, 8, 24
ALLOCATION = AllocationConfig(first=6, cap=6, dead_after_tokens=4 * BATCH)
AUX: dict[str, Any] = {"k": 5, "stride": 3, "detach": True, "bias": False, "rescale": True}
TREE = TreeConfig((8, 32), (2, 1), aux=TreeAuxConfig(layers=None, **AUX), allocation=ALLOCATION)
DEAD: dict[str, Any] = {"dead_after_tokens": 4 * BATCH}
SYSTEMS: dict[str, SAEConfig] = {
    "tree": TREE,
    "tree, closed, over the batch": replace(TREE, selection="closed", budget="batch", silence=0.1),
    "tree, residual": replace(TREE, reads="residual"),
    "topk": TopKConfig((40,), (3,), aux=AuxConfig(**AUX), encoder_bias=True, **DEAD),
    "batchtopk": BatchTopKConfig((40,), (3,), aux=AuxConfig(**AUX), **DEAD),
    "matryoshka": MatryoshkaConfig((8, 32), (3,), aux=AuxConfig(**AUX), **DEAD),
    # It has other terms too, whose gradients are dense.
    "hsae": HSAEConfig((8, 32), (3, 3), normalize_activations="none"),
}


def start(config: SAEConfig, **optim: Any) -> Training:
    sae = build(config, D, seed=1).double()
    settings = OptimConfig(**({"lr": 0.01, "batch_size": BATCH, "rows": "active"} | optim))
    return training_of(sae, Setup(RunLength(STEPS, BATCH), settings, torch.float64))


def batch(step: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(step)
    # Few directions in turns, so that features rest and wake.
    part = torch.randn(BATCH, 4, generator=generator, dtype=torch.float64)
    x = 0.1 * torch.randn(BATCH, D, generator=generator, dtype=torch.float64)
    first = 4 * (step % 3)
    x[:, first : first + 4] += part
    return x


class Oracle:
    """Dense Adam in NumPy, in which rows whose gradient is zero move later."""

    def __init__(self, weight: torch.Tensor, *, unit: bool) -> None:
        self.w, self.unit, self.t = weight.detach().numpy().copy(), unit, 0
        self.m, self.v = np.zeros_like(self.w), np.zeros_like(self.w)
        self.rest = np.zeros((len(self.w), 1))
        self.rested = 0

    def step(self, gradient: torch.Tensor, lr: float) -> None:
        self.t += 1
        g, w, ratio = gradient.numpy().copy(), self.w, 0.9 / math.sqrt(0.999)
        on = np.abs(g).sum(1, keepdims=True) > 0
        late = sum(np.where(n <= self.rest, ratio**n, 0) for n in range(1, self.t + 1))
        m, v = self.m / 0.9**self.rest, self.v / 0.999**self.rest  # as they were before the rest
        w = w - late * lr * (m / (1 - 0.9**self.t)) / (np.sqrt(v / (1 - 0.999**self.t)) + 6.25e-10)
        if self.unit:
            w = w / np.sqrt((w**2).sum(1, keepdims=True))
            g = g - (g * w).sum(1, keepdims=True) * w
        self.m = 0.9 * self.m + 0.1 * g
        self.v = 0.999 * self.v + 0.001 * g**2
        size = (self.m / (1 - 0.9**self.t)) / (np.sqrt(self.v / (1 - 0.999**self.t)) + 6.25e-10)
        self.w = np.where(on, w - lr * size, self.w)
        self.rest = np.where(on, 0, self.rest + 1)
        self.rested += int((~on).sum())


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_training_equals_dense_adam_in_which_rows_rest(name: str) -> None:
    """Against dense gradients of the same weights and an oracle of the optimizer, step by step."""
    training, twin = start(SYSTEMS[name]), start(SYSTEMS[name], rows="all")
    sae = training.sae
    oracles = {"encoder": Oracle(sae.encoder, unit=False), "decoder": Oracle(sae.decoder, unit=True)}
    for step in range(1, STEPS + 1):
        x = batch(step)
        if step == 1:
            training.initialize(x, x)
        twin.load_state_dict(training.state_dict())
        twin.optimizer.zero_grad()
        other = twin(x, x).loss
        other.backward()
        done = training(x, x)
        assert float(done.loss.detach()) == float(other.detach())
        training.update(done.loss)
        for key, oracle in oracles.items():
            found, expected = getattr(sae, key), getattr(twin.sae, key).grad
            dense = found.grad.to_dense() if found.grad.is_sparse else found.grad
            torch.testing.assert_close(dense, expected, rtol=1e-9, atol=1e-13)
            oracle.step(expected, lr=0.01)
            np.testing.assert_allclose(found.detach().numpy(), oracle.w, rtol=1e-8, atol=1e-11)
        torch.testing.assert_close(sae.b_dec.grad, twin.sae.b_dec.grad, rtol=1e-9, atol=1e-13)
        training.after_step(done, step)
        training.done = step
        for key, oracle in oracles.items():  # what else a system did to the weights
            oracle.w = getattr(sae, key).detach().numpy().copy()
    if name != "hsae":
        assert all(oracle.rested > STEPS for oracle in oracles.values())
        assert all(weight.grad is not None and weight.grad.is_sparse for weight in (sae.encoder, sae.decoder))


def test_moments_of_rows_that_begin_anew_or_move_follow_them() -> None:
    """A row like resting ones begins with the mean square that they have now, not with the one they had."""
    optimizer, weight = (training := start(TREE)).optimizer, training.sae.encoder
    for step in range(1, 8):
        training.step(batch(step))
    state = optimizer.state[weight]
    rest = (state["step"] - state["last"])[:, None]
    now = {"exp_avg": 0.9**rest * state["exp_avg"], "exp_avg_sq": 0.999**rest * state["exp_avg_sq"]}
    assert rest.max() > 1
    at = torch.arange(len(weight)).flip(0)
    optimizer.rearrange(weight, at)
    rest = (state["step"] - state["last"])[:, None]
    torch.testing.assert_close(0.9**rest * state["exp_avg"], now["exp_avg"][at])
    like = torch.arange(8, 20)
    optimizer.renew(weight, torch.tensor([2, 5]), like)
    assert not state["exp_avg"][[2, 5]].any()
    expected = now["exp_avg_sq"][at][like].mean(0)
    torch.testing.assert_close(state["exp_avg_sq"][[2, 5]], expected.expand(2, -1), rtol=1e-5, atol=1e-12)
    assert (state["last"][[2, 5]] == 7).all()


def test_moments_in_8_bits_begin_anew_and_move_too() -> None:
    optimizer, weight = (training := start(TREE, state="int8")).optimizer, training.sae.encoder
    for step in range(1, 8):
        training.step(batch(step))
    state = optimizer.state[weight]

    def square() -> torch.Tensor:
        return widened(Bytes(state["exp_avg_sq"], state["exp_avg_sq_exponents"]))

    before, at, like = square(), torch.arange(len(weight)).flip(0), torch.arange(8, 20)
    optimizer.rearrange(weight, at)
    assert torch.equal(square(), before[at])
    rest = (state["step"] - state["last"])[:, None]
    mean = (0.999**rest * square())[like].mean(0)
    optimizer.renew(weight, torch.tensor([2, 5]), like)
    assert not state["exp_avg"][[2, 5]].any()
    torch.testing.assert_close(square()[[2, 5]], mean.expand(2, -1), rtol=1 / 8, atol=float(mean.max()) / 1e9)


def test_a_row_that_rests_is_not_touched() -> None:
    training = start(TopKConfig((40,), (3,)))
    training.step(batch(1))
    before = training.sae.encoder.detach().clone()
    code = training.step(batch(2)).code
    rested = torch.ones(40, dtype=torch.bool)
    rested[code.ids[code.active()]] = False
    assert 0 < rested.sum() < 40
    assert torch.equal(training.sae.encoder[rested], before[rested])
    assert not torch.equal(training.sae.encoder[~rested], before[~rested])
