"""What holds for every system of the registry, whatever it does: a new one is tested here without a line."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch

from sae_cases import small
from saeforest.optim import OptimConfig
from saeforest.saes import SAE, SYSTEMS, RunLength, Training, load_sae, save_sae, start_training

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
