"""A training step keeps nothing dense, and a tree computes only what may fire: with the same result."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sae_cases import floats
from saeforest.errors import InputError
from saeforest.kernels.backend import VARIABLE
from saeforest.optim import OptimConfig
from saeforest.saes import (
    BatchTopKConfig,
    BatchTopKSAE,
    MatryoshkaConfig,
    RunLength,
    SAEConfig,
    TopKConfig,
    Training,
    TreeConfig,
    TreeSAE,
    build,
    start_training,
)
from saeforest.saes.auxiliary import AuxConfig
from saeforest.saes.tree_config import TreeAuxConfig
from saeforest.sparse_code import SparseCode

D, BATCH, F = 16, 512, 4096
LAYERS = (256, 512, 1024, F - 1792)
SYSTEMS: dict[str, SAEConfig] = {
    "topk": TopKConfig(layer_sizes=(F,), k_per_layer=(8,), aux=AuxConfig(k=16)),
    "batchtopk": BatchTopKConfig(layer_sizes=(F,), k_per_layer=(8,), aux=AuxConfig(k=16)),
    "matryoshka": MatryoshkaConfig(layer_sizes=LAYERS, k_per_layer=(8,), aux=AuxConfig(k=16)),
    "tree": TreeConfig(layer_sizes=LAYERS, k_per_layer=(4, 2, 2, 2), aux=TreeAuxConfig(layers=None, k=16)),
}


def data(n: int, seed: int = 0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    directions = torch.randn(100, D, generator=g)
    strength = torch.rand(n, 100, generator=g) * (torch.rand(n, 100, generator=g) < 0.05)
    return strength @ directions + 0.1 * torch.randn(n, D, generator=g)


def training(
    config: SAEConfig, precision: torch.dtype = torch.float32, n_steps: int = 40, **optim: Any
) -> Training:
    settings = OptimConfig(lr=3e-3, batch_size=BATCH, **optim)
    run = RunLength(n_steps, BATCH)
    return start_training(config, D, run, seed=1, optim=settings, precision=precision)


class Largest(TorchDispatchMode):
    """Remembers the largest tensor that any operation made, whatever it was for."""

    def __init__(self) -> None:
        super().__init__()
        self.numel, self.name = 0, ""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, torch.Tensor) and tensor.numel() > self.numel:
                self.numel, self.name = tensor.numel(), str(func)
        return out


@pytest.mark.parametrize("name", SYSTEMS)
def test_nothing_is_as_large_as_batch_times_features(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where features are dead and learn the residual."""
    monkeypatch.setattr("saeforest.saes.encode.DENSE_ENTRIES", 1 << 14)
    monkeypatch.setattr("saeforest.saes.encode._LEAST_ROWS", 1)
    one = training(SYSTEMS[name])
    x = data(BATCH)
    for _ in range(2):
        one.step(x)
    one.steps_since_fired[::3] = one.dead_steps
    with Largest() as largest:
        done = one.step(x)
    auxiliary = done.terms["auxiliary"]
    assert any(floats(auxiliary)), "the step must meet dead features"
    assert largest.numel <= max(F * D, len(LAYERS) * BATCH * D) < BATCH * F / 8, largest.name


def codes_equal(a: SparseCode, b: SparseCode) -> bool:
    return torch.equal(a.dense(F) > 0, b.dense(F) > 0)


@pytest.fixture(scope="module")
def tree() -> TreeSAE:
    one = training(SYSTEMS["tree"])
    for step in range(1, 31):
        one.step(data(BATCH, step))
    assert isinstance(one.sae, TreeSAE)
    with torch.no_grad():  # some of every layer under the root, as after its reset
        one.sae.parent[torch.arange(0, F, 7)] = -1
    return one.sae.eval()


def test_the_conditional_encode_gives_the_dense_gates_codes(
    tree: TreeSAE, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = data(2000, seed=99)
    fast = tree.encode(x)
    monkeypatch.setenv(VARIABLE, "plain")
    slow = tree.encode(x)
    by_hand = dense_gate(tree, x)
    assert codes_equal(fast, slow)
    torch.testing.assert_close(fast.dense(F), slow.dense(F))
    assert torch.equal(fast.dense(F) > 0, by_hand > 0)
    torch.testing.assert_close(fast.dense(F), by_hand, rtol=1e-4, atol=1e-5)


def dense_gate(sae: TreeSAE, x: torch.Tensor) -> torch.Tensor:
    """Eq. 6 over all pre-activations, in float64."""
    u, _ = sae.normalize(x)
    h = (u - sae.b_dec).double() @ sae.encoder.double().T
    f = torch.zeros(len(x), F + 1, dtype=torch.float64)
    f[:, -1] = 1  # the root
    start = 0
    for size, k in zip(sae.config.layer_sizes, sae.config.k_per_layer, strict=True):
        layer = slice(start, start + size)
        gated = h[:, layer] * (f[:, sae.parent[layer]] > sae.config.activation_threshold)
        top = gated.topk(k, dim=1)
        f[:, layer] = torch.zeros_like(gated).scatter(1, top.indices, top.values.relu())
        start += size
    return f[:, :-1].float().detach()


def test_half_precision_chooses_nearly_the_same(tree: TreeSAE) -> None:
    x = data(2000, seed=98)
    exact = tree.encode(x).dense(F)
    rough = tree.encode(x, precision=torch.bfloat16).dense(F)
    both = (exact > 0) & (rough > 0)
    assert both.sum() / (exact > 0).sum() > 0.97
    # Values are exact, whatever chose them.
    torch.testing.assert_close(exact[both], rough[both])


def trained_fve(change: Callable[[dict[str, Any]], None]) -> tuple[float, float]:
    settings: dict[str, Any] = {"precision": torch.float32, "optim": {}}
    change(settings)
    one = training(SYSTEMS["tree"], settings["precision"], 120, **settings["optim"])
    for step in range(1, 121):
        one.step(data(BATCH, step))
    x = data(2000, seed=1000)
    fve = 1 - float((one.sae(x).detach() - x).square().sum() / (x - x.mean(0)).square().sum())
    return fve, float(one.dead.double().mean())


def test_speed_costs_no_quality(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled, in bfloat16 and with Adam's state in 16 or 8 bits, against the plain float32 reference."""
    fast = trained_fve(lambda s: s.update(precision=torch.bfloat16))
    half = trained_fve(lambda s: s.update(precision=torch.bfloat16, optim={"state": "bfloat16"}))
    eight = trained_fve(lambda s: s.update(optim={"state": "int8"}))
    monkeypatch.setenv(VARIABLE, "plain")
    reference = trained_fve(lambda s: None)
    assert reference[0] > 0.8
    few = trained_fve(lambda s: s.update(optim={"state": "int8", "weights": "bfloat16", "rows": "active"}))
    for fve, dead in (fast, half, eight, few):
        assert fve == pytest.approx(reference[0], abs=0.005)
        assert dead == pytest.approx(reference[1], abs=0.02)


@pytest.mark.parametrize("rows", ["all", "active"])
@pytest.mark.parametrize("state", ["bfloat16", "int8"])
def test_low_precision_state_survives_a_checkpoint(state: str, rows: str) -> None:
    one = training(SYSTEMS["topk"], state=state, rows=rows)
    x = data(BATCH)
    one.step(x)
    again = training(SYSTEMS["topk"], state=state, rows=rows)
    again.load_state_dict(one.state_dict())
    again.optimizer.load_state_dict(deepcopy(one.optimizer.state_dict()))
    assert again.done == 1
    kept = again.optimizer.state[again.sae.decoder]["exp_avg"]
    assert kept.dtype == getattr(torch, state)
    assert again.optimizer.state[again.sae.b_dec]["exp_avg"].dtype == torch.float32
    for each in (one, again):
        each.step(x)
    assert torch.equal(one.sae.decoder, again.sae.decoder)
    assert torch.equal(one.sae.encoder, again.sae.encoder)


@pytest.mark.parametrize("name", ["topk", "tree"])
def test_weights_in_bfloat16_give_the_same_bits_again_and_after_a_checkpoint(name: str) -> None:
    optim: dict[str, Any] = {"weights": "bfloat16", "rows": "active", "state": "int8"}
    one, twin, again = (training(SYSTEMS[name], **optim) for _ in range(3))
    for step in range(1, 4):
        for each in (one, twin) if step < 3 else (one, twin, again):
            each.step(data(BATCH, step))
        if step == 2:
            again.load_state_dict(one.state_dict())
            again.optimizer.load_state_dict(deepcopy(one.optimizer.state_dict()))
    for each in (twin, again):
        assert each.sae.encoder.dtype == torch.bfloat16
        assert torch.equal(each.sae.encoder, one.sae.encoder)
        assert torch.equal(each.sae.decoder, one.sae.decoder)
    gradient = one.sae.decoder.grad
    assert gradient is not None
    assert gradient.dtype == torch.float32
    kept = one.sae.encoder.float()
    sae = one.finish()
    assert sae.encoder.dtype == sae.decoder.dtype == torch.float32
    assert torch.equal(sae.encoder, kept)


def test_systems_that_read_their_weights_elsewhere_keep_them_whole() -> None:
    with pytest.raises(
        InputError, match=r"optim\.weights = bfloat16: expected float32 for architecture matryoshka"
    ):
        training(SYSTEMS["matryoshka"], weights="bfloat16")


def test_a_copied_optimizer_goes_on() -> None:
    one = training(SYSTEMS["topk"], state="bfloat16")
    one.step(data(BATCH))
    again = deepcopy(one.optimizer)
    again.load_state_dict(deepcopy(one.optimizer.state_dict()))
    assert again.param_groups[0]["state"] == torch.bfloat16


@pytest.mark.parametrize("name", SYSTEMS)
def test_half_precision_models_read_large_activations(name: str) -> None:
    """The squares of a row would add up to more than float16 can hold."""
    sae = build(SYSTEMS[name], D, seed=1)
    if isinstance(sae, BatchTopKSAE):
        sae.threshold += 0.5
    x = 120 * data(100)
    expected = sae.encode(x).active().sum()
    found = sae.half().encode(x.half()).active().sum()
    assert abs(int(found) - int(expected)) < 0.1 * int(expected)
