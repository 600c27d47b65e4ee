"""Where an SAE is: folders of every layout, and a Hub that stands in for the one that tests cannot reach."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from saelens_folders import D, F, write_saelens
from safetensors.torch import save_file
from test_tree_sae import write_released

import saeforest
from lm_cases import one_line
from saeforest import InputError
from saeforest.interop import hub as hub_module
from saeforest.interop.gemma_scope import load_gemma_scope
from saeforest.saes import BatchTopKSAE, JumpReLUSAE, TopKConfig, TopKSAE, TreeSAE, build, save_sae

HUB = "org/saes"


# Gemma Scope


def gemma_arrays(seed: int = 0) -> dict[str, np.ndarray[Any, Any]]:
    rng = np.random.default_rng(seed)
    shapes = {"W_enc": (D, F), "W_dec": (F, D), "b_enc": (F,), "b_dec": (D,), "threshold": (F,)}
    arrays = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    return arrays | {"threshold": np.abs(arrays["threshold"])}


def write_gemma(folder: Path, seed: int = 0, **changes: Any) -> Path:
    folder.mkdir(parents=True)
    arrays = gemma_arrays(seed) | changes
    save_arrays(folder, {k: v for k, v in arrays.items() if v is not None})
    return folder


def write_gemma_2(folder: Path, config: dict[str, Any], **more: np.ndarray[Any, Any]) -> Path:
    folder.mkdir(parents=True)
    tensors = {
        name.replace("W_", "w_"): torch.tensor(array) for name, array in (gemma_arrays() | more).items()
    }
    save_file(tensors, folder / "params.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def save_arrays(folder: Path, arrays: dict[str, Any]) -> None:
    np.savez(folder / "params.npz", **arrays)


def gemma_forward(x: torch.Tensor) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    w = {name: array.astype(np.float64) for name, array in gemma_arrays().items()}
    h = x.double().numpy() @ w["W_enc"] + w["b_enc"]
    f = np.where(h > w["threshold"], np.maximum(h, 0), 0)
    return f, f @ w["W_dec"] + w["b_dec"]


@pytest.mark.parametrize("place", ["average_l0_71", "transcoders/average_l0_71", "2", "2-transcoder"])
@torch.no_grad()
def test_gemma_scope(place: str, tmp_path: Path) -> None:
    folder = tmp_path / "g" / place
    hooks = {"hf_hook_point_in": "model.layers.1.pre_feedforward_layernorm.output"}
    if "2" in place:
        out = {"hf_hook_point_out": "model.layers.1.post_feedforward_layernorm.output"}
        write_gemma_2(
            folder, {"model_name": "google/gemma-3-1b-pt", **hooks, **(out if "-" in place else {})}
        )
    else:
        write_gemma(folder)
    sae = saeforest.load(folder)
    assert type(sae) is (BatchTopKSAE if "transcoder" in place else JumpReLUSAE)
    assert sae.is_transcoder is ("transcoder" in place)
    assert sae.metadata.get("model_name") == ("google/gemma-3-1b-pt" if "2" in place else None)
    x = 3 * torch.randn(50, D, generator=torch.Generator().manual_seed(1))
    codes, xhat = gemma_forward(x)
    np.testing.assert_allclose(sae.encode(x).dense(F).numpy(), codes, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(sae(x).numpy(), xhat, rtol=1e-5, atol=1e-4)
    assert (codes > 0).any()


def pickled(folder: Path) -> None:
    save_arrays(folder, gemma_arrays() | {"W_enc": np.array([{"an": "object"}])})


GEMMA: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "cut off": (lambda f: (f / "params.npz").write_bytes(b"PK\x03\x04"), ["params.npz", "not a whole file"]),
    "no archive": (lambda f: (f / "params.npz").write_bytes(b"words"), ["params.npz", "not a whole file"]),
    "objects": (pickled, ["params.npz", "not a whole file"]),
    "missing": (
        lambda f: save_arrays(f, {k: v for k, v in gemma_arrays().items() if k != "b_enc"}),
        ["params.npz", "'b_enc' is missing"],
    ),
    "no encoder": (lambda f: save_arrays(f, {"b": np.ones(3)}), ["params.npz", "holds b"]),
    "a vector": (
        lambda f: save_arrays(f, gemma_arrays() | {"W_enc": np.ones(3)}),
        ["params.npz", "no matrix 'W_enc'"],
    ),
    "other widths": (
        lambda f: save_arrays(f, gemma_arrays() | {"W_dec": np.ones((F, D + 1))}),
        ["params.npz", "'W_dec' has shape"],
    ),
    "a skip connection": (
        lambda f: save_arrays(f, gemma_arrays() | {"affine_skip_connection": np.ones((D, D))}),
        ["params.npz", "affine_skip_connection", "cannot be loaded"],
    ),
}


@pytest.mark.parametrize("name", GEMMA)
def test_damage_to_gemma_scope(name: str, tmp_path: Path) -> None:
    damage, words = GEMMA[name]
    folder = write_gemma(tmp_path / "sae")
    damage(folder)
    with pytest.raises(InputError) as info:
        load_gemma_scope(folder)
    one_line(info, str(folder), *words)


# Folders


@pytest.mark.parametrize("source", ["/nowhere/at/all", "nowhere", "./a/b", Path("org/saes"), "org/saes:../x"])
def test_no_such_folder(source: str | Path) -> None:
    with pytest.raises(InputError, match="no such folder") as info:
        saeforest.load(source)
    one_line(info, str(source))


def test_a_file_and_an_empty_folder(tmp_path: Path) -> None:
    folder = write_saelens(tmp_path / "sae", "topk")
    with pytest.raises(InputError) as info:
        saeforest.load(folder / "cfg.json")
    one_line(info, "cfg.json: not a folder")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError) as info:
        saeforest.load(tmp_path / "empty")
    one_line(info, "empty: holds no SAE", "sae_weights.safetensors", "params.npz", "sae.safetensors")


def test_a_folder_of_several(tmp_path: Path) -> None:
    write_saelens(tmp_path / "all" / "one", "topk")
    write_gemma(tmp_path / "all" / "two")
    write_released(tmp_path / "all" / "three", "tree")
    with pytest.raises(InputError) as info:
        saeforest.load(tmp_path / "all")
    one_line(info, "holds several SAEs", "one, three, two")


def test_ours_beside_theirs(tmp_path: Path) -> None:
    save_sae(build(TopKConfig((8,), (2,), "none"), 4), tmp_path / "run" / "sae")
    for place in ("run", "run/sae"):
        assert isinstance(saeforest.load(tmp_path / place), TopKSAE)
        assert isinstance(saeforest.load(str(tmp_path / place)), TopKSAE)


# On the Hub


@pytest.mark.parametrize("source", [HUB, f"{HUB}:gpt2/tree", f"{HUB}@main:a", "runs/misspelled"])
def test_the_hub_cannot_be_reached(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputError) as info:
        saeforest.load(source)
    repo = source.partition(":")[0].partition("@")[0]
    one_line(info, f"{repo}: no such folder, and the Hub", "org/repo:folder")


@pytest.mark.parametrize("source", [f"{HUB}:gpt2/tree", f"{HUB}:gpt2/tree/", f"{HUB}@main:gpt2/tree"])
def test_what_was_downloaded_before_is_used(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The Hub's client finds it in its cache; nobody asks the Hub."""
    repo = tmp_path / "models--org--saes"
    write_released(repo / "snapshots" / ("a" * 40) / "gpt2" / "tree", "tree")
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("a" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(hub_module, "HfApi", None)
    assert isinstance(saeforest.load(source), TreeSAE)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Hub that has what is in the folder returned; nothing is downloaded yet."""
    there, here = tmp_path / "hub", tmp_path / "cache"
    there.mkdir()
    here.mkdir()

    def model_info(repo: str, *, revision: str | None, timeout: float) -> SimpleNamespace:
        assert repo == HUB
        assert revision in (None, "v2")
        files = [str(path.relative_to(there)) for path in there.rglob("*") if path.is_file()]
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=name) for name in files], sha="c0ffee")

    def snapshot_download(
        repo: str, *, revision: str | None, allow_patterns: list[str], local_files_only: bool = False
    ) -> str:
        assert repo == HUB
        if local_files_only:
            if not any(here.iterdir()):
                raise LocalEntryNotFoundError("nothing here")
            return str(here)
        assert revision == "c0ffee", "what is downloaded is what was asked about"
        for name in allow_patterns:
            if (there / name).exists():
                (here / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(there / name, here / name)
        return str(here)

    monkeypatch.setattr(hub_module, "HfApi", lambda: SimpleNamespace(model_info=model_info))
    monkeypatch.setattr(hub_module, "snapshot_download", snapshot_download)
    return there


def test_downloads_the_one_that_is_asked_for(hub: Path, tmp_path: Path) -> None:
    x = torch.randn(5, D)
    for seed, name in enumerate(("blocks.8.hook_resid_pre", "layer_1/a+b=1,2")):
        write_saelens(hub / name, "jumprelu", seed)
        (hub / name / "sparsity.safetensors").write_text("not read")
    first = saeforest.load(f"{HUB}:blocks.8.hook_resid_pre")
    files = sorted(path.name for path in (tmp_path / "cache").rglob("*") if path.is_file())
    assert files == ["cfg.json", "sae_weights.safetensors"], "and nothing else"
    assert torch.equal(first(x), saeforest.load(hub / "blocks.8.hook_resid_pre")(x))
    # The first is there, the second is not, and is fetched.
    second = saeforest.load(f"{HUB}@v2:layer_1/a+b=1,2")
    assert torch.equal(second(x), saeforest.load(hub / "layer_1/a+b=1,2")(x))


@pytest.mark.parametrize("layout", ["ours", "saelens", "gemma scope", "tree-sae"])
def test_downloads_a_repository_of_one(layout: str, hub: Path) -> None:
    hub.rmdir()
    match layout:
        case "ours":
            save_sae(build(TopKConfig((8,), (2,), "none"), 4), hub)
        case "saelens":
            write_saelens(hub, "topk", normalize_activations="expected_average_only_in")
            (hub / "activation_scaler.json").write_text('{"scaling_factor": 0.25}')
        case "gemma scope":
            write_gemma(hub)
        case _:
            write_released(hub, "relu")
    expected = saeforest.load(hub)
    x = torch.randn(5, expected.d_in)
    assert torch.equal(saeforest.load(HUB)(x), expected(x))


def test_the_hub_has_others(hub: Path) -> None:
    write_saelens(hub / "layer_1", "topk")
    write_gemma(hub / "layer_2" / "width_16k")
    (hub / "docs").mkdir()
    (hub / "docs" / "cfg.json").write_text("{}")
    for source, where in ((HUB, "its root"), (f"{HUB}:layer_2", "the folder layer_2")):
        with pytest.raises(InputError) as info:
            saeforest.load(source)
        one_line(info, f"{HUB}: no SAE in {where}", f"it holds {HUB}:layer_1, {HUB}:layer_2/width_16k")


def test_a_download_that_fails(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_saelens(hub / "one", "topk")

    def broken(*_: Any, **__: Any) -> str:
        raise OSError("no space left\non the device")

    monkeypatch.setattr(hub_module, "snapshot_download", broken)
    with pytest.raises(InputError) as info:
        saeforest.load(f"{HUB}:one")
    one_line(info, HUB, "download from the Hub failed (no space left)")
