"""The authors' released SAEs, from folders written here in their layout."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import saeforest
from lm_cases import one_line
from oracles.released import released_forward
from saeforest import InputError
from saeforest.interop.tree_sae import load_tree_sae
from saeforest.saes import SAE, JumpReLUSAE, MatchingPursuitSAE, MatryoshkaSAE, TopKSAE, TreeSAE, save_sae

SIZES, D = [6, 8, 10], 12
F = sum(SIZES)
TYPES: dict[str, tuple[dict[str, Any], type]] = {
    "tree": ({"features_per_layer": SIZES, "k_per_layer": [3, 3, 4]}, TreeSAE),
    "matryoshka": ({"features_per_layer": SIZES, "k_per_layer": [4, 2, 1]}, MatryoshkaSAE),
    "topk": ({"features_per_layer": [F], "k_per_layer": [7]}, TopKSAE),
    "mp": ({"features_per_layer": [F], "k_per_layer": [9]}, MatchingPursuitSAE),
    "relu": ({"features_per_layer": [F]}, JumpReLUSAE),
}
EXTRA = {"lr": 1e-4, "hook_name": "blocks.5.hook_resid_pre", "nested": {"seed": 42}, "patience": float("inf")}


def write_released(folder: Path, kind: str, seed: int = 0) -> Path:
    """Random weights of the given type; the decoder is off unit norm by as much as a step of training leaves."""
    rng = torch.Generator().manual_seed(seed)
    decoder = torch.nn.functional.normalize(torch.randn(D, F, generator=rng), dim=0)
    decoder *= 1 + 0.01 * torch.randn(F, generator=rng)
    tensors = {
        "encoder.weight": decoder.T + 0.2 * torch.randn(F, D, generator=rng),
        "decoder.weight": decoder,
        "b_dec": 0.3 * torch.randn(D, generator=rng),
        "steps_since_fired": torch.randint(0, 99, (F,), generator=rng),
        "steps": torch.tensor(7),
    }
    if kind == "tree":
        start = 0
        for layer, size in enumerate(SIZES):
            tensors[f"parent_index_{layer}"] = torch.randint(0, start + 1, (size,), generator=rng)
            tensors[f"parent_index_{layer}"][0] = start  # the root
            start += size
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(
        json.dumps({"type": kind, **TYPES[kind][0], **EXTRA}), encoding="utf-8"
    )
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "sae.safetensors")
    return folder


@pytest.fixture
def x() -> Tensor:
    """Activations of very different scales and means."""
    rng = torch.Generator().manual_seed(9)
    scale = torch.logspace(-1, 2, 60)[:, None]
    return scale * (torch.randn(60, D, generator=rng) + torch.randn(60, 1, generator=rng))


@torch.no_grad()
def assert_as_theirs(sae: SAE, folder: Path, x: Tensor) -> np.ndarray[Any, Any]:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    tensors = {name: tensor.numpy() for name, tensor in load_file(folder / "sae.safetensors").items()}
    codes, xhat = released_forward(config, tensors, x.numpy())
    np.testing.assert_allclose(sae.encode(x).dense(F), codes, rtol=1e-5, atol=5e-6)
    scale = x.std(1, keepdim=True).numpy()
    np.testing.assert_allclose(sae(x).detach().numpy() / scale, xhat / scale, rtol=1e-5, atol=1e-5)
    return codes


@pytest.mark.parametrize("kind", TYPES)
def test_encodes_and_reconstructs_as_theirs(kind: str, tmp_path: Path, x: Tensor) -> None:
    folder = write_released(tmp_path / "theirs", kind)
    sae = load_tree_sae(folder)
    assert type(sae) is TYPES[kind][1]
    codes = assert_as_theirs(sae, folder, x)
    l0 = (codes > 0).sum(1)
    assert len(set(l0.tolist())) > 1, "rows should differ in how many features act"
    assert sae.W_dec.detach().norm(dim=1).sub(1).abs().max() > 1e-3, "the decoder is kept as stored"
    assert torch.equal(sae.W_dec, load_file(folder / "sae.safetensors")["decoder.weight"].T)
    assert not sae.training


@pytest.mark.parametrize("kind", TYPES)
def test_saved_and_loaded_again_it_is_the_same(kind: str, tmp_path: Path, x: Tensor) -> None:
    first = saeforest.load(write_released(tmp_path / "theirs", kind))
    save_sae(first, tmp_path / "ours")
    again = saeforest.load(tmp_path / "ours")
    assert torch.equal(first.encode(x).dense(F), again.encode(x).dense(F))
    assert torch.equal(first(x), again(x))
    assert again.metadata == first.metadata


def test_the_whole_configuration_is_kept(tmp_path: Path) -> None:
    metadata = load_tree_sae(write_released(tmp_path / "theirs", "tree")).metadata
    assert metadata["released"] == {"type": "tree", **TYPES["tree"][0], **EXTRA, "patience": "Infinity"}
    assert metadata["hook_name"] == EXTRA["hook_name"]


def test_forest_and_layers(tmp_path: Path) -> None:
    folder = write_released(tmp_path / "theirs", "tree")
    stored = load_file(folder / "sae.safetensors")
    forest = load_tree_sae(folder).forest
    assert forest.layer_sizes == tuple(SIZES)
    assert forest.parent[:6].eq(-1).all()
    for layer, start in ((1, 6), (2, 14)):
        theirs = stored[f"parent_index_{layer}"].tolist()
        assert start in theirs, "some feature should hang from the root"
        ours = forest.parent[start : start + SIZES[layer]].tolist()
        assert ours == [-1 if p == start else p for p in theirs]


def test_the_first_layer_needs_no_parents(tmp_path: Path, x: Tensor) -> None:
    folder = write_released(tmp_path / "theirs", "tree")
    change(folder, parent_index_0=None)
    assert_as_theirs(load_tree_sae(folder), folder, x)


def test_a_child_under_a_parent_at_the_gate(tmp_path: Path) -> None:
    """A parent active by 0.0005 is in the code, and opens nothing."""
    folder = write_released(tmp_path / "theirs", "tree")
    encoder, x = torch.zeros(F, D), torch.zeros(2, D)
    x[:, 0], x[:, 1] = 1, -1
    level = float(((x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True))[0, 0])
    encoder[0, 0], encoder[6, 0] = 5e-4 / level, 1.0
    parents = torch.full((8,), 6)
    parents[0] = 0
    change(folder, **{"encoder.weight": encoder, "parent_index_1": parents, "b_dec": torch.zeros(D)})
    sae = load_tree_sae(folder)
    code = sae.encode(x).detach().dense(F)
    assert code[0, 0] == pytest.approx(5e-4, rel=1e-3)
    assert code[0, 6] == 0
    assert_as_theirs(sae, folder, x)


def test_matching_pursuit_has_no_bias_and_one_dictionary(tmp_path: Path, x: Tensor) -> None:
    folder = write_released(tmp_path / "theirs", "mp")
    with_all = load_tree_sae(folder)(x)
    change(folder, **{"encoder.weight": None, "b_dec": None})
    assert torch.equal(load_tree_sae(folder)(x), with_all)


def test_matching_pursuit_stops_when_nothing_is_left(tmp_path: Path, x: Tensor) -> None:
    """An atom leaves 0.004 of the first activation and 0.006 of the second, which goes on."""
    folder = write_released(tmp_path / "theirs", "mp")
    u = (x - x.mean(1, keepdim=True)) / (x.std(1, keepdim=True) + 1e-5)
    decoder = load_file(folder / "sae.safetensors")["decoder.weight"]
    for row, rest in enumerate((0.004, 0.006)):
        other = torch.linalg.qr(torch.stack([u[row], u[2]], dim=1)).Q[:, 1]
        decoder[:, row] = torch.nn.functional.normalize(u[row] - rest * other, dim=0)
    change(folder, **{"decoder.weight": decoder})
    l0 = (assert_as_theirs(load_tree_sae(folder), folder, x) > 0).sum(1)
    assert l0[0] == 1
    assert l0[1] > 1


@pytest.mark.parametrize("kind", ["topk", "relu"])
def test_layers_of_a_flat_sae_are_one_dictionary(kind: str, tmp_path: Path, x: Tensor) -> None:
    folder = write_released(tmp_path / "theirs", kind)
    configure(folder, features_per_layer=SIZES, k_per_layer=[3, 3, 1])
    sae = load_tree_sae(folder)
    assert sae.config.layer_sizes == (F,)
    assert_as_theirs(sae, folder, x)


def test_numbers_in_place_of_lists_and_half_precision(tmp_path: Path, x: Tensor) -> None:
    folder = write_released(tmp_path / "theirs", "topk")
    configure(folder, features_per_layer=F, k_per_layer=7)
    change(
        folder,
        **{k: v.half() for k, v in load_file(folder / "sae.safetensors").items() if v.is_floating_point()},
    )
    sae = load_tree_sae(folder)
    assert sae.W_enc.dtype == torch.float32
    configure(folder, features_per_layer=[F], k_per_layer=[7])
    assert_as_theirs(sae, folder, x)


# Damage


def change(folder: Path, **tensors: Tensor | None) -> None:
    """Other tensors in the file; None takes one away."""
    stored = {**load_file(folder / "sae.safetensors"), **tensors}
    save_file({k: v.contiguous() for k, v in stored.items() if v is not None}, folder / "sae.safetensors")


def configure(folder: Path, **values: Any) -> None:
    """Other values in config.json; None takes a key away."""
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | values
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not None}), encoding="utf-8")


def with_nan(folder: Path) -> None:
    encoder = load_file(folder / "sae.safetensors")["encoder.weight"]
    encoder[3, 3] = torch.nan
    change(folder, **{"encoder.weight": encoder})


DAMAGE: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "no config": (lambda f: (f / "config.json").unlink(), ["config.json", "no such file"]),
    "no weights": (lambda f: (f / "sae.safetensors").unlink(), ["sae.safetensors", "no such file"]),
    "no JSON": (lambda f: (f / "config.json").write_text("{"), ["config.json", "not valid JSON"]),
    "a list": (lambda f: (f / "config.json").write_text("[]"), ["config.json", "expected a JSON object"]),
    "cut off": (
        lambda f: (f / "sae.safetensors").write_bytes(b"12345678"),
        ["sae.safetensors", "not a whole"],
    ),
    "no type": (lambda f: configure(f, type=None), ["config.json", "'type' is None", "tree, matryoshka"]),
    "unknown type": (lambda f: configure(f, type="gated"), ["config.json", "'type' is 'gated'", "mp, relu"]),
    "no sizes": (
        lambda f: configure(f, features_per_layer=None),
        ["config.json", "'features_per_layer' is missing"],
    ),
    "no k": (lambda f: configure(f, k_per_layer=None), ["config.json", "'k_per_layer' is missing"]),
    "size in words": (
        lambda f: configure(f, features_per_layer=["6"]),
        ["config.json", "'features_per_layer' is"],
    ),
    "k of none": (
        lambda f: configure(f, k_per_layer=[3, 0, 1]),
        ["config.json", "'k_per_layer' is [3, 0, 1]"],
    ),
    "too few k": (
        lambda f: configure(f, k_per_layer=[3, 3]),
        ["config.json", "'k_per_layer' has 2 entries", "has 3"],
    ),
    "large k": (
        lambda f: configure(f, k_per_layer=[3, 9, 1]),
        ["config.json", "'k_per_layer' asks for 9", "of 8"],
    ),
    "missing tensor": (
        lambda f: change(f, **{"encoder.weight": None}),
        ["sae.safetensors", "'encoder.weight' is missing", "decoder.weight"],
    ),
    "missing bias": (lambda f: change(f, b_dec=None), ["sae.safetensors", "'b_dec' is missing"]),
    "missing parents": (
        lambda f: change(f, parent_index_2=None),
        ["sae.safetensors", "'parent_index_2' is missing"],
    ),
    "wide encoder": (
        lambda f: change(f, **{"encoder.weight": torch.zeros(F, D + 1)}),
        ["sae.safetensors", f"'encoder.weight' has shape [{F}, {D + 1}]", f"[{F}, {D}]"],
    ),
    "other decoder": (
        lambda f: change(f, **{"decoder.weight": torch.zeros(D, F - 1)}),
        ["sae.safetensors", f"'decoder.weight' has shape [{D}, {F - 1}]", f"[d_in, {F}]"],
    ),
    "flat decoder": (
        lambda f: change(f, **{"decoder.weight": torch.zeros(F)}),
        ["'decoder.weight' has shape"],
    ),
    "no width": (
        lambda f: change(f, **{"decoder.weight": torch.zeros(0, F)}),
        ["'decoder.weight' has shape"],
    ),
    "whole numbers": (
        lambda f: change(f, b_dec=torch.zeros(D, dtype=torch.int64)),
        ["'b_dec' has dtype torch.int64"],
    ),
    "NaN": (with_nan, ["sae.safetensors", "'encoder.weight' holds NaN"]),
    "encoder bias": (lambda f: change(f, **{"encoder.bias": torch.ones(F)}), ["'encoder.bias' is not zero"]),
    "short parents": (
        lambda f: change(f, parent_index_1=torch.zeros(7, dtype=torch.int64)),
        ["'parent_index_1' has"],
    ),
    "real parents": (
        lambda f: change(f, parent_index_1=torch.zeros(8)),
        ["'parent_index_1' has dtype torch.float32"],
    ),
    "late parent": (
        lambda f: change(f, parent_index_1=torch.full((8,), 7)),
        ["sae.safetensors", "'parent_index_1' holds 7", "0 to 5", "6, the root"],
    ),
    "negative parent": (
        lambda f: change(f, parent_index_2=torch.full((10,), -1)),
        ["'parent_index_2' holds -1"],
    ),
    "parents of the first": (
        lambda f: change(f, parent_index_0=torch.ones(6, dtype=torch.int64)),
        ["'parent_index_0' holds 1", "expected 0"],
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_named_in_one_line(name: str, tmp_path: Path) -> None:
    damage, words = DAMAGE[name]
    folder = write_released(tmp_path / "theirs", "tree")
    damage(folder)
    with pytest.raises(InputError) as info:
        saeforest.load(folder)
    assert str(folder) in str(info.value)
    one_line(info, *words)


@pytest.mark.parametrize("kind", ["matryoshka", "topk", "mp"])
def test_k_larger_than_the_dictionary(kind: str, tmp_path: Path) -> None:
    folder = write_released(tmp_path / "theirs", kind)
    configure(folder, k_per_layer=[20, 5])
    with pytest.raises(InputError) as info:
        load_tree_sae(folder)
    one_line(info, "config.json", "'k_per_layer' asks for 25", f"of {F}")


# Where they are


def test_a_folder_of_several(tmp_path: Path) -> None:
    for name in ("tree", "topk"):
        write_released(tmp_path / "all" / name, name)
    with pytest.raises(InputError) as info:
        saeforest.load(tmp_path / "all")
    one_line(info, "holds several SAEs", "topk, tree")
    assert isinstance(saeforest.load(str(tmp_path / "all" / "tree")), TreeSAE)
