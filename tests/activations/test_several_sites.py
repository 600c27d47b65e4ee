"""Activations at two sites, read in one pass: every row keeps both, wherever it waits and however it is shuffled."""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from edits import edit_json, forget_checksums
from llama_cases import MakeConfig
from saeforest.activations import (
    ActivationReader,
    ActivationStream,
    Blocks,
    LiveActivations,
    harvest_folder,
    harvest_memory,
    load_memory,
    open_store,
    sources,
    writer,
)
from saeforest.errors import InputError
from saeforest.files import read_json
from saeforest.session import open_reader, read_tokens
from saeforest.stopping import Interrupted, Stop
from saeforest.text import Tokens

FIRST, OTHER = "blocks.1.ln2.hook_normalized", "model.layers.1.mlp.up_proj"
Open = Callable[[str], Blocks]


@pytest.fixture(scope="module")
def reader(tiny_config: MakeConfig) -> ActivationReader:
    one = open_reader(tiny_config(site=FIRST))
    return replace(one, others=(one.lm.site(OTHER),), batch_size=4)


@pytest.fixture(scope="module")
def tokens(tiny_config: MakeConfig, reader: ActivationReader) -> Tokens:
    return read_tokens(tiny_config(), reader, "train", 1280)


def about(reader: ActivationReader) -> dict[str, Any]:
    return {
        "model": "tiny", "site": FIRST, "data": "text", "tokens": 1280, "context": 32, "held_out": 0.2,
        "exclude_first": True, "exclude_special": True, "max_norm": 0.0, "sites": reader.widths,
    }  # fmt: skip


@pytest.fixture
def open_source(
    reader: ActivationReader, tokens: Tokens, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Open:
    monkeypatch.setattr(sources, "BLOCK_ROWS", 100)
    monkeypatch.setattr(writer, "SHARD_ROWS", 100)
    monkeypatch.setattr(sources, "SHARDS_MIXED", 2)

    def open_kind(kind: str) -> Blocks:
        if kind == "live":
            return LiveActivations(reader, tokens, 0, reader.widths[FIRST])
        if kind == "memory":
            return harvest_memory(reader, tokens, 0)
        harvest_folder(reader, tokens, tmp_path / "store", about(reader))
        store = open_store(tmp_path / "store")
        return store if kind == "disk" else load_memory(store, 0)

    return open_kind


@pytest.mark.parametrize("kind", ["memory", "disk", "live", "memory from disk"])
def test_rows_of_all_sites_are_shuffled_together(
    kind: str, open_source: Open, reader: ActivationReader, tokens: Tokens
) -> None:
    x, other = (reader.lm.activations(tokens.ids.long(), name).flatten(0, 1) for name in (FIRST, OTHER))
    assert x.shape[1] != other.shape[1]
    stream = ActivationStream(open_source(kind), 37)
    seen = []
    for _ in range(20):
        batch = stream.next()
        seen.append(batch.rows)
        assert list(batch.others) == [OTHER]
        torch.testing.assert_close(batch.x, x[batch.rows])
        torch.testing.assert_close(batch.others[OTHER], other[batch.rows])
    assert torch.cat(seen).diff().abs().float().mean() > 10  # far from the order of the text


def test_the_first_site_is_read_as_if_it_were_alone(reader: ActivationReader, tokens: Tokens) -> None:
    alone = replace(reader, others=())
    windows = torch.arange(5)
    both, one = reader.read(tokens, windows), alone.read(tokens, windows)
    assert torch.equal(both.x, one.x)
    assert torch.equal(both.rows, one.rows)
    assert one.others == {}


def test_the_manifest_names_all_sites(open_source: Open, tmp_path: Path, reader: ActivationReader) -> None:
    open_source("disk")
    manifest = read_json(tmp_path / "store" / "activations.json")
    assert (manifest["site"], manifest["d_in"]) == (FIRST, reader.widths[FIRST])
    assert manifest["sites"] == reader.widths
    tensors = load_file(tmp_path / "store" / "shard-00000.safetensors")
    assert set(tensors) == {"x", "rows", f"x at {OTHER}"}


def test_a_shard_without_one_of_the_sites_is_refused(open_source: Open, tmp_path: Path) -> None:
    open_source("disk")
    path = tmp_path / "store" / "shard-00001.safetensors"
    save_file({name: x for name, x in load_file(path).items() if OTHER not in name}, path)
    forget_checksums(tmp_path / "store")
    with pytest.raises(InputError, match=f"expected x at {OTHER}"):
        open_store(tmp_path / "store").shard(1)


def test_a_harvest_of_several_sites_goes_on(
    open_source: Open, tmp_path: Path, reader: ActivationReader, tokens: Tokens
) -> None:
    open_source("disk")
    whole = (tmp_path / "store" / "shard-00000.safetensors").read_bytes()
    told, folder = Stop(), tmp_path / "again"
    told.signum = signal.SIGINT  # after the first windows
    with pytest.raises(Interrupted):
        harvest_memory(reader, tokens, 0, folder, about(reader), told)
    read = harvest_memory(reader, tokens, 0, folder, about(reader))
    assert torch.equal(read.others[OTHER], load_memory(open_store(folder), 0).others[OTHER])
    assert (folder / "shard-00000.safetensors").read_bytes() == whole


def test_a_number_that_is_none_is_found_at_any_site(reader: ActivationReader, tokens: Tokens) -> None:
    windows = torch.arange(1)
    x, other = (reader.lm.activations(tokens.ids[:1].long(), name) for name in (FIRST, OTHER))
    other[0, 6, 3] = float("nan")
    with pytest.raises(InputError, match=f"activations at {OTHER} of .*token 6"):
        reader.kept(tokens, windows, x, other)
    reader.kept(tokens, windows, x)  # of the first alone


def test_widths_in_a_manifest_are_checked(open_source: Open, tmp_path: Path) -> None:
    open_source("disk")
    edit_json(tmp_path / "store" / "activations.json", lambda manifest: manifest["sites"].update({OTHER: 0}))
    with pytest.raises(InputError, match=r"activations\.json"):
        open_store(tmp_path / "store")
