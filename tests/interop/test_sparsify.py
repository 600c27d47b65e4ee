"""SAEs in sparsify's layout: what is read and written, against its encoder and decoder written from the format."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import saeforest
from lm_cases import one_line
from saeforest.errors import InputError
from saeforest.interop.readers import reader_of
from saeforest.interop.sparsify import write_sparsify
from saeforest.saes import SAE, MatryoshkaConfig, TopKConfig, TopKSAE, build

D, F, K = 12, 40, 5


def write(folder: Path, **keys: Any) -> Path:
    """An SAE as sparsify saves it, with random weights and a decoder that is not of unit norm."""
    cfg = {
        "activation": "topk", "expansion_factor": 32, "normalize_decoder": True, "num_latents": F, "k": K,
        "multi_topk": False, "skip_connection": False, "transcode": False, "d_in": D, **keys,
    }  # fmt: skip
    rng = torch.Generator().manual_seed(0)
    tensors = {
        "encoder.weight": torch.randn(F, D, generator=rng),
        "encoder.bias": 0.3 * torch.randn(F, generator=rng),
        "W_dec": torch.randn(F, D, generator=rng),
        "b_dec": torch.randn(D, generator=rng),
    }
    folder.mkdir(parents=True)
    save_file(tensors, folder / "sae.safetensors")
    (folder / "cfg.json").write_text(json.dumps(cfg))
    return folder


def theirs(folder: Path, x: Tensor) -> tuple[Tensor, Tensor]:
    """Dense codes and reconstructions as the format says: in float64."""
    cfg = json.loads((folder / "cfg.json").read_text())
    t = {name: tensor.double() for name, tensor in load_file(folder / "sae.safetensors").items()}
    x = x.double() if cfg["transcode"] else x.double() - t["b_dec"]
    h = (x @ t["encoder.weight"].T + t["encoder.bias"]).relu()
    top = h.topk(cfg["k"])
    f = torch.zeros_like(h).scatter_(1, top.indices, top.values)
    return f, f @ t["W_dec"] + t["b_dec"]


@torch.no_grad()
def assert_same(sae: SAE, folder: Path) -> None:
    x = 2 * torch.randn(200, D, generator=torch.Generator().manual_seed(1))
    f, x_hat = theirs(folder, x)
    code, stats = sae.encode_with_stats(x)
    assert torch.allclose(code.dense(sae.d_sae).double(), f, atol=1e-5)
    assert torch.allclose(sae.decode(code, stats).double(), x_hat, atol=1e-5)


@pytest.mark.parametrize("transcode", [False, True])
def test_codes_and_reconstructions_are_theirs(transcode: bool, tmp_path: Path) -> None:
    folder = write(tmp_path / "layers.3", transcode=transcode)
    (tmp_path / "config.json").write_text(json.dumps({"model": "EleutherAI/pythia-70m", "dataset": "x"}))
    sae = saeforest.load(folder)
    assert isinstance(sae, TopKSAE)
    assert sae.is_transcoder == transcode
    assert_same(sae, folder)
    assert sae.metadata["model_name"] == "EleutherAI/pythia-70m"
    assert sae.metadata.get("hook_name") == (None if transcode else "blocks.3.hook_resid_post")
    assert sae.metadata["sparsify"]["hookpoint"] == "layers.3"
    saeforest.save(sae, tmp_path / "again")
    assert_same(saeforest.load(tmp_path / "again"), folder)


def test_a_width_by_expansion_and_half_precision(tmp_path: Path) -> None:
    folder = write(tmp_path / "sae", num_latents=0, expansion_factor=3)
    tensors = {
        name: t[:36] if t.shape[0] == F else t for name, t in load_file(folder / "sae.safetensors").items()
    }
    save_file({name: t.half().contiguous() for name, t in tensors.items()}, folder / "sae.safetensors")
    sae = saeforest.load(folder)
    assert (sae.d_sae, sae.encoder.dtype) == (36, torch.float32)
    assert_same(sae, folder)


@pytest.mark.parametrize("scale", ["none", 0.5])
def test_what_is_written_is_read_with_the_same_bits(scale: Any, tmp_path: Path) -> None:
    for config in (
        TopKConfig((F,), (K,), normalize_activations=scale, encoder_bias=True),
        MatryoshkaConfig((8, F - 8), (K,), normalize_activations=scale, selection="token"),
    ):
        sae = build(config, D, seed=3)
        with torch.no_grad():
            sae.b_dec.copy_(torch.linspace(-1, 1, D))
        sae.metadata["hook_name"] = "blocks.2.hook_resid_post"
        sae.fold_scale()
        out = tmp_path / config.architecture
        write_sparsify(sae, out)
        assert_same(sae, out / "layers.2")
        again = saeforest.load(out / "layers.2")
        for name in ("encoder", "decoder", "b_enc", "b_dec"):
            assert torch.equal(getattr(again, name), getattr(sae, name))
        with pytest.raises(InputError, match="holds an export already"):
            write_sparsify(sae, out)


def test_what_has_no_counterpart_is_not_written(tmp_path: Path) -> None:
    from saeforest.saes import BatchTopKConfig, TreeConfig

    for config, words in (
        (TreeConfig((4, 8), (1, 1)), "architecture tree"),
        (BatchTopKConfig((F,), (K,)), "architecture batchtopk"),
        (MatryoshkaConfig((8, 8), (K,), selection="batch"), "architecture matryoshka"),
        (TopKConfig((F,), (K,)), "normalize_activations = layer_norm"),
    ):
        with pytest.raises(InputError, match=words):
            write_sparsify(build(config, D), tmp_path / "out")
    wide = build(TopKConfig((F,), (K,), normalize_activations="none", normalize_target="none"), D, d_out=7)
    with pytest.raises(InputError, match="from width 12 to 7"):
        write_sparsify(wide, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def other(folder: Path, **tensors: Tensor | None) -> None:
    stored = {**load_file(folder / "sae.safetensors"), **tensors}
    save_file({k: v for k, v in stored.items() if v is not None}, folder / "sae.safetensors")


DAMAGE: dict[str, tuple[dict[str, Any], Callable[[Path], object], list[str]]] = {
    "groupmax": ({"activation": "groupmax"}, lambda f: None, ["cfg.json", "'activation' is 'groupmax'"]),
    "signed": ({"signed": True}, lambda f: None, ["cfg.json", "'signed'", "may be negative"]),
    "skip": ({"skip_connection": True}, lambda f: None, ["cfg.json", "'skip_connection'", "would be lost"]),
    "no width": ({"d_in": None}, lambda f: None, ["cfg.json", "'d_in'"]),
    "large k": ({"k": 41}, lambda f: None, ["cfg.json", "'k' is 41", "40 features"]),
    "other width": ({"num_latents": 41}, lambda f: None, ["sae.safetensors", "[40, 12]", "[41, 12]"]),
    "no bias": ({}, lambda f: other(f, **{"encoder.bias": None}), ["'encoder.bias' is missing"]),
    "more": ({}, lambda f: other(f, W_skip=torch.zeros(D, D)), ["holds W_skip"]),
    "NaN": ({}, lambda f: other(f, b_dec=torch.full((D,), torch.nan)), ["'b_dec' holds NaN"]),
    "cut off": ({}, lambda f: (f / "sae.safetensors").write_bytes(b"12345678"), ["not a whole"]),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_named_in_one_line(name: str, tmp_path: Path) -> None:
    keys, damage, words = DAMAGE[name]
    folder = write(tmp_path / "layers.1", **keys)
    damage(folder)
    with pytest.raises(InputError) as info:
        saeforest.load(folder)
    one_line(info, *words)


def test_a_folder_of_hookpoints(tmp_path: Path) -> None:
    write(tmp_path / "layers.0")
    write(tmp_path / "layers.1")
    with pytest.raises(InputError, match=r"holds several SAEs.*layers.0, layers.1"):
        saeforest.load(tmp_path)
    reader = reader_of(tmp_path / "layers.0")
    assert reader is not None
    assert reader.who == "sparsify"
