"""TopK, BatchTopK and Matryoshka SAEs against their oracles; what all flat systems share, Matching Pursuit included."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from oracles.flat import (
    BatchTopKOracle,
    FlatOptions,
    FlatOracle,
    MatryoshkaOracle,
    TopKOracle,
)
from sae_cases import floats
from saeforest import saes
from saeforest.optim import OptimConfig
from saeforest.saes import (
    SAE,
    AuxConfig,
    BatchTopKConfig,
    BatchTopKSAE,
    LayerNorm,
    MatchingPursuitConfig,
    MatryoshkaConfig,
    MatryoshkaSAE,
    RunLength,
    SAEConfig,
    Setup,
    ThresholdConfig,
    TopKConfig,
    TopKSAE,
    Training,
    build,
    load_sae,
    save_sae,
    start_training,
)
from saeforest.saes.batch_topk import FollowedThreshold

D, D_SAE, K, GROUPS = 12, 24, 3, (6, 8, 10)
BATCH, N_STEPS, LR = 16, 30, 0.02
FlatSAE = TopKSAE | BatchTopKSAE | MatryoshkaSAE
ONE: dict[str, Any] = {"layer_sizes": (D_SAE,), "k_per_layer": (K,)}
NESTED: dict[str, Any] = {"layer_sizes": GROUPS, "k_per_layer": (K,)}

REFERENCE = AuxConfig(k=4)
DETACHED = AuxConfig(coefficient=0.1, k=4, detach=True, bias=False, rescale=True)
RESCALED = AuxConfig(coefficient=0.2, k=3, rescale=True)
NONE = AuxConfig(coefficient=0, k=4)
THRESHOLD = ThresholdConfig(start=5, momentum=0.9)

Config = TopKConfig | BatchTopKConfig | MatryoshkaConfig
CASES: dict[str, Config] = {
    "topk": TopKConfig(**ONE, aux=REFERENCE),
    "topk, encoder bias, detached": TopKConfig(**ONE, aux=DETACHED, encoder_bias=True),
    "topk, raw, no auxiliary": TopKConfig(**ONE, aux=NONE, normalize_activations="none"),
    "topk, a factor, encoder bias": TopKConfig(
        **ONE, aux=RESCALED, normalize_activations=0.7, encoder_bias=True
    ),
    "topk, every norm the same": TopKConfig(
        **ONE, aux=REFERENCE, normalize_activations="constant_norm_rescale"
    ),
    "batchtopk": BatchTopKConfig(**ONE, aux=REFERENCE, threshold=THRESHOLD),
    "batchtopk, raw, encoder bias": BatchTopKConfig(
        **ONE, aux=DETACHED, normalize_activations="none", encoder_bias=True, threshold=THRESHOLD
    ),
    "batchtopk, a factor, no auxiliary": BatchTopKConfig(
        **ONE, aux=NONE, normalize_activations=0.7, threshold=ThresholdConfig(start=1, momentum=0.0)
    ),
    "matryoshka": MatryoshkaConfig(**NESTED, aux=REFERENCE),
    "matryoshka, mean, encoder bias": MatryoshkaConfig(
        **NESTED, aux=DETACHED, prefix_weights="mean", encoder_bias=True
    ),
    "matryoshka, b_dec alone, raw": MatryoshkaConfig(
        **NESTED, aux=RESCALED, prefix_weights="mean_with_bias", normalize_activations="none"
    ),
    "matryoshka by batch, b_dec alone, encoder bias": MatryoshkaConfig(
        **NESTED,
        aux=REFERENCE,
        selection="batch",
        prefix_weights="mean_with_bias",
        encoder_bias=True,
        threshold=THRESHOLD,
    ),
    "matryoshka by batch, weights, a factor": MatryoshkaConfig(
        **NESTED,
        aux=RESCALED,
        selection="batch",
        prefix_weights=(0.5, 2.0, 1.25),
        normalize_activations=0.7,
        threshold=THRESHOLD,
    ),
    "matryoshka by batch, no auxiliary": MatryoshkaConfig(
        **NESTED, aux=NONE, selection="batch", threshold=THRESHOLD
    ),
}


SYSTEM_CONFIGS: dict[str, SAEConfig] = {
    "topk": TopKConfig(**ONE),
    "topk, encoder bias": TopKConfig(**ONE, encoder_bias=True, normalize_activations="none"),
    "batchtopk": BatchTopKConfig(**ONE),
    "batchtopk, encoder bias": BatchTopKConfig(**ONE, encoder_bias=True),
    "matryoshka": MatryoshkaConfig(**NESTED),
    "matryoshka by batch": MatryoshkaConfig(**NESTED, selection="batch", encoder_bias=True),
    "matching pursuit": MatchingPursuitConfig((D_SAE,), (K,), residual_tolerance=2.0),
    "matching pursuit, decoder bias": MatchingPursuitConfig((D_SAE,), (K,), decoder_bias=True),
}


def make_sae(config: Config, dtype: torch.dtype = torch.float64) -> FlatSAE:
    """With an encoder that is not the decoder's transpose, biases that are not zero, and 3 steps to death."""
    sae = build(replace(config, dead_after_tokens=3 * BATCH), D, seed=1)
    assert isinstance(sae, FlatSAE)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        sae.decoder.copy_(F.normalize(torch.randn(D_SAE, D, generator=generator)))
        sae.b_dec.copy_(0.3 * torch.randn(D, generator=generator))
        if config.encoder_bias:
            sae.b_enc.copy_(0.1 * torch.randn(D_SAE, generator=generator))
    if config.normalize_activations == "layer_norm":
        sae.normalizer = LayerNorm(exact_inverse=True)
    return sae.to(dtype)


def training_of(sae: SAE) -> Training:
    optim = OptimConfig(lr=LR, batch_size=BATCH)
    precision = sae.encoder.dtype
    return saes.training_of(sae, Setup(RunLength(N_STEPS, BATCH), optim, precision))


def chosen_over_batches(sae: SAE) -> bool:
    """Whether it is trained by batch top-k, and used with a threshold."""
    return "threshold" in sae.tensors()


def make_oracle(sae: FlatSAE) -> FlatOracle:
    config = sae.config
    how = config.normalize_activations
    aux = config.aux
    threshold = THRESHOLD if isinstance(config, TopKConfig) else config.threshold
    options = FlatOptions(
        normalize={"layer_norm": "token", "constant_norm_rescale": "norm"}.get(str(how), how),
        encoder_bias=config.encoder_bias,
        aux_coef=aux.coefficient,
        k_aux=aux.k,
        aux_bias=aux.bias,
        aux_detach=aux.detach,
        aux_rescale=aux.rescale,
        dead_steps=3,
        threshold_start=threshold.start or 1,
        threshold_momentum=FollowedThreshold(torch.zeros(1), threshold, RunLength(N_STEPS, BATCH)).momentum,
    )
    encoder, decoder, b_dec = (w.detach().numpy().copy() for w in (sae.encoder, sae.decoder, sae.b_dec))
    b_enc = sae.b_enc.detach().numpy().copy()
    if isinstance(config, MatryoshkaConfig):
        prefix_weights, selection = config.prefix_weights, config.selection
        return MatryoshkaOracle(encoder, decoder, b_dec, K, GROUPS, prefix_weights, selection, options, b_enc)
    oracle = BatchTopKOracle if isinstance(config, BatchTopKConfig) else TopKOracle
    return oracle(encoder, decoder, b_dec, K, options, b_enc)


def make_data(n: int = BATCH * N_STEPS, seed: int = 5) -> torch.Tensor:
    """In few directions, so that features die."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(5, D, generator=generator, dtype=torch.float64)
    x = torch.randn(n, 5, generator=generator, dtype=torch.float64).relu() @ directions
    return x + 0.1 * torch.randn(n, D, generator=generator, dtype=torch.float64)


def close(got: Any, wanted: Any, what: str) -> None:
    got = got.detach().numpy() if isinstance(got, torch.Tensor) else np.asarray(got)
    np.testing.assert_allclose(got, wanted, rtol=1e-9, atol=1e-10, err_msg=what)


@pytest.mark.parametrize("name", CASES)
def test_training_equals_the_oracle(name: str) -> None:
    """30 steps in float64 in which features die and revive, more are dead than the auxiliary loss takes, and the
    threshold moves."""
    config = CASES[name]
    sae = make_sae(config)
    oracle = make_oracle(sae)
    training = training_of(sae)
    assert len(training.optimizer.param_groups) == (4 if config.encoder_bias else 3)
    most_dead = revived = thresholds = 0
    aux_reached_encoder = False
    for step, x in enumerate(make_data().split(BATCH), 1):
        dead_before = oracle.dead()
        expected = oracle.step(x.numpy(), lr=LR)

        out = training(x, x)
        training.update(out.loss)
        gradients = {"grad_E": sae.encoder, "grad_D": sae.decoder, "grad_b_dec": sae.b_dec}
        if config.encoder_bias:
            gradients["grad_b_enc"] = sae.b_enc
        for gradient, weight in gradients.items():
            close(weight.grad, expected[gradient], f"{gradient}, step {step}")
        assert training.after_step(out, step) == []

        assert float(out.loss.detach()) == pytest.approx(expected["loss"], rel=1e-9)
        recon = [float(term) for term in oracle.weights * expected["recon"]]
        if oracle.prefixes[-1] == 0:  # b_dec alone: the SAE's first term
            recon = [recon[-1], *recon[:-1]]
        assert floats(out.terms["reconstruction"]) == pytest.approx(recon, rel=1e-9)
        if config.aux.coefficient:
            assert floats(out.terms["auxiliary"]) == pytest.approx([expected["aux"]], rel=1e-9)
        else:
            assert "auxiliary" not in out.terms
        close(out.code.dense(D_SAE), expected["code"], f"code, step {step}")
        close(out.x_hat, expected["xhat"][oracle.full], f"reconstruction, step {step}")
        weights = {"E": sae.encoder, "D": sae.decoder, "b_dec": sae.b_dec, "b_enc": sae.b_enc}
        for weight, value in weights.items():
            close(value, getattr(oracle, weight), f"{weight}, step {step}")
        assert training.steps_since_fired.tolist() == oracle.steps_since_fired.tolist()
        if not isinstance(sae, TopKSAE):
            close(sae.threshold, np.full(D_SAE, oracle.theta or 0.0), f"threshold, step {step}")
            thresholds += oracle.theta is not None

        dead = oracle.dead()
        most_dead = max(most_dead, int(dead.sum()))
        revived += int((dead_before & ~dead).sum())
        aux_reached_encoder |= bool(expected["grad_E"][dead].any())
    assert most_dead > config.aux.k, "the run must meet more dead features than the auxiliary loss takes"
    assert aux_reached_encoder == (config.aux.coefficient > 0), (
        "dead features learn by the auxiliary loss alone"
    )
    if config.aux.coefficient:
        assert revived > 0, "the run must revive features"
    if not isinstance(config, TopKConfig):
        by_batch = chosen_over_batches(sae)
        assert thresholds == (N_STEPS - (config.threshold.start or 0) + 1 if by_batch else 0)
        x = make_data(50, seed=6)
        close(sae.encode(x).dense(D_SAE), oracle.encode(x.numpy()), "code in use")
        close(sae(x), oracle.reconstruct(x.numpy()), "reconstruction in use")


def dense_loss(
    sae: FlatSAE, x: torch.Tensor, weights: dict[str, torch.Tensor], is_dead: torch.Tensor
) -> torch.Tensor:
    """The loss by dense matrices alone, for autograd (docs/spec/baselines.md)."""
    config, aux = sae.config, sae.config.aux
    E, W, b_dec, b_enc = (weights[name] for name in ("encoder", "decoder", "b_dec", "b_enc"))
    how = config.normalize_activations
    mean, std = torch.zeros(len(x), 1).double(), torch.ones(len(x), 1).double()
    if how == "layer_norm":
        mean, std = x.mean(1, keepdim=True), x.std(1, keepdim=True) + 1e-5
    elif how == "constant_norm_rescale":
        std = x.norm(dim=1, keepdim=True) / x.shape[1] ** 0.5
    elif how != "none":
        std = std / float(how)
    h = ((x - mean) / std - b_dec) @ E.T + b_enc
    if chosen_over_batches(sae):
        least = h.detach().flatten().sort(descending=True).values[K * len(x) - 1]
    else:
        least = h.detach().sort(1, descending=True).values[:, K - 1 : K]
    f = h.relu() * (h.detach() >= least)
    variance = x.var() + 1e-8

    def reconstruction(size: int) -> torch.Tensor:
        return std * (f[:, :size] @ W[:size] + b_dec) + mean

    ends, prefix_weights = [D_SAE], [1.0]
    if isinstance(config, MatryoshkaConfig):
        ends = np.cumsum(GROUPS).tolist()
        prefix_weights, bias_weight = config.weights
        ends, prefix_weights = [0, *ends], [bias_weight, *prefix_weights]
    loss = torch.zeros(()).double()
    for end, weight in zip(ends, prefix_weights, strict=True):
        loss = loss + weight * (reconstruction(end) - x).square().mean() / variance
    if not aux.coefficient:
        return loss
    e = x - reconstruction(D_SAE)
    e = e.detach() if aux.detach else e
    dead = is_dead.nonzero().flatten()
    h_dead = h[:, dead]
    k = min(aux.k, len(dead))
    a = h_dead.relu() * (h_dead.detach() >= h_dead.detach().sort(1, descending=True).values[:, k - 1 : k])
    e_hat = a @ W[dead]
    e_hat = e_hat + b_dec if aux.bias else e_hat
    e_hat = e_hat * std if aux.rescale else e_hat
    ratio = (e_hat - e).square().mean() / (e - e.mean(1, keepdim=True)).square().mean()
    return loss + aux.coefficient * ratio


@pytest.mark.parametrize("name", CASES)
def test_gradients_equal_those_of_the_dense_formula(name: str) -> None:
    config = CASES[name]
    sae = make_sae(config)
    training = training_of(sae)
    training.steps_since_fired.fill_(7)
    x = make_data(7)
    step = training(x, x)
    step.loss.backward()
    dead = training.dead_after(step.fired)
    assert int(dead.sum()) > config.aux.k, "some must have stayed dead"
    weights = {
        name: value.detach().clone().requires_grad_(value.requires_grad)
        for name, value in sae.named_parameters()
    }
    dense = dense_loss(sae, x, weights, dead)
    dense.backward()
    close(step.loss, float(dense.detach()), "loss")
    for weight, parameter in sae.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None
            close(parameter.grad, weights[weight].grad, weight)
        else:
            assert parameter.grad is None


def test_the_auxiliary_loss_moves_the_living_through_its_target_unless_detached() -> None:
    def encoder_gradient(aux: AuxConfig) -> torch.Tensor:
        sae = make_sae(TopKConfig(**ONE, aux=aux))
        training = training_of(sae)
        training.steps_since_fired.fill_(7)
        x = make_data(7)
        step = training(x, x)
        step.loss.backward()
        assert sae.encoder.grad is not None
        return sae.encoder.grad[~training.dead_after(step.fired)]

    none = encoder_gradient(NONE)
    assert torch.equal(encoder_gradient(AuxConfig(coefficient=1, k=4, detach=True)), none)
    attached = encoder_gradient(AuxConfig(coefficient=1, k=4))
    assert (attached - none).abs().max() > 1e-3 * none.abs().max()


def test_a_perfect_reconstruction_has_no_auxiliary_loss() -> None:
    sae = make_sae(TopKConfig(**ONE, aux=REFERENCE, normalize_activations="none"))
    with torch.no_grad():
        sae.b_dec.zero_()
    x = torch.zeros(4, D)
    step = training_of(sae)(x, x)
    assert floats(step.terms["auxiliary"]) == [0.0]
    step.loss.backward()
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in sae.parameters())


# Inference


@pytest.mark.parametrize("name", CASES)
def test_code_in_float32_equals_the_oracle(name: str) -> None:
    sae = make_sae(CASES[name], torch.float32)
    oracle = make_oracle(sae)
    if not isinstance(sae, TopKSAE) and chosen_over_batches(sae):
        oracle.theta = 0.6
        sae.threshold.fill_(0.6)
    x = make_data(60)
    code = sae.encode(x.float()).detach()
    wanted = oracle.encode(x.numpy())
    np.testing.assert_array_equal(code.dense(D_SAE) > 0, wanted > 0)
    np.testing.assert_allclose(code.dense(D_SAE), wanted, atol=2e-5)
    np.testing.assert_allclose(sae(x.float()).detach(), oracle.reconstruct(x.numpy()), atol=2e-5)
    # Every used slot holds another feature, and an unused one nothing.
    for ids, active in zip(code.ids, code.active(), strict=True):
        assert len(ids[active].unique()) == int(active.sum())
    assert not code.ids[~code.active()].any()
    if sae.at_most_k:
        assert code.ids.shape[1] == K


def with_threshold(config: SAEConfig, value: float = 0.5, d_in: int = D) -> SAE:
    sae = build(config, d_in, seed=4)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        sae.b_dec.copy_(0.2 * torch.randn(d_in, generator=generator))
        if config.encoder_bias:
            sae.b_enc.copy_(0.1 * torch.randn(sae.d_sae, generator=generator))
    if isinstance(sae, BatchTopKSAE | MatryoshkaSAE) and chosen_over_batches(sae):
        sae.threshold.fill_(value)
    return sae


@pytest.mark.parametrize(
    "config",
    [BatchTopKConfig(**ONE), MatryoshkaConfig(**NESTED, selection="batch")],
    ids=["batchtopk", "matryoshka"],
)
def test_in_use_the_batch_does_not_matter(config: SAEConfig) -> None:
    sae = with_threshold(config)
    x = make_data(40).float()
    x[1:] *= 50  # in training, these would take all the places
    together = sae.encode(x).dense(D_SAE)
    assert (together[0] > 0).any()
    for i in range(len(x)):
        alone = sae.encode(x[i]).dense(D_SAE)
        assert torch.equal(alone > 0, together[i] > 0)
        torch.testing.assert_close(alone, together[i], rtol=1e-4, atol=1e-4)
    assert together[together > 0].min() > 0.5, (
        "values are pre-activations, not their excess over the threshold"
    )


def test_the_slices_of_a_batch_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    sae = with_threshold(BatchTopKConfig(**ONE))
    x = make_data(40).float()
    whole = sae.encode(x)
    monkeypatch.setattr("saeforest.saes.encode.DENSE_ENTRIES", 7 * D_SAE)
    monkeypatch.setattr("saeforest.saes.encode._LEAST_ROWS", 1)
    parts = sae.encode(x)
    assert torch.equal(whole.ids, parts.ids)
    torch.testing.assert_close(whole.values, parts.values)


def test_no_activations_have_no_features() -> None:
    for config in SYSTEM_CONFIGS.values():
        raw = replace(config, normalize_activations="none")  # pyright: ignore[reportArgumentType]
        assert build(raw, D)(torch.zeros(0, D)).shape == (0, D)


@pytest.mark.parametrize("exact", [True, False])
def test_the_inverse_of_the_normalisation_may_leave_out_the_epsilon(exact: bool) -> None:
    sae = make_sae(TopKConfig(**ONE))
    oracle = make_oracle(sae)
    sae.normalizer = LayerNorm(exact_inverse=exact)
    x = make_data(20)
    mean, std = x.mean(1, keepdim=True).numpy(), x.std(1, keepdim=True).numpy()
    u_hat = oracle.encode(x.numpy()) @ oracle.D + oracle.b_dec
    close(sae(x), (std + (1e-5 if exact else 0)) * u_hat + mean, "reconstruction")


@pytest.mark.parametrize("name", SYSTEM_CONFIGS)
def test_saved_and_loaded(name: str, tmp_path: Path) -> None:
    sae = with_threshold(SYSTEM_CONFIGS[name])
    save_sae(sae, tmp_path / "sae")
    again = load_sae(tmp_path / "sae")
    assert type(again) is type(sae)
    x = make_data(60).float()
    ours, theirs = sae.encode(x), again.encode(x)
    assert ours.active().any()
    assert torch.equal(ours.values, theirs.values)
    assert torch.equal(ours.ids, theirs.ids)
    assert torch.equal(sae(x), again(x))
    assert (again.at_most_k, again.gated, again.cumulative) == (sae.at_most_k, sae.gated, sae.cumulative)


@pytest.mark.parametrize("name", SYSTEM_CONFIGS)
@pytest.mark.parametrize("scale", [0.37, 11.0])
def test_finish_folds_the_scale_of_the_input_into_the_weights(name: str, scale: float) -> None:
    changes: dict[str, Any] = {"normalize_activations": scale, "activation_threshold": 0.8}
    config = replace(SYSTEM_CONFIGS[name], **changes)  # pyright: ignore[reportArgumentType]
    sae = with_threshold(config)
    x = make_data(60).float() / scale
    code, x_hat = sae.encode(x).dense(D_SAE), sae(x)
    fired = sae.encode(x).fired(D_SAE, 0.8)
    assert 0 < fired.sum() < (code > 0).sum()
    assert training_of(sae).finish() is sae
    assert sae.config.normalize_activations == "none"
    torch.testing.assert_close(sae.encode(x).dense(D_SAE) * scale, code, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(sae(x), x_hat, rtol=1e-5, atol=1e-5 / min(scale, 1))
    assert torch.equal(sae.encode(x).fired(D_SAE, sae.config.activation_threshold), fired)


def test_finish_leaves_unit_rows() -> None:
    sae = build(TopKConfig(**ONE), D)
    with torch.no_grad():
        sae.decoder.mul_(1.1)
    training_of(sae).finish()
    torch.testing.assert_close(sae.decoder.norm(dim=1), torch.ones(D_SAE))
    assert sae.config.normalize_activations == "layer_norm"


def test_the_threshold_is_set_by_the_end_of_a_short_run() -> None:
    paper = FollowedThreshold(torch.zeros(1), ThresholdConfig(), RunLength(97_657, 16))
    assert paper.start == 1_000
    config = BatchTopKConfig(**ONE, threshold=ThresholdConfig(start=1_000))
    training = start_training(config, D, RunLength(2, BATCH), precision=torch.float32)
    sae = training.sae
    assert isinstance(sae, BatchTopKSAE)
    for step, x in enumerate(make_data(2 * BATCH).float().split(BATCH), 1):
        least = training.step(x).code.values
        positive = least[least > 0].tolist()
        assert sae.threshold.tolist() == [min(positive) if step == 2 else 0.0] * D_SAE


def test_k_of_a_matryoshka_sae_may_exceed_its_first_layer() -> None:
    sae = build(MatryoshkaConfig((2, 22), (9,)), D)
    assert isinstance(sae, MatryoshkaSAE)
    assert sae.encode(make_data(4).float()).ids.shape == (4, 9)
