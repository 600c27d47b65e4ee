"""What holds for every system of the registry, whatever it does: a new one is tested here without a line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from pathlib import Path
from types import UnionType
from typing import Any, ClassVar, Literal, Union, get_args, get_origin, get_type_hints

import pytest
import torch

from sae_cases import small
from saeforest import InputError, SparseCode
from saeforest.optim import OptimConfig
from saeforest.saes import (
    SAE,
    SYSTEMS,
    RunLength,
    TopKConfig,
    TopKSAE,
    Training,
    load_sae,
    save_sae,
    start_training,
)

D, BATCH, STEPS = 12, 64, 12


def batch(seed: int, n: int = BATCH) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(20, D, generator=torch.Generator().manual_seed(99))
    return torch.randn(n, 20, generator=generator).relu() @ directions / 4


def begun(name: str) -> Training:
    config, optim = small(name, normalize_activations="none"), OptimConfig(lr=3e-3, batch_size=BATCH)
    return start_training(config, D, RunLength(STEPS, BATCH), seed=1, optim=optim)


@pytest.fixture(scope="module")
def trained() -> dict[str, SAE]:
    found = {}
    for name in SYSTEMS:
        training = begun(name)
        for step in range(STEPS):
            training.step(batch(step))
        found[name] = training.finish()
    return found


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_code_is_sparse_and_in_order(name: str, trained: dict[str, SAE]) -> None:
    sae = trained[name]
    with torch.no_grad():
        code = sae.encode(batch(100, 300))
    assert code.ids.dtype == torch.int64
    assert int(code.active().sum()) > 300
    assert bool((code.values >= 0).all())
    assert bool(((code.ids >= 0) & (code.ids < sae.d_sae)).all())
    assert code.ids[~code.active()].unique().tolist() in ([], [0])
    ids = torch.where(code.active(), code.ids, -torch.arange(1, code.ids.shape[1] + 1)).sort(1).values
    assert bool((ids[:, 1:] != ids[:, :-1]).all()), "no feature takes two slots"
    if sae.at_most_k:
        on = code.dense(sae.d_sae) > 0
        layers = pairwise(sae.starts) if len(sae.config.k_per_layer) > 1 else [(0, sae.d_sae)]
        for (first, end), k in zip(layers, sae.config.k_per_layer, strict=True):
            assert int(on[:, first:end].sum(1).max()) <= k
    if sae.gated:
        threshold = sae.config.activation_threshold
        below = code.active(threshold) & (sae.parent[code.ids] >= 0)
        assert int(below.sum()) > 0
        assert torch.equal(code.with_parent(sae.parent, threshold), below)


@pytest.mark.parametrize("name", SYSTEMS)
def test_the_trained_sae_explains_more_than_one_that_is_not(name: str, trained: dict[str, SAE]) -> None:
    x = batch(100, 300)
    with torch.no_grad():
        errors = [float((sae(x) - x).square().sum()) for sae in (trained[name], begun(name).sae)]
    assert errors[0] < errors[1]
    norms = trained[name].decoder.detach().norm(dim=1)
    torch.testing.assert_close(norms, torch.ones_like(norms))


@pytest.mark.parametrize("name", SYSTEMS)
def test_the_same_seed_is_the_same_sae(name: str, trained: dict[str, SAE]) -> None:
    training = begun(name)
    for step in range(STEPS):
        training.step(batch(step))
    again = training.finish().tensors()
    assert all(torch.equal(tensor, again[key]) for key, tensor in trained[name].tensors().items())


@pytest.mark.parametrize("name", SYSTEMS)
def test_it_comes_back_from_its_folder(name: str, trained: dict[str, SAE], tmp_path: Path) -> None:
    sae = trained[name]
    save_sae(sae, tmp_path / "sae")
    again = load_sae(tmp_path / "sae")
    assert type(again) is type(sae)
    tensors = again.tensors()
    assert tensors.keys() == sae.tensors().keys()
    assert all(torch.equal(tensor, tensors[key]) for key, tensor in sae.tensors().items())
    x = batch(100)
    with torch.no_grad():
        assert torch.equal(again(x), sae(x))
    shapes = type(sae).tensor_shapes(D, sae.d_sae)
    assert {key: list(tensors[key].shape) for key in shapes} == shapes


def other_values(config: Any) -> Iterator[tuple[str, Any]]:
    """Every setting of a simple kind, and the configuration with each of a few other valid values of it."""
    kinds = get_type_hints(type(config))
    for setting in fields(config):
        value, kind = getattr(config, setting.name), kinds[setting.name]
        for one in get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,):
            if get_origin(one) is Literal:
                others = list(get_args(one))
            elif one is bool:
                others = [True, False]
            elif one in (int, float):
                start = value if isinstance(value, int | float) else 0
                others = [one(start + 1), one(start * 2), one(start / 2)]
            else:
                continue
            for other in others:
                if other != value:
                    with suppress(InputError):  # out of the setting's range
                        yield setting.name, replace(config, **{setting.name: other})


def undeclared(sae: SAE) -> set[str]:
    """The settings that `load_sae` would not restore though the SAE's codes or reconstructions depend on them."""
    x, found = batch(100), set()
    with torch.no_grad():
        code, reconstruction = sae.encode(x), sae(x)
        for name, config in other_values(sae.config):
            if name in (
                *sae.inference_keys,
                "encoder_bias",
            ):  # `load_sae` sees from b_enc whether there is a bias
                continue
            other = type(sae)(config, D).eval()
            for key, place in other.tensors().items():
                place.data.copy_(sae.tensors()[key])
            again = other.encode(x)
            if not (
                torch.equal(again.ids, code.ids)
                and torch.equal(again.values, code.values)
                and torch.equal(other(x), reconstruction)
            ):
                found.add(name)
    return found


@pytest.mark.parametrize("name", SYSTEMS)
def test_its_inference_keys_name_all_that_its_code_depends_on(name: str, trained: dict[str, SAE]) -> None:
    tried = {key for key, _ in other_values(trained[name].config)}
    assert len(tried - set(trained[name].inference_keys)) > 1
    assert undeclared(trained[name].eval()) == set()


@dataclass(frozen=True)
class OffsetConfig(TopKConfig):
    offset: float = 0.0


class OffsetSAE(TopKSAE):
    config_class: ClassVar[type] = OffsetConfig
    config: OffsetConfig  # pyright: ignore[reportIncompatibleVariableOverride]

    def encode_normalized(self, u: torch.Tensor, precision: torch.dtype) -> SparseCode:
        return super().encode_normalized(u + self.config.offset, precision)


def test_a_setting_that_inference_reads_and_does_not_declare_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sae = OffsetSAE(OffsetConfig(layer_sizes=(64,), k_per_layer=(3,), normalize_activations="none"), D).eval()
    assert undeclared(sae) == {"offset"}
    monkeypatch.setattr(OffsetSAE, "inference_keys", (*TopKSAE.inference_keys, "offset"))
    assert undeclared(sae) == set()
