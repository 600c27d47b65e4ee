"""The plug-in for SAELens, with a stand-in for SAELens that loads in the same order and casts as it does."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import saeforest
from sae_cases import small
from sae_lens_cases import LOADERS, REGISTRY, SAE, default_loader, import_plugin
from saeforest.errors import InputError
from saeforest.saes import HSAE, SYSTEMS, build, save_sae
from saeforest.saes import SAE as OurSAE
from saeforest.saes.files import CFG

D = 12
NAMES = ("tree", "hsae", "expert_hsae", "batchtopk", "matryoshka")


@pytest.fixture(scope="module")
def plugin() -> Any:
    return import_plugin()


@torch.no_grad()
def made(architecture: str, normalize: str = "layer_norm") -> OurSAE:
    """An SAE with random weights and, where it has a forest, parents that bfloat16 has no number for."""
    default: Any = SYSTEMS[architecture].config_class()
    sizes, k = {
        "expert_hsae": ((300, 600), (3, 3)),
        "batchtopk": ((600,), (9,)),
        "matryoshka": ((8, 300, 310), (9,)),
    }.get(architecture, ((8, 300, 310), (3, 3, 3)))
    more = {"subspace": 2} if architecture == "expert_hsae" else {}
    config = replace(default, layer_sizes=sizes, k_per_layer=k, normalize_activations=normalize, **more)
    sae = build(config, D, seed=2)
    rng = torch.Generator().manual_seed(1)
    for name, place in sae.tensors().items():
        if name == "threshold":
            place.fill_(0.3)
        elif "b_dec" in name:
            place.copy_(0.2 * torch.randn(place.shape, generator=rng))
    if architecture == "hsae":
        sae.parent[8:308] = torch.arange(300) % 8
        sae.parent[308:] = 8 + torch.arange(310) % 300
    sae.metadata = {"model_name": "gpt2", "hook_name": "blocks.5.hook_resid_pre"}
    return sae


def activations() -> Tensor:
    return 2 * torch.randn(60, D, generator=torch.Generator().manual_seed(0)) + 0.1


@torch.no_grad()
def assert_same(theirs: Any, sae: OurSAE) -> None:
    x = activations()
    code, stats = sae.encode_with_stats(x)
    f = code.dense(sae.d_sae)
    assert f.any()
    assert torch.equal(theirs.encode(x), f)
    assert torch.allclose(theirs.decode(f), sae.decode(code, stats), atol=1e-5)


def test_what_is_registered(plugin: Any) -> None:
    assert plugin.ARCHITECTURES == NAMES
    assert set(SYSTEMS) <= set(REGISTRY)
    assert LOADERS["saeforest"] is plugin.hub_converter


@pytest.mark.parametrize("normalize", ["layer_norm", "none"])
@pytest.mark.parametrize("architecture", NAMES)
def test_codes_and_reconstructions_are_ours(
    architecture: str, normalize: str, plugin: Any, tmp_path: Path
) -> None:
    sae = made(architecture, normalize)
    save_sae(sae, tmp_path / "sae")
    for converter in (default_loader, plugin.converter):
        theirs = SAE.load_from_disk(tmp_path / "sae", converter=converter)
        assert_same(theirs, sae)
        assert torch.equal(theirs.parent, sae.parent)
        assert theirs.forest.layer_sizes == sae.forest.layer_sizes
        assert theirs.cfg.metadata["hook_name"] == "blocks.5.hook_resid_pre"
        before = {name: t.clone() for name, t in theirs.state_dict().items()}
        theirs.fold_W_dec_norm()
        assert all(torch.equal(t, before[name]) for name, t in theirs.state_dict().items())
        assert_same(theirs, sae)


@pytest.mark.parametrize("architecture", NAMES)
def test_a_forest_survives_bfloat16(architecture: str, plugin: Any, tmp_path: Path) -> None:
    sae = made(architecture)
    if sae.has_forest:
        assert not torch.equal(sae.parent.bfloat16().long(), sae.parent)
    save_sae(sae, tmp_path / "sae")
    for converter in (default_loader, plugin.converter):
        theirs = SAE.load_from_disk(tmp_path / "sae", dtype="bfloat16", converter=converter)
        assert (theirs.W_enc.dtype, theirs.parent.dtype) == (torch.bfloat16, torch.int64)
        assert torch.equal(theirs.parent, sae.parent)
        half = saeforest.load(tmp_path / "sae").to(torch.bfloat16)
        x = activations().bfloat16()
        assert torch.equal(theirs.encode(x), half.encode(x).dense(sae.d_sae))
        assert theirs.decode(theirs.encode(x)).dtype == torch.bfloat16


@pytest.mark.parametrize("architecture", NAMES)
def test_what_saelens_saves_is_ours_again(architecture: str, plugin: Any, tmp_path: Path) -> None:
    sae = made(architecture)
    save_sae(sae, tmp_path / "sae")
    for name, converter in (("one", default_loader), ("two", plugin.converter)):
        SAE.load_from_disk(tmp_path / "sae", converter=converter).save_model(tmp_path / name)
        again = saeforest.load(tmp_path / name)
        assert type(again) is type(sae)
        assert all(torch.equal(t, again.tensors()[key]) for key, t in sae.tensors().items())
        assert torch.equal(again.encode(activations()).values, sae.encode(activations()).values)
        assert again.metadata["model_name"] == "gpt2"


def test_weights_that_change_are_used(plugin: Any, tmp_path: Path) -> None:
    """The weights are SAELens' own: whatever it does to them is seen by the next encode."""
    sae = made("tree")
    save_sae(sae, tmp_path / "sae")
    theirs = SAE.load_from_disk(tmp_path / "sae")
    theirs.encode(activations())
    with torch.no_grad():
        theirs.W_enc.data[:, 3:] = 0
        theirs.b_dec.data += 1
        sae.encoder[3:] = 0
        sae.b_dec.data += 1
    assert_same(theirs, sae)
    assert_same(theirs.to(torch.float64).to(torch.float32), sae)
    x = activations().requires_grad_()
    theirs.decode(theirs.encode(x)).sum().backward()
    assert x.grad is not None
    assert x.grad.any()


def test_levels_of_an_hsae(plugin: Any, tmp_path: Path) -> None:
    sae = made("hsae")
    assert isinstance(sae, HSAE)
    save_sae(sae, tmp_path / "sae")
    x = activations()
    code, stats = sae.encode_with_stats(x)
    for i in range(sae.n_levels):
        cfg, state = plugin.level(i)(tmp_path / "sae")
        assert (cfg["architecture"], cfg["d_sae"]) == ("jumprelu", sae.config.layer_sizes[i])
        u = sae.normalize(x)[0] - state["b_dec"]
        h = u @ state["W_enc"] + state["b_enc"]
        f = torch.where(h > state["threshold"], h, 0)
        wanted = code.dense(sae.d_sae)[:, sae.level(i)]
        assert torch.allclose(f, wanted, atol=1e-5)
        x_hat = (f @ state["W_dec"] + state["b_dec"]) * stats.std + stats.mean
        assert torch.allclose(x_hat, sae.decode(code, stats, i), atol=1e-4)
    for converter, words in ((plugin.level(3), "level 3: expected 0 to 2"), (plugin.level(-1), "level -1")):
        with pytest.raises(InputError, match=words):
            converter(tmp_path / "sae")
    save_sae(made("tree"), tmp_path / "tree")
    with pytest.raises(InputError, match="architecture tree; expected an HSAE"):
        plugin.level(0)(tmp_path / "tree")


def test_what_the_plug_in_refuses(plugin: Any, tmp_path: Path) -> None:
    wide = build(small("tree", normalize_activations="none", normalize_target="none"), D, d_out=7)
    save_sae(wide, tmp_path / "transcoder")
    with pytest.raises(InputError, match="a transcoder"):
        plugin.converter(tmp_path / "transcoder")
    save_sae(made("tree"), tmp_path / "sae")
    theirs = SAE.load_from_disk(tmp_path / "sae")
    with pytest.raises(InputError, match="encode it before"):
        theirs.decode(torch.zeros(3, theirs.cfg.d_sae))
    f = theirs.encode(activations()[:1])
    with pytest.raises(InputError, match=r"decode: codes of \[3\] activations"):
        theirs.decode(f.expand(3, -1))
    cfg = json.loads((tmp_path / "sae" / CFG).read_text())
    (tmp_path / "sae" / CFG).write_text(json.dumps({k: v for k, v in cfg.items() if k != "parent"}))
    with pytest.raises(InputError, match="no key 'parent', and SAELens has cast the parents"):
        SAE.load_from_disk(tmp_path / "sae")
    with pytest.raises(InputError, match="in the weights already"):
        theirs.fold_activation_norm_scaling_factor(2.0)
