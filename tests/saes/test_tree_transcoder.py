"""An SAE whose target is another than its input: it learns a linear map, is saved, and loaded."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from edits import edit_json
from saeforest import InputError
from saeforest.optim import OptimConfig
from saeforest.saes import (
    HSAEConfig,
    MatchingPursuitConfig,
    RunLength,
    SAEConfig,
    TopKConfig,
    TreeConfig,
    build,
    load_sae,
    save_sae,
    start_training,
)

D_IN, BATCH, STEPS = 10, 256, 250
GENERATOR = torch.Generator().manual_seed(0)
DIRECTIONS = torch.nn.functional.normalize(torch.randn(24, D_IN, generator=GENERATOR))
CONFIGS: dict[str, SAEConfig] = {
    "tree": TreeConfig((16, 32), (3, 2), normalize_activations="none", normalize_target=0.25),
    "topk": TopKConfig((48,), (5,), normalize_activations="layer_norm", normalize_target="none"),
}


def data(n: int, generator: torch.Generator) -> Tensor:
    on = torch.rand(n, 24, generator=generator) < 0.1
    return (on * (0.5 + torch.rand(n, 24, generator=generator))) @ DIRECTIONS + 0.2


def linear_map(d_out: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(D_IN, d_out, generator=generator), 3 + torch.randn(d_out, generator=generator)


@torch.no_grad()
def fve(found: Tensor, target: Tensor) -> float:
    return 1 - float((found - target).square().sum() / (target - target.mean(0)).square().sum())


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("d_out", [D_IN, 7])
def test_it_learns_a_linear_map(name: str, d_out: int, tmp_path: Path) -> None:
    matrix, offset = linear_map(d_out)
    optim = OptimConfig(lr=6e-3, batch_size=BATCH, precision="float32")
    training = start_training(CONFIGS[name], D_IN, RunLength(STEPS, BATCH), d_out=d_out, optim=optim)
    generator = torch.Generator().manual_seed(2)
    held_out = data(1000, torch.Generator().manual_seed(3))
    target = held_out @ matrix + offset
    for _ in range(STEPS):
        x = data(BATCH, generator)
        step = training.step(x, x @ matrix + offset)
        assert step.x_hat.shape == (BATCH, d_out)
    with torch.no_grad():  # the last step left them slightly off unit norm
        training.sae.decoder.copy_(torch.nn.functional.normalize(training.sae.decoder))
        before = training.sae(held_out)
    sae = training.finish()
    assert (sae.d_in, sae.d_out, sae.is_transcoder) == (D_IN, d_out, True)
    # Of an activation's length, layer_norm lets nothing through.
    assert fve(sae(held_out), target) > (0.5 if name == "topk" else 0.7)
    assert sae(held_out).shape == target.shape
    torch.testing.assert_close(sae(held_out).detach(), before, rtol=1e-4, atol=1e-4)

    save_sae(sae, tmp_path / "sae")
    cfg = json.loads((tmp_path / "sae" / "cfg.json").read_text())
    assert (cfg["d_out"], cfg["apply_b_dec_to_input"], cfg["normalize_target"]) == (d_out, False, "none")
    loaded = load_sae(tmp_path / "sae")
    assert torch.equal(loaded(held_out), sae(held_out))
    assert torch.equal(loaded.decode(*loaded.encode_with_stats(held_out)), sae(held_out))


def test_an_ordinary_sae_says_nothing_of_a_target(tmp_path: Path) -> None:
    save_sae(build(CONFIGS["topk"], D_IN), tmp_path)
    cfg = json.loads((tmp_path / "cfg.json").read_text())
    assert cfg["apply_b_dec_to_input"] is True
    assert not cfg.keys() & {"d_out", "normalize_target"}


def test_the_input_keeps_its_bias() -> None:
    """A bias of the target's space means nothing there."""
    sae = build(CONFIGS["tree"], D_IN, d_out=D_IN)
    x = data(20, torch.Generator().manual_seed(4))
    before = sae.encode(x).dense(sae.d_sae)
    with torch.no_grad():
        sae.b_dec.add_(5.0)
    assert torch.equal(sae.encode(x).dense(sae.d_sae), before)


def test_only_what_has_a_target_of_its_own_takes_one() -> None:
    x = torch.randn(BATCH, D_IN)
    with pytest.raises(ValueError, match="built with d_out"):
        start_training(CONFIGS["topk"], D_IN, RunLength(1, BATCH)).step(x, x)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (
            HSAEConfig((4, 8), (1, 1), normalize_activations="none"),
            "an SAE of architecture hsae reconstructs its input",
        ),
        (MatchingPursuitConfig((4,), (1,)), "an SAE of architecture matching_pursuit reconstructs its input"),
        (
            TreeConfig((4, 8), (1, 1)),
            r"sae\.normalize_target = dataset_scale: expected the number that training determines",
        ),
        (TreeConfig((4, 8), (1, 1), normalize_target="layer_norm"), r"sae\.normalize_target = layer_norm"),
    ],
)
def test_what_cannot_be_one(config: SAEConfig, words: str) -> None:
    with pytest.raises(InputError, match=words) as error:
        build(config, D_IN, d_out=7)
    assert "\n" not in str(error.value)


def test_an_open_scale_is_refused() -> None:
    config = replace(CONFIGS["topk"], normalize_activations="dataset_scale")  # pyright: ignore[reportArgumentType]
    with pytest.raises(
        InputError,
        match=r"sae\.normalize_activations = dataset_scale: expected the number that training determines",
    ):
        build(config, D_IN)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"apply_b_dec_to_input": True}, "apply_b_dec_to_input"),
        ({"d_out": 9}, "W_dec"),
        ({"d_out": None}, "apply_b_dec_to_input"),
        ({"normalize_target": ...}, "normalize_target"),
        ({"normalize_target": "layer_norm"}, "normalize_target = layer_norm"),
        ({"architecture": "matching_pursuit", "residual_tolerance": 0.1}, "."),
    ],
)
def test_a_damaged_file_is_one_line(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    save_sae(build(CONFIGS["topk"], D_IN, d_out=7), tmp_path)
    edit_json(tmp_path / "cfg.json", **changes)
    with pytest.raises(InputError, match=words) as error:
        load_sae(tmp_path)
    assert "\n" not in str(error.value)
