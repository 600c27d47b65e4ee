"""The H-SAE whose parents are experts, against its oracle, by hand, on a known tree, and for what it costs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from oracles.expert_hsae import ExpertOptions, ExpertOracle
from sae_cases import floats
from saeforest import InputError
from saeforest.optim import OptimConfig
from saeforest.saes import (
    AuxConfig,
    ExpertHSAE,
    ExpertHSAEConfig,
    RunLength,
    Setup,
    build,
    load_sae,
    save_sae,
    start_training,
)
from saeforest.saes.expert_hsae import ExpertHSAETraining
from saeforest.structure.forest import Forest
from saeforest.worlds import recover
from saeforest.worlds.generators import tree

D, P, A, S, K = 12, 7, 4, 2, 2
BATCH, N_STEPS, LR = 16, 30, 0.02
CONFIG = ExpertHSAEConfig((P, P * A), (K, K), subspace=S, dead_after_tokens=3 * BATCH)
CASES = {
    "defaults": CONFIG,
    "heavy terms": replace(CONFIG, top_level=1.5, l1=2.0, orthogonality=0.3),
    "raw, no bias": replace(
        CONFIG, normalize_activations="none", encoder_bias=False, activation_threshold=0.3
    ),
    "a factor, the authors' auxiliary loss": replace(
        CONFIG, normalize_activations=0.7, aux=AuxConfig(k=1, coefficient=0.2)
    ),
    "no auxiliary loss": replace(CONFIG, aux=AuxConfig(coefficient=0.0)),
    "one dimension": replace(CONFIG, subspace=1),
    "the whole space": replace(CONFIG, subspace=A),
}


def batches(n_steps: int = N_STEPS, batch: int = BATCH) -> Iterator[torch.Tensor]:
    """Non-negative sums of five directions, and noise."""
    data = torch.Generator().manual_seed(5)
    directions = torch.randn(5, D, generator=data, dtype=torch.float64)
    for _ in range(n_steps):
        x = torch.randn(batch, 5, generator=data, dtype=torch.float64).relu() @ directions
        yield x + 0.1 * torch.randn(batch, D, generator=data, dtype=torch.float64)


def begun(
    config: ExpertHSAEConfig, *, seed: int = 1, dtype: torch.dtype = torch.float64
) -> ExpertHSAETraining:
    sae = ExpertHSAE(config, D, seed=seed).to(dtype)
    with torch.no_grad():
        sae.b_dec.copy_(0.3 * torch.randn(D, generator=torch.Generator().manual_seed(2)))
    optim = OptimConfig(lr=LR, batch_size=BATCH, beta1=0.9)
    return ExpertHSAETraining(sae, Setup(RunLength(N_STEPS, BATCH), optim, dtype))


def weights(training: ExpertHSAETraining, *, grad: bool = False) -> dict[str, np.ndarray]:
    """The weights, or their gradients, by the names of the oracle."""

    def of(weight: torch.Tensor) -> torch.Tensor:
        found = weight.grad if grad else weight.detach()
        return torch.zeros_like(weight) if found is None else found.clone()

    experts, sae = training.experts, training.sae
    encoder, decoder, n = of(experts.encoder), of(experts.decoder), experts.n
    found = {
        "E": encoder[:n], "D": decoder[:n],
        "down": encoder[n:].unflatten(0, (n, -1)), "up": decoder[n:].unflatten(0, (n, -1)),
        "a_in": of(experts.places_in).unflatten(0, (n, -1)), "a_out": of(experts.places_out).unflatten(0, (n, -1)),
        "b_dec": of(sae.b_dec), "b_enc": of(sae.b_enc),
    }  # fmt: skip
    return {name: tensor.numpy() for name, tensor in found.items()}


def make_oracle(training: ExpertHSAETraining) -> ExpertOracle:
    config = training.sae.config
    how, aux = config.normalize_activations, config.aux
    options = ExpertOptions(
        normalize="token" if how == "layer_norm" else how,
        threshold=config.activation_threshold,
        encoder_bias=config.encoder_bias,
        top_level=config.top_level,
        l1=config.l1,
        orthogonality=config.orthogonality,
        aux_coef=aux.coefficient,
        k_aux=aux.k,
        aux_bias=aux.bias,
        aux_detach=aux.detach,
        aux_rescale=aux.rescale,
        dead_steps=3,
    )
    return ExpertOracle(K, dict(weights(training)), options)


@pytest.mark.parametrize("name", CASES)
def test_training_equals_the_oracle(name: str) -> None:
    """30 steps in float64 in which parents and children die, and dead parents learn the residual."""
    config = CASES[name]
    training = begun(config)
    sae, oracle = training.sae, make_oracle(training)
    dead_parents, dead_children, childless, aux = 0, 0, 0, 0.0
    for step, x in enumerate(batches(), 1):
        expected = oracle.step(x.numpy(), lr=LR)

        out = training(x, x)
        training.update(out.loss)
        for weight, gradient in weights(training, grad=True).items():
            np.testing.assert_allclose(
                gradient, expected[f"grad_{weight}"], rtol=1e-9, atol=1e-10, err_msg=weight
            )
        assert training.after_step(out, step) == []

        assert float(out.loss.detach()) == pytest.approx(expected["loss"], rel=1e-9)
        assert floats(out.terms["reconstruction"]) == pytest.approx(expected["recon"], rel=1e-9)
        assert floats(out.terms["l1"]) == [pytest.approx(expected["l1"], rel=1e-9)]
        assert floats(out.terms["orthogonality"]) == [pytest.approx(expected["orthogonality"], rel=1e-9)]
        if config.aux.coefficient:
            assert floats(out.terms["auxiliary"]) == [pytest.approx(expected["aux"], rel=1e-9)]
        np.testing.assert_allclose(out.code.dense(sae.d_sae), expected["code"], atol=1e-9)
        np.testing.assert_allclose(out.x_hat, expected["xhat"], atol=1e-9)
        assert training.steps_since_fired.tolist() == oracle.steps_since_fired.tolist()
        dead_parents += int(training.dead[:P].sum())
        dead_children += int(training.dead[P:].sum())
        childless += int((out.code.active(config.activation_threshold).sum(1) % 2).sum())
        aux += expected["aux"]
    for weight, value in weights(training).items():
        np.testing.assert_allclose(value, oracle.w[weight], atol=1e-9, err_msg=weight)
    assert dead_parents > 0, "the run must meet dead parents"
    assert dead_children > 0, "the run must meet dead children"
    assert childless > 0, "the run must meet parents without an active child"
    assert (aux > 0) == (config.aux.coefficient > 0)
    # The SAE, which holds rows instead of what was trained, has become what was trained.
    x = next(batches(1, 50))
    expected = oracle.forward(x.numpy())
    np.testing.assert_allclose(sae.encode(x).dense(sae.d_sae).detach(), expected.code, atol=1e-9)
    np.testing.assert_allclose(sae(x).detach(), expected.xhat, atol=1e-9)


def by_hand() -> ExpertHSAE:
    """Parents read the first two axes; the children of each read the third with different signs and strengths."""
    config = ExpertHSAEConfig(
        (2, 4), (1, 1), subspace=1, normalize_activations="none", activation_threshold=0.5
    )
    sae = ExpertHSAE(config, 3)
    with torch.no_grad():
        sae.encoder.copy_(torch.tensor([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, -1], [0, 0, 2], [0, 0, 1.0]]))
        sae.decoder.copy_(torch.tensor([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, -1], [0, 0, 1], [0, 0, 1.0]]))
        sae.b_enc.copy_(torch.tensor([0, 0, 0, 0, -3.0, 0]))
    return sae


@pytest.mark.parametrize(
    ("x", "code", "x_hat"),
    [
        ([4, 1, 2], [4, 0, 2, 0, 0, 0], [4, 0, 2]),  # the best parent, and the better of its children
        ([4, 1, -2], [4, 0, 0, 2, 0, 0], [4, 0, -2]),
        ([1, 4, 2], [0, 4, 0, 0, 0, 2], [0, 4, 2]),  # 2 * 2 - 3 = 1 < 2: the bias counts
        ([1, 4, 4], [0, 4, 0, 0, 5, 0], [0, 4, 5]),
        ([4, 1, 0], [4, 0, 0, 0, 0, 0], [4, 0, 0]),  # no child above 0: none
        ([0.5, 0.4, 9], [0.5, 0, 0, 0, 0, 0], [0.5, 0, 0]),  # a parent at the threshold is not active
        ([-1, -2, 9], [0, 0, 0, 0, 0, 0], [0, 0, 0]),
    ],
)
def test_by_hand(x: list[float], code: list[float], x_hat: list[float]) -> None:
    sae = by_hand()
    rows = torch.tensor([x], dtype=torch.float32)
    found = sae.encode(rows)
    assert found.dense(6).tolist() == [code]
    assert sae(rows).tolist() == [x_hat]
    assert found.ids[~found.active()].unique().tolist() in ([], [0])


def test_the_forest_is_fixed_and_a_child_fires_only_under_its_parent() -> None:
    training = begun(CONFIG)
    before = training.sae.parent.clone()
    for x in batches():
        training.step(x)
    sae = training.finish()
    assert before.tolist() == [-1] * P + [p for p in range(P) for _ in range(A)]
    assert torch.equal(sae.parent, before)
    code = sae.encode(next(batches(1, 200)))
    child = code.active() & (code.ids >= P)
    assert int(child.sum()) > 100
    assert torch.equal(code.with_parent(sae.parent), child)
    on = code.dense(sae.d_sae) > 0
    assert int(on[:, :P].sum(1).max()) <= K
    assert int(on[:, P:].unflatten(1, (P, A)).sum(2).max()) == 1


def test_the_gate_follows_the_forest() -> None:
    """As in a tree: whoever deals out the children anew among the parents moves the gate, not the labels alone."""
    sae, x = begun(CONFIG).sae, next(batches(1, 200))
    before = sae.encode(x)
    order = torch.randperm(P * A, generator=torch.Generator().manual_seed(0))
    sae.parent[P:] = sae.parent[P:][order]
    code = sae.encode(x)
    below = code.active(CONFIG.activation_threshold) & (code.ids >= P)
    assert int(below.sum()) > 100
    assert torch.equal(code.with_parent(sae.parent, CONFIG.activation_threshold), below)
    assert not torch.equal(before.dense(sae.d_sae), code.dense(sae.d_sae))


def test_children_lie_in_subspaces_and_rows_have_unit_norm() -> None:
    training = begun(CONFIG)
    for x in batches():
        training.step(x)
    sae = training.finish()
    for rows in (sae.encoder.detach(), sae.decoder.detach()):
        singular = torch.linalg.svdvals(rows[P:].unflatten(0, (P, A)))
        assert float((singular[:, S:] / singular[:, :1]).max()) < 1e-9
        assert float((singular[:, S - 1] / singular[:, 0]).min()) > 1e-3
    torch.testing.assert_close(sae.decoder.detach().norm(dim=1), torch.ones(sae.d_sae, dtype=torch.float64))


def test_an_sae_that_exists_can_be_trained_on() -> None:
    """What is trained is found from its rows: before a step it says the same."""
    training = begun(CONFIG)
    for x in batches():
        training.step(x)
    sae = training.finish()
    assert isinstance(sae, ExpertHSAE)
    again = ExpertHSAETraining(sae, Setup(RunLength(N_STEPS, BATCH), OptimConfig(lr=LR), torch.float64))
    x = next(batches(1))
    code = sae.encode(x).dense(sae.d_sae)
    torch.testing.assert_close(again(x, x).code.dense(sae.d_sae), code)
    before = sae.decoder.detach().clone()
    again.experts.write(sae)
    torch.testing.assert_close(sae.decoder, before)


def test_a_known_tree_is_learned() -> None:
    """Eight roots of four exclusive children in 48 dimensions, and half as many children again as there are."""
    world = tree(depth=2, p_child=0.125, d=48)
    config = ExpertHSAEConfig(
        (8, 48), (3, 3), normalize_activations="none", activation_threshold=0.2, dead_after_tokens=10_000
    )
    optim = OptimConfig(lr=5e-3, batch_size=512, warmup=0.02, decay="linear", decay_from=0.5)
    training = start_training(config, world.d_in, RunLength(600, 512), optim=optim)
    for step in range(600):
        training.step(world.sample(512, torch.Generator().manual_seed(step)).x)
    sae, sample = training.finish(), world.held_out(20_000)
    with torch.no_grad():
        code, x_hat = sae.encode(sample.x), sae(sample.x)
        untrained = build(config, world.d_in)
        nothing = untrained.encode(sample.x)
    fve = 1 - float((sample.x - x_hat).square().sum() / (sample.x - sample.x.mean(0)).square().sum())
    parent = sae.forest.parent.clone()
    parent[8:] = parent[8:][torch.randperm(48, generator=torch.Generator().manual_seed(0))]
    learned, shuffled, none = (
        recover(world, sample, decoder=s.decoder, encoder=s.encoder, code=c, forest=forest, threshold=0.2)
        for s, c, forest in (
            (sae, code, sae.forest),
            (sae, code, Forest(parent, (8, 48))),
            (untrained, nothing, untrained.forest),
        )
    )
    assert fve > 0.9
    # Six seeds give an MCC of 0.82 to 0.92 and an F1 of 0.65 to 0.87, of 0.13 at most with shuffled parents.
    assert learned.mcc_truth > 0.75
    assert (learned.edges.f1 or 0) > 0.6
    assert (shuffled.edges.f1 or 0) < 0.2
    assert none.mcc_truth < 0.5
    assert (none.edges.f1 or 0) < 0.2


def test_dead_parents_come_back() -> None:
    """By the auxiliary loss: parents that no activation chooses learn what the others leave over, and are chosen."""
    alive = []
    for coefficient in (0.0, 1.0):
        config = replace(CONFIG, aux=replace(CONFIG.aux, coefficient=coefficient))
        training = begun(config)
        with torch.no_grad():
            training.experts.encoder[:3] *= 0.01
        for x in batches(150):
            training.step(x)
        alive.append(int((~training.dead[:3]).sum()))
    assert alive[0] < alive[1] == 3


def test_save_and_load(tmp_path: Path) -> None:
    """Every number comes back; what is only for training is not in the file."""
    sae = build(replace(CONFIG, subspace=1, l1=3.0), D, seed=3)
    with torch.no_grad():
        sae.b_enc.normal_()
    save_sae(sae, tmp_path / "sae")
    again = load_sae(tmp_path / "sae")
    assert isinstance(again, ExpertHSAE)
    assert again.config == replace(ExpertHSAEConfig((P, P * A), (K, K), subspace=1))
    for name, tensor in sae.tensors().items():
        assert torch.equal(tensor, again.tensors()[name])
    x = next(batches(1)).float()
    assert torch.equal(sae(x), again(x))


def test_a_step_takes_memory_for_active_parents_alone() -> None:
    """Nothing as large as activations times children, or times parents squared, is made."""
    from test_sparse_step import Largest

    parents, atoms, n = 128, 32, 512
    config = ExpertHSAEConfig((parents, parents * atoms), (4, 4), subspace=2)
    training = start_training(config, D, RunLength(40, n), optim=OptimConfig(batch_size=n))
    x = next(batches(1, n)).float()
    training.step(x)
    training.steps_since_fired[::3] = training.dead_steps
    with Largest() as largest:
        step = training.step(x)
    assert any(floats(step.terms["auxiliary"])), "the step must meet dead features"
    assert largest.numel <= max(n * parents, n * 4 * atoms * 2) < n * parents * atoms / 8, largest.name
    with Largest() as largest:
        training.sae.encode(x)
    assert largest.numel <= max(n * parents, n * 4 * atoms * 2), largest.name


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layer_sizes": (4, 10)}, "two layers, the second a multiple of the first"),
        ({"layer_sizes": (4,), "k_per_layer": (2,)}, "two layers"),
        ({"layer_sizes": (4, 8, 16), "k_per_layer": (2, 2, 2)}, "two layers"),
        ({"k_per_layer": (2, 1)}, "expected the same number twice"),
        ({"subspace": 5}, "expected 1 to 4, the number of children of a parent"),
        ({"subspace": 0}, "expected 1 to 4"),
        ({"l1": -0.1}, "sae.l1 = -0.1: expected 0 or more"),
        ({"dead_after_tokens": 0}, "dead_after_tokens"),
    ],
)
def test_mistakes(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        replace(CONFIG, **settings)


def test_it_is_no_transcoder() -> None:
    with pytest.raises(InputError, match=r"an SAE of architecture expert_hsae reconstructs its input"):
        build(CONFIG, D, d_out=7)
