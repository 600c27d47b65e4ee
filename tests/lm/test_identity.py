"""Which model it is: one model by several spellings, and several models of one shape."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lm_cases import llama, save, tiny
from saeforest.config import TrainConfig
from saeforest.errors import InputError
from saeforest.lm import ModelIdentity, full_name, identify, load_lm, same_model
from saeforest.training.settle import settle_machine


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(save(tiny(llama), tmp_path / "models" / "tiny"))


SPELLINGS: list[Callable[[Path], str]] = [
    lambda folder: str(folder) + "/",
    lambda folder: f"{folder.parent}/../{folder.parent.name}/{folder.name}",
    lambda folder: os.path.relpath(folder),
    lambda folder: "./" + os.path.relpath(folder) + "/.",
    lambda folder: "~/" + folder.name,
]


@pytest.mark.parametrize("spell", SPELLINGS)
def test_spellings_of_one_folder(
    spell: Callable[[Path], str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)
    monkeypatch.setenv("HOME", str(folder.parent))
    name = spell(folder)
    assert full_name(name) == str(folder)
    assert identify(name) == identify(str(folder)) == load_lm(name).identity
    assert load_lm(name).name == str(folder)
    assert settle_machine(TrainConfig(model=name, device="cpu")).model == str(folder)


def test_names_that_are_no_paths_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("smollm2-135m", "org/name", "org/name@main", "~nobody/here", ""):
        assert full_name(name) == name
    (tmp_path / "smollm2-135m").mkdir()  # the embedded model goes first, as in load_lm
    assert full_name("smollm2-135m") == "smollm2-135m"
    (tmp_path / "org" / "name").mkdir(parents=True)
    assert full_name("org/name") == str(tmp_path / "org" / "name")


def test_a_gguf_file_that_is_a_link_keeps_its_name(tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(b"GGUF")
    (tmp_path / "model.gguf").symlink_to(tmp_path / "blob")
    assert full_name(str(tmp_path / "model.gguf")) == str(tmp_path / "model.gguf")


def test_links_and_copies_are_the_same_model(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(folder)
    shutil.copytree(folder, tmp_path / "copy")
    for other in ("link", "copy"):
        assert same_model(identify(str(tmp_path / other)), identify(str(folder)))
    unknown = ModelIdentity(str(tmp_path / "link"))  # as an SAE of an older version names its model
    assert same_model(unknown, identify(str(folder)))
    assert not same_model(ModelIdentity("elsewhere"), identify(str(folder)))


def test_shards_and_a_configuration_saved_anew_are_the_same_model(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    tensors = load_file(folder / "model.safetensors")
    (other / "model.safetensors").unlink()
    where = {name: f"model-{i % 2}.safetensors" for i, name in enumerate(sorted(tensors))}
    for file in set(where.values()):
        save_file({n: t for n, t in tensors.items() if where[n] == file}, other / file, {"format": "pt"})
    (other / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(
        json.dumps(config | {"transformers_version": "4.0", "dtype": "float16"})
    )
    assert same_model(identify(str(other)), identify(str(folder)))
    assert torch.equal(
        load_lm(str(other)).logits(torch.zeros(1, 2).int()), tiny(llama).logits(torch.zeros(1, 2).int())
    )


def test_other_weights_or_another_setting_are_another_model(folder: Path) -> None:
    first = identify(str(folder))
    weights = load_file(folder / "model.safetensors")
    name = "model.layers.2.input_layernorm.weight"
    weights[name] = weights[name] * 1.001
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    tuned = identify(str(folder))
    assert not same_model(first, tuned)
    assert first.name == tuned.name
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-4}))
    assert len({first.fingerprint, tuned.fingerprint, identify(str(folder)).fingerprint}) == 3


def test_a_large_tensor_is_sampled_all_over(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    big = torch.zeros(1 << 20)
    seen = set()
    for i in (None, 0, len(big) // 2, len(big) - 1):
        tensor = big.clone()
        if i is not None:
            tensor[max(0, i - 8192) : i + 8193] = 1
        save_file({"w": tensor}, tmp_path / "model.safetensors")
        seen.add(identify(str(tmp_path)).fingerprint)
    assert len(seen) == 4


def test_hub_names_and_revisions() -> None:
    one, two = "1" * 40, "2" * 40
    a, b = ModelIdentity("org/name", one), ModelIdentity("org/name", two)
    assert not same_model(a, b)
    assert same_model(a, ModelIdentity("org/name"))
    assert not same_model(a, ModelIdentity("org/other"))
    assert same_model(ModelIdentity("a", one, "xxh3:1"), ModelIdentity("b", two, "xxh3:1"))
    assert identify(f"org/name@{one}") == a
    assert identify("org/name@branch") == ModelIdentity("org/name")
    assert not same_model(replace(a, fingerprint="xxh3:1"), replace(a, fingerprint="xxh3:2"))


def test_metadata_goes_around(folder: Path) -> None:
    identity = identify(str(folder))
    assert ModelIdentity.from_dict(json.loads(json.dumps(identity.to_dict()))) == identity
    assert ModelIdentity.from_dict({"model_name": "gpt2"}) == ModelIdentity("gpt2")
    assert ModelIdentity.from_dict({"model_name": 3}) is None
    assert ModelIdentity.from_dict({}) is None
    assert str(folder) in str(identity)
    assert identity.fingerprint[:13] in str(identity)


@pytest.mark.parametrize(
    ("file", "content", "part"),
    [
        ("model.safetensors", b"", "empty"),
        ("model.safetensors", b"\x10\0\0\0\0\0\0\0{", "not a complete safetensors file"),
        (
            "model.safetensors",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
            "Git LFS pointer",
        ),
        ("config.json", b"[", "not valid JSON"),
        ("config.json", b"[" * 100_000, "not valid JSON"),
        ("config.json", b"[]", "expected a JSON object"),
    ],
)
def test_damaged_files(folder: Path, file: str, content: bytes, part: str) -> None:
    (folder / file).write_bytes(content)
    with pytest.raises(InputError, match=part) as info:
        identify(str(folder))
    assert f"{folder / file}: " in str(info.value)
