"""Where an SAE is: folders of every layout, and the Hub."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from saelens_folders import D, F, write_saelens
from safetensors.torch import save_file
from test_tree_sae import write_released

import saeforest
from hub_cases import READER, Hub, point_client
from lm_cases import one_line
from saeforest import InputError
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
def test_gemma_scope(place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
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
    assert ("taken for a transcoder" in capsys.readouterr().err) is place.startswith("transcoders")
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
    repo = source.partition(":")[0].partition("@")[0]
    point_client(monkeypatch, "http://127.0.0.1:1", tmp_path)
    for offline in (False, True):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
        with pytest.raises(InputError) as info:
            saeforest.load(source)
        one_line(info, f"{repo}: no such folder, and the Hub cannot be reached", "org/repo:folder")


def test_downloads_the_one_that_is_asked_for(hub: Hub, tmp_path: Path) -> None:
    x = torch.randn(5, D)
    first, second = "blocks.8.hook_resid_pre", "layer_1/a+b=1,2"
    for seed, name in enumerate((first, second)):
        write_saelens(tmp_path / "saes" / name, "jumprelu", seed)
        (tmp_path / "saes" / name / "sparsity.safetensors").write_text("not read")
    hub.add_folder(HUB, tmp_path / "saes")
    sae = saeforest.load(f"{HUB}:{first}")
    assert downloaded(tmp_path) == ["cfg.json", "sae_weights.safetensors"], "and nothing else"
    assert torch.equal(sae(x), saeforest.load(tmp_path / "saes" / first)(x))
    # The first is there, the second is not, and is fetched.
    assert torch.equal(
        saeforest.load(f"{HUB}@main:{second}")(x), saeforest.load(tmp_path / "saes" / second)(x)
    )


def downloaded(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "client").glob("hub/*/snapshots/**/*") if path.is_file())


@pytest.mark.parametrize("source", [f"{HUB}:gpt2/tree", f"{HUB}:gpt2/tree/", f"{HUB}@main:gpt2/tree"])
def test_what_was_downloaded_before_is_used(source: str, hub: Hub, tmp_path: Path) -> None:
    write_released(tmp_path / "saes" / "gpt2" / "tree", "tree")
    hub.add_folder(HUB, tmp_path / "saes")
    assert isinstance(saeforest.load(source), TreeSAE)
    hub.requests.clear()
    assert isinstance(saeforest.load(source), TreeSAE)
    assert not hub.requests, "nobody asks the Hub"


@pytest.mark.parametrize("layout", ["ours", "saelens", "gemma scope", "tree-sae"])
def test_downloads_a_repository_of_one(layout: str, hub: Hub, tmp_path: Path) -> None:
    folder = tmp_path / "sae"
    match layout:
        case "ours":
            save_sae(build(TopKConfig((8,), (2,), "none"), 4), folder)
        case "saelens":
            write_saelens(folder, "topk", normalize_activations="expected_average_only_in")
            (folder / "activation_scaler.json").write_text('{"scaling_factor": 0.25}')
        case "gemma scope":
            write_gemma(folder)
        case _:
            write_released(folder, "relu")
    hub.add_folder(HUB, folder)
    expected = saeforest.load(folder)
    x = torch.randn(5, expected.d_in)
    assert torch.equal(saeforest.load(HUB)(x), expected(x))


def test_a_revision(hub: Hub, tmp_path: Path) -> None:
    """The commit of a moment is that of the moment, by either spelling; a folder has none."""
    folders = [write_saelens(tmp_path / str(seed), "topk", seed) for seed in range(2)]
    repo = hub.add_folder(HUB, folders[0])
    repo.commit({path.name: path.read_bytes() for path in folders[1].iterdir()})
    x = torch.randn(5, D)
    old = repo.commits[0][0]
    for sae in (saeforest.load(HUB, revision=old), saeforest.load(f"{HUB}@{old}")):
        assert torch.equal(sae(x), saeforest.load(folders[0])(x))
    assert torch.equal(saeforest.load(HUB)(x), saeforest.load(folders[1])(x))
    for source, revision, words in (
        (HUB, "v9", "no revision v9 on the Hub"),
        (f"{HUB}@main", old, "has a revision already"),
        (folders[0], "main", "is a folder, which has no revisions"),
    ):
        with pytest.raises(InputError) as info:
            saeforest.load(source, revision=revision)
        one_line(info, words)


def test_the_hub_has_others(hub: Hub, tmp_path: Path) -> None:
    write_saelens(tmp_path / "saes" / "layer_1", "topk")
    write_gemma(tmp_path / "saes" / "layer_2" / "width_16k")
    (tmp_path / "saes" / "docs").mkdir()
    (tmp_path / "saes" / "docs" / "cfg.json").write_text("{}")
    hub.add_folder(HUB, tmp_path / "saes")
    for source, where in ((HUB, "its root"), (f"{HUB}:layer_2", "the folder layer_2")):
        with pytest.raises(InputError) as info:
            saeforest.load(source)
        one_line(info, f"{HUB}: no SAE in {where}", f"it holds {HUB}:layer_1, {HUB}:layer_2/width_16k")


def test_what_the_hub_does_not_show(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A private repository, without a token and with one."""
    hub.add_folder(HUB, write_saelens(tmp_path / "sae", "topk")).private = True
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(InputError) as info:
        saeforest.load(HUB)
    one_line(info, HUB, "a private one that needs a token", "hf auth login")
    monkeypatch.setenv("HF_TOKEN", READER)
    assert saeforest.load(HUB).d_sae == F


def test_a_download_that_fails(hub: Hub, tmp_path: Path) -> None:
    hub.add_folder(HUB, write_saelens(tmp_path / "sae", "topk"))
    (tmp_path / "client").write_text("a file where the cache should be")
    with pytest.raises(InputError) as info:
        saeforest.load(HUB)
    one_line(info, HUB, "download from the Hub failed")
