"""Matching Pursuit SAEs against an oracle, autograd, and by hand (docs/spec/baselines.md#matching-pursuit)."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from oracles.allocation import FloatArray
from oracles.matching_pursuit import MatchingPursuitOptions, MatchingPursuitOracle, PursuitForward
from oracles.tree import AdamState, adam_step
from sae_cases import floats
from saeforest.optim import OptimConfig
from saeforest.saes import (
    LayerNorm,
    MatchingPursuitConfig,
    MatchingPursuitSAE,
    RunLength,
    Setup,
    load_sae,
    save_sae,
)
from saeforest.saes.matching_pursuit import MatchingPursuitTraining
from saeforest.saes.training import geometric_median

D, D_SAE, K = 12, 20, 6
BATCH, N_STEPS, LR = 16, 30, 0.02
SIZES: dict[str, Any] = {"layer_sizes": (D_SAE,), "k_per_layer": (K,)}

CASES = {
    "reference": MatchingPursuitConfig(**SIZES),
    "raw, loose": MatchingPursuitConfig(**SIZES, normalize_activations="none", residual_tolerance=1.0),
    "a factor": MatchingPursuitConfig(**SIZES, normalize_activations=0.7, residual_tolerance=0.5),
    "decoder bias": MatchingPursuitConfig(**SIZES, decoder_bias=True, residual_tolerance=0.8),
    "more iterations than atoms are good for": MatchingPursuitConfig((7,), (7,), residual_tolerance=0.0),
}


class BiasedOracle(MatchingPursuitOracle):
    """The oracle, with b_dec trained too: it is taken off before and put back after."""

    def step(self, x: Any, lr: float) -> dict[str, Any]:
        forward, b_dec = self.forward(x), self.b_dec
        result = super().step(x, lr)
        gradient = self.bias_gradient(forward, result["D"])
        state = self.adam.setdefault("b_dec", AdamState(np.zeros(self.d), np.zeros(self.d)))
        constants = (self.options.beta1, self.options.beta2, self.options.adam_eps)
        self.b_dec = adam_step(b_dec, gradient, state, self.n_steps, lr, *constants)
        return {**result, "grad_b_dec": gradient}

    def losses_and_gradients(self, forward: PursuitForward) -> dict[str, Any]:
        return {**super().losses_and_gradients(forward), "D": self.D}

    def bias_gradient(self, forward: PursuitForward, D: FloatArray) -> FloatArray:
        """x - x_hat = std r, and of r = P_m ... P_1 (u - b_dec), P_s = I - d_s d_s', the gradient is P_1 ... P_m g."""
        x = forward.x
        variance = ((x - x.mean()) ** 2).sum() / (x.size - 1) + self.options.var_eps
        total = np.zeros(self.d)
        for t, pursuit in enumerate(forward.pursuits):
            g = forward.std[t] * 2.0 * (x[t] - forward.xhat[t]) / x.size / variance
            for j in reversed(pursuit.features):
                g = g - (g @ D[j]) * D[j]
            total -= g
        return total


def make_sae(config: MatchingPursuitConfig, dtype: torch.dtype = torch.float64) -> MatchingPursuitSAE:
    sae = MatchingPursuitSAE(replace(config, dead_after_tokens=3 * BATCH), D, seed=1).to(dtype)
    with torch.no_grad():
        if config.decoder_bias:
            sae.b_dec.copy_(0.3 * torch.randn(D, generator=torch.Generator().manual_seed(2)))
        sae.decoder.copy_(F.normalize(sae.decoder))  # in float64, of norm 1 to its last digit
    if config.normalize_activations == "layer_norm":
        sae.normalizer = LayerNorm(exact_inverse=True)
    return sae


def training_of(sae: MatchingPursuitSAE) -> MatchingPursuitTraining:
    optim = OptimConfig(lr=LR, batch_size=BATCH)
    return MatchingPursuitTraining(sae, Setup(RunLength(N_STEPS, BATCH), optim))


def make_oracle(sae: MatchingPursuitSAE) -> MatchingPursuitOracle:
    how = sae.config.normalize_activations
    options = MatchingPursuitOptions(
        normalize="token" if how == "layer_norm" else how,
        tol=sae.config.residual_tolerance,
        dead_steps=3,
    )
    dictionary, bias = sae.decoder.detach().numpy().copy(), sae.b_dec.detach().numpy().copy()
    oracle = BiasedOracle if sae.config.decoder_bias else MatchingPursuitOracle
    return oracle(dictionary, sae.config.k_per_layer[0], options, bias)


def make_data(n: int = BATCH * N_STEPS, seed: int = 5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(5, D, generator=generator, dtype=torch.float64)
    x = torch.randn(n, 5, generator=generator, dtype=torch.float64).relu() @ directions
    return x + 0.1 * torch.randn(n, D, generator=generator, dtype=torch.float64)


def close(got: Any, wanted: Any, what: str) -> None:
    got = got.detach().numpy() if isinstance(got, torch.Tensor) else np.asarray(got)
    np.testing.assert_allclose(got, wanted, rtol=1e-9, atol=1e-10, err_msg=what)


def train_beside_the_oracle(config: MatchingPursuitConfig) -> tuple[set[str], int]:
    """Compares every step; returns why activations stopped, and the most features that were dead at once."""
    sae = make_sae(config)
    oracle = make_oracle(sae)
    training = training_of(sae)
    trained = training.optimizer.param_groups
    assert len(trained) == (2 if config.decoder_bias else 1), "the dictionary counts once"
    stops, most_dead = set(), 0
    for step, x in enumerate(make_data().split(BATCH), 1):
        expected = oracle.step(x.numpy(), lr=LR)

        out = training(x, x)
        training.update(out.loss)
        close(sae.decoder.grad, expected["grad_D"], f"grad_D, step {step}")
        if config.decoder_bias:
            close(sae.b_dec.grad, expected["grad_b_dec"], f"grad_b_dec, step {step}")
        else:
            assert sae.b_dec.grad is None
        assert training.after_step(out, step) == []

        assert float(out.loss.detach()) == pytest.approx(expected["loss"], rel=1e-9)
        assert set(out.terms) == {"reconstruction"}
        assert floats(out.terms["reconstruction"]) == [pytest.approx(expected["recon"], rel=1e-9)]
        close(out.code.dense(sae.d_sae), expected["code"], f"code, step {step}")
        close(out.x_hat, expected["xhat"], f"reconstruction, step {step}")
        close(sae.decoder, oracle.D, f"dictionary, step {step}")
        close(sae.b_dec, oracle.b_dec, f"b_dec, step {step}")
        assert sae.encoder is sae.decoder
        assert training.steps_since_fired.tolist() == oracle.steps_since_fired.tolist()
        assert training.dead.tolist() == oracle.dead().tolist()
        stops |= {pursuit.stop for pursuit in expected["pursuits"]}
        most_dead = max(most_dead, int(training.dead.sum()))
    x = make_data(50, seed=6)
    close(sae.encode(x).dense(sae.d_sae), oracle.encode(x.numpy()), "code in use")
    close(sae(x), oracle.reconstruct(x.numpy()), "reconstruction in use")
    return stops, most_dead


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("gram_features", [0, 16_384], ids=["direct", "gram"])
def test_training_equals_the_oracle(name: str, gram_features: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("saeforest.saes.matching_pursuit._GRAM_FEATURES", gram_features)
    stops, most_dead = train_beside_the_oracle(CASES[name])
    met = {
        "reference": {"k", "repeat"},
        "raw, loose": {"k", "repeat", "tol"},
        "a factor": {"k", "repeat", "tol"},
        "decoder bias": {"k", "repeat", "tol"},
        "more iterations than atoms are good for": {"repeat", "empty"},
    }
    assert stops >= met[name], "the run must meet these reasons to stop"
    assert most_dead > 0, "the run must meet dead features"


def dense_loss(
    config: MatchingPursuitConfig, x: torch.Tensor, D: torch.Tensor, b_dec: torch.Tensor
) -> torch.Tensor:
    """The loss by one dense loop a token, for autograd; the code times the dictionary is what reconstructs."""
    how = config.normalize_activations
    mean, std = torch.zeros(len(x), 1).double(), torch.ones(len(x), 1).double()
    if how == "layer_norm":
        mean, std = x.mean(1, keepdim=True), x.std(1, keepdim=True) + 1e-5
    elif how != "none":
        std = std / float(how)
    rows = []
    for u in (x - mean) / std:
        r, z = u - b_dec, torch.zeros(len(D)).double()
        for _ in range(config.k_per_layer[0]):
            products = D @ r
            j = int(products.argmax())
            if products[j] <= 0:
                break
            repeated = bool(z[j] > 0)
            z = z + products[j] * F.one_hot(torch.tensor(j), len(D))
            r = r - products[j] * D[j]
            if repeated or float(r.detach().norm()) < config.residual_tolerance:
                break
        rows.append(z)
    x_hat = std * (torch.stack(rows) @ D + b_dec) + mean
    return (x_hat - x).square().mean() / (x.var() + 1e-8)


@pytest.mark.parametrize("name", CASES)
def test_gradients_equal_those_of_the_dense_formula(name: str) -> None:
    sae = make_sae(CASES[name])
    with torch.no_grad():
        sae.decoder.mul_(torch.linspace(0.9, 1.1, sae.d_sae)[:, None])  # off unit norm, as after a step
    x = make_data(40)
    training_of(sae)(x, x).loss.backward()
    D = sae.decoder.detach().clone().requires_grad_()
    b_dec = sae.b_dec.detach().clone().requires_grad_()
    dense_loss(CASES[name], x, D, b_dec).backward()
    close(sae.decoder.grad, D.grad, "dictionary")
    if CASES[name].decoder_bias:
        close(sae.b_dec.grad, b_dec.grad, "b_dec")


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("gram_features", [0, 16_384], ids=["direct", "gram"])
def test_code_in_float32_equals_the_oracle(
    name: str, gram_features: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("saeforest.saes.matching_pursuit._GRAM_FEATURES", gram_features)
    sae = make_sae(CASES[name], torch.float32)
    oracle = make_oracle(sae)
    x = make_data(60)
    code = sae.encode(x.float()).detach()
    np.testing.assert_allclose(code.dense(sae.d_sae), oracle.encode(x.numpy()), atol=2e-5)
    np.testing.assert_allclose(sae(x.float()).detach(), oracle.reconstruct(x.numpy()), atol=5e-5)
    for ids, active in zip(code.ids, code.active(), strict=True):
        assert len(ids[active].unique()) == int(active.sum()), "a feature has one slot"
    assert not code.ids[~code.active()].any()


# By hand


def with_atoms(rows: list[list[float]], k: int, tolerance: float = 5e-3) -> MatchingPursuitSAE:
    config = MatchingPursuitConfig(
        (len(rows),), (k,), normalize_activations="none", residual_tolerance=tolerance
    )
    sae = MatchingPursuitSAE(config, len(rows[0]))
    with torch.no_grad():
        sae.decoder.copy_(torch.tensor(rows))
    return sae


@pytest.fixture(params=[0, 16_384], ids=["direct", "gram"])
def _either_path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("saeforest.saes.matching_pursuit._GRAM_FEATURES", request.param)


@pytest.mark.usefixtures("_either_path")
def test_vector_16_of_the_specification() -> None:
    sae = with_atoms([[1.0, 0.0], [0.0, 1.0]], 2)
    code = sae.encode(torch.tensor([[3.0, 4.0]]))
    assert code.ids.tolist() == [[1, 0]]
    assert code.values.tolist() == [[4.0, 3.0]]
    assert sae(torch.tensor([[3.0, 4.0]])).tolist() == [[3.0, 4.0]]

    # (1, 1): first (.8, .6) by 1.4; of the rest (-.12, .16) no atom has more than a rounding error.
    sae = with_atoms([[1.0, 0.0], [0.8, 0.6]], 2)
    code = sae.encode(torch.tensor([[1.0, 1.0]]))
    torch.testing.assert_close(code.dense(2), torch.tensor([[0.0, 1.4]]))
    torch.testing.assert_close(sae(torch.tensor([[1.0, 1.0]])), torch.tensor([[1.12, 0.84]]))


@pytest.mark.usefixtures("_either_path")
def test_an_atom_chosen_again_adds_to_its_slot_and_is_the_last() -> None:
    """(0, 1), (.8, .6), (0, -1), and (.8, .6) again; a fifth iteration would find more."""
    rows = [[0.8, 0.6], [0.0, 1.0], [0.0, -1.0], *3 * [[-1.0, 0.0]]]
    x = torch.tensor([1.0, 2.1])
    r, code = x.numpy().astype(np.float64), np.zeros(6)
    for j in (1, 0, 2, 0):
        products = np.array(rows) @ r
        assert products.argmax() == j
        code[j] += products[j]
        r = r - products[j] * np.array(rows[j])
    assert (np.array(rows) @ r).max() > 0.05
    got = with_atoms(rows, 6).encode(x).detach()
    np.testing.assert_allclose(got.dense(6), code, rtol=1e-5)
    assert got.ids.tolist() == [1, 0, 2, 0, 0, 0]
    assert got.values[3:].tolist() == [0, 0, 0], "one slot a feature"
    residual = x - with_atoms(rows, 6)(x).detach()
    np.testing.assert_allclose(residual, r, atol=1e-6)


@pytest.mark.usefixtures("_either_path")
@pytest.mark.parametrize(("tolerance", "l0"), [(0.0, 3), (0.9, 3), (1.1, 2), (2.3, 1), (50.0, 1)])
def test_the_tolerance_stops_each_activation_by_itself(tolerance: float, l0: int) -> None:
    """The residuals of (3, 2, 1) are (0, 2, 1), of norm 2.24, and (0, 0, 1): the first is taken in any case."""
    sae = with_atoms([[1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0]], 3, tolerance)
    x = torch.tensor([[3.0, 2.0, 1.0], [300.0, 200.0, 100.0], [0.0, 0.0, 0.0], [-1.0, -1.0, -1.0]])
    code = sae.encode(x)
    assert code.active().sum(1).tolist() == [l0, 3, 0, 0]
    assert torch.equal(sae.encode(x[0]).dense(3), code.dense(3)[0])


def test_a_residual_at_the_tolerance_goes_on() -> None:
    sae = with_atoms([[1.0, 0.0], [0.0, 1.0]], 2, 1.0)
    assert sae.encode(torch.tensor([3.0, 1.0])).active().sum() == 2


def test_every_iteration_takes_the_square_of_its_coefficient_off_the_residual() -> None:
    x = make_data(40)
    configs = [
        MatchingPursuitConfig((D_SAE,), (k,), normalize_activations="none", residual_tolerance=0.0)
        for k in range(1, K + 1)
    ]
    energy, total = x.square().sum(1), torch.zeros(len(x)).double()
    for config in configs:
        sae = make_sae(config)
        amount = sae.encode(x).values.sum(1) - total
        left = (x - sae(x).detach()).square().sum(1)
        torch.testing.assert_close(energy - left, amount**2)
        assert (amount >= -1e-12).all()
        energy, total = left, total + amount
    assert energy.sum() < x.square().sum() / 3


def test_both_paths_and_any_slices_choose_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    sae = make_sae(CASES["reference"], torch.float32)
    x = make_data(60).float()
    gram = sae.encode(x)
    monkeypatch.setattr("saeforest.saes.matching_pursuit.DENSE_ENTRIES", 7 * D_SAE)
    slices = sae.encode(x)
    monkeypatch.setattr("saeforest.saes.matching_pursuit._GRAM_FEATURES", 0)
    direct = sae.encode(x)
    for other in (slices, direct):
        assert torch.equal(other.ids, gram.ids)
        torch.testing.assert_close(other.values, gram.values)


# One dictionary


def test_encoder_and_decoder_stay_one(tmp_path: Path) -> None:
    sae = MatchingPursuitSAE(MatchingPursuitConfig(**SIZES), D, seed=1)
    assert sae.encoder is sae.decoder
    assert len(list(sae.parameters())) == 3, "the dictionary, b_dec and b_enc, which is not trained"
    for moved in (sae.to(torch.float64), sae.to(torch.float32), sae.cpu(), copy.deepcopy(sae)):
        assert moved.encoder is moved.decoder

    other = MatchingPursuitSAE(MatchingPursuitConfig(**SIZES), D, seed=2)
    assert not torch.equal(other.decoder, sae.decoder)
    other.load_state_dict(sae.state_dict())
    assert other.encoder is other.decoder
    assert torch.equal(other.decoder, sae.decoder)

    save_sae(sae, tmp_path / "sae")
    loaded = load_sae(tmp_path / "sae")
    assert loaded.encoder is loaded.decoder
    assert torch.equal(loaded.decoder, sae.decoder)
    with torch.no_grad():
        loaded.encoder[3] = 7
    assert (loaded.decoder[3] == 7).all()


def test_b_dec_starts_at_the_geometric_median_only_where_it_is_trained() -> None:
    x = make_data(40).float() + 2
    config = MatchingPursuitConfig(**SIZES, normalize_activations="none")
    plain, biased = (MatchingPursuitSAE(replace(config, decoder_bias=on), D) for on in (False, True))
    for sae in (plain, biased):
        training_of(sae).initialize(x, x)
    assert not plain.b_dec.any()
    assert not plain.b_dec.requires_grad
    torch.testing.assert_close(biased.b_dec, geometric_median(x))
    assert biased.b_dec.requires_grad


def test_finish_scales_the_tolerance_with_the_input() -> None:
    sae = make_sae(CASES["a factor"])
    x = make_data(60)
    before = sae.encode(x).dense(D_SAE).detach()
    stopped_by_tolerance = make_oracle(sae).forward(x.numpy())
    assert "tol" in {p.stop for p in stopped_by_tolerance.pursuits}
    training_of(sae).finish()
    assert sae.config.residual_tolerance == pytest.approx(0.5 / 0.7)
    close(0.7 * sae.encode(x).dense(D_SAE), before, "code")
