"""GGUF files and their copies. Unpacking is stood in for by a tiny model."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from torch import Tensor
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from lm_cases import (
    VOCAB,
    llama,
    one_line,
    tiny,
    truncated_weights,
)
from saeforest.errors import InputError
from saeforest.lm import LanguageModel, load_lm
from saeforest.lm import gguf as gguf_module


@pytest.fixture
def ids() -> Tensor:
    return torch.randint(0, VOCAB, (2, 7), generator=torch.Generator().manual_seed(1))


@dataclass
class Unpacked:
    """What stands in for unpacking: counts the calls, and does `meanwhile` in each."""

    lm: LanguageModel
    calls: int = 0
    meanwhile: Callable[[], None] = lambda: None

    def __call__(self, path: Path, dtype: torch.dtype) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        self.calls += 1
        self.meanwhile()
        model: Any = copy.deepcopy(self.lm.model)
        return model.to(dtype), self.lm.tokenizer


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SAEFOREST_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "models"


@pytest.fixture
def unpacked(monkeypatch: pytest.MonkeyPatch) -> Unpacked:
    fake = Unpacked(tiny(llama))
    monkeypatch.setattr(gguf_module, "_unpack", fake)
    return fake


@pytest.fixture
def gguf_file(tmp_path: Path) -> Path:
    file = tmp_path / "small.gguf"
    file.write_bytes(b"one")
    return file


def test_gguf_is_unpacked_once(cache: Path, unpacked: Unpacked, gguf_file: Path, ids: Tensor) -> None:
    expected = unpacked.lm.token_losses(ids)
    for _ in range(2):
        assert torch.equal(load_lm(str(gguf_file)).token_losses(ids), expected)
    assert load_lm(str(gguf_file), dtype=torch.bfloat16).dtype == torch.bfloat16
    assert unpacked.calls == 1
    assert [folder.name[:6] for folder in cache.iterdir()] == ["small-"]

    gguf_file.write_bytes(b"two")
    load_lm(str(gguf_file))
    assert unpacked.calls == 2
    assert len(list(cache.iterdir())) == 2


def test_gguf_without_a_writable_cache(
    tmp_path: Path, unpacked: Unpacked, gguf_file: Path, monkeypatch: pytest.MonkeyPatch, ids: Tensor
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("SAEFOREST_CACHE", str(tmp_path / "file"))
    expected = unpacked.lm.token_losses(ids)
    assert torch.equal(load_lm(str(gguf_file)).token_losses(ids), expected)


def test_damaged_copy_is_made_again(cache: Path, unpacked: Unpacked, gguf_file: Path, ids: Tensor) -> None:
    load_lm(str(gguf_file))
    (folder,) = cache.iterdir()
    truncated_weights(folder)
    expected = unpacked.lm.token_losses(ids)
    for _ in range(3):
        assert torch.equal(load_lm(str(gguf_file)).token_losses(ids), expected)
    assert unpacked.calls == 2  # at first, and for the new copy
    assert list(cache.iterdir()) == [folder]


def test_two_processes_may_unpack_at_once(cache: Path, unpacked: Unpacked, gguf_file: Path) -> None:
    def other_process() -> None:
        unpacked.meanwhile = lambda: None
        load_lm(str(gguf_file))

    unpacked.meanwhile = other_process
    load_lm(str(gguf_file))
    assert unpacked.calls == 2
    assert len(list(cache.iterdir())) == 1  # one copy, and nothing half-made


def test_damaged_gguf(cache: Path, gguf_file: Path) -> None:
    gguf_file.write_bytes(b"GGUF and no more")
    with pytest.raises(InputError) as info:
        load_lm(str(gguf_file))
    one_line(info, "not a readable causal language model")
    assert list(cache.iterdir()) == []


def test_a_file_is_parsed_once_and_gguf_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[str] = []
    monkeypatch.setattr(gguf, "GGUFReader", lambda path: parsed.append(path) or object())
    before = gguf.GGUFReader, gguf.get_tensor_name_map
    with suppress(KeyError), gguf_module._parsed_once():
        first = gguf.GGUFReader(Path("a.gguf"))  # pyright: ignore[reportArgumentType]
        assert gguf.GGUFReader("a.gguf") is first
        raise KeyError
    assert parsed == ["a.gguf"]
    assert (gguf.GGUFReader, gguf.get_tensor_name_map) == before
