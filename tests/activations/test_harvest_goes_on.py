"""A harvest that was stopped goes on: no window is read twice, and the store has the same bits."""

from __future__ import annotations

import errno
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from harvest_cases import ABOUT, SHARD_ROWS, kept_shards, on_read, on_write
from llama_cases import MakeConfig
from saeforest import InputError
from saeforest.activations import (
    ActivationReader,
    harvest_folder,
    harvest_memory,
    load_memory,
    open_store,
    writer,
)
from saeforest.activations.folder import LocalFolder
from saeforest.activations.plan import read_entry
from saeforest.activations.sources import is_store
from saeforest.session import open_reader, read_tokens
from saeforest.stopping import Interrupted, Stop
from saeforest.text import Tokens


@pytest.fixture(scope="module")
def tokens(tiny_config: MakeConfig) -> Tokens:
    return read_tokens(tiny_config(), open_reader(tiny_config()), "train", 1280)


@pytest.fixture
def reader(tiny_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> ActivationReader:
    """A new one each time, for its times; 5 batches of windows and 3 shards for `tokens`."""
    monkeypatch.setattr(writer, "SHARD_ROWS", SHARD_ROWS)
    return open_reader(tiny_config())


# A harvest that was stopped goes on

TOLD = Stop()
TOLD.signum = signal.SIGTERM


def whole(reader: ActivationReader, tokens: Tokens, folder: Path) -> dict[str, bytes]:
    """The files of a store, but for how long it took."""
    harvest_folder(reader, tokens, folder, ABOUT)
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.name != "harvest.json"}


@pytest.mark.parametrize("into", ["folder", "memory"])
def test_a_harvest_stopped_after_every_batch_reads_no_window_twice(
    into: str, reader: ActivationReader, tokens: Tokens, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = whole(reader, tokens, tmp_path / "whole")
    in_one_go = harvest_memory(reader, tokens, 0)
    read: list[int] = []
    begin = ActivationReader._begin

    def count(self: ActivationReader, tokens: Tokens, windows: Tensor) -> Any:
        read.extend(windows.tolist())
        return begin(self, tokens, windows)

    monkeypatch.setattr(ActivationReader, "_begin", count)
    folder, stops, memory = tmp_path / "store", [], None
    signums: set[int] = set()
    while not is_store(folder):
        try:
            if into == "folder":
                harvest_folder(reader, tokens, folder, ABOUT, stop=TOLD)
            else:
                memory = harvest_memory(reader, tokens, 0, folder, ABOUT, stop=TOLD)
        except Interrupted as stop:
            stops.append(str(stop))
            signums.add(stop.signum)
    batches = -(-len(tokens.ids) // reader.batch_size)
    assert signums == {signal.SIGTERM}
    assert stops == [f"stopped after {256 * i:,} of 1,280 tokens" for i in range(1, batches + 1)]
    # The language model is one batch ahead of what is kept, and that one is read again.
    assert len(read) <= 2 * len(tokens.ids)
    assert {p.name: p.read_bytes() for p in folder.iterdir() if p.name != "harvest.json"} == expected
    if memory is not None:
        assert torch.equal(memory.x, in_one_go.x)
        assert torch.equal(memory.rows, in_one_go.rows)
    loaded = load_memory(open_store(folder), 0)
    assert torch.equal(loaded.x, in_one_go.x)
    assert torch.equal(loaded.rows, in_one_go.rows)


def test_rows_that_fill_no_shard_are_kept_now_and_then(
    reader: ActivationReader, tokens: Tokens, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "SHARD_ROWS", 10**6)
    monkeypatch.setattr(writer, "_KEEP_EVERY_S", 0.0)
    expected = whole(reader, tokens, tmp_path / "whole")

    def crash(i: int) -> None:
        if i == 3:
            raise RuntimeError("killed")

    with pytest.MonkeyPatch.context() as patch:
        on_read(patch, crash)
        with pytest.raises(RuntimeError, match="killed"):
            harvest_folder(reader, tokens, tmp_path / "store", ABOUT)
    entry = read_entry(LocalFolder(tmp_path / "store"), "open-00000.json")
    assert entry.windows == (0, 2 * reader.batch_size)
    assert whole(reader, tokens, tmp_path / "store") == expected


def test_a_damaged_shard_of_an_unfinished_harvest_is_read_again(
    reader: ActivationReader, tokens: Tokens, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = whole(reader, tokens, tmp_path / "whole")
    folder = tmp_path / "store"
    for _ in range(4):
        with pytest.raises(Interrupted):
            harvest_folder(reader, tokens, folder, ABOUT, stop=TOLD)
    damaged = folder / kept_shards(folder)[0]
    data = bytearray(damaged.read_bytes())
    data[-1] ^= 1
    damaged.write_bytes(data)
    assert whole(reader, tokens, folder) == expected
    assert "does not match its checksum" in capsys.readouterr().err


@pytest.mark.parametrize(("key", "value"), [("site", "elsewhere"), ("max_norm", 7.0)])
def test_an_unfinished_harvest_of_something_else_is_left_alone(
    key: str, value: Any, reader: ActivationReader, tokens: Tokens, tmp_path: Path
) -> None:
    folder = tmp_path / "store"
    with pytest.raises(Interrupted):
        harvest_folder(reader, tokens, folder, ABOUT, stop=TOLD)
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    with pytest.raises(InputError, match=rf"contains an unfinished harvest of other activations \({key}: "):
        harvest_folder(reader, tokens, folder, {**ABOUT, key: value})
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


def test_a_disk_without_room_for_the_copy_does_not_stop_a_run_in_memory(
    reader: ActivationReader,
    tokens: Tokens,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    expected = harvest_memory(reader, tokens, 0)

    def fail(path: Path, _: dict[str, Tensor]) -> None:
        if path.name.startswith("shard-00001"):
            raise OSError(errno.ENOSPC, "No space left on device", str(path))

    on_write(monkeypatch, fail)
    found = harvest_memory(reader, tokens, 0, tmp_path / "store", ABOUT)
    assert torch.equal(found.x, expected.x)
    assert "the activations are kept in memory only" in capsys.readouterr().err
    assert not (tmp_path / "store").exists()
