"""What the tests of harvesting share: a reader of small shards, and what disturbs it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from saeforest.activations import ActivationReader
from saeforest.activations.folder import LocalFolder
from saeforest.activations.plan import read_entry, read_plan

ABOUT: dict[str, Any] = {
    "model": "tiny", "site": "blocks.1.hook_resid_post", "data": "text", "tokens": 1280, "context": 32,
    "held_out": 0.2, "exclude_first": True, "exclude_special": True, "max_norm": 0.0,
}  # fmt: skip
SHARD_ROWS = 300
PATIENCE_S = 20.0


def on_read(monkeypatch: pytest.MonkeyPatch, act: Callable[[int], object]) -> None:
    """Calls `act(i)` before the language model reads its batch `i`."""
    begin, calls = ActivationReader._begin, iter(range(10**6))

    def begin_after(self: ActivationReader, *args: Any) -> Any:
        act(next(calls))
        return begin(self, *args)

    monkeypatch.setattr(ActivationReader, "_begin", begin_after)


def on_write(monkeypatch: pytest.MonkeyPatch, act: Callable[[Path, dict[str, Tensor]], object]) -> None:
    """Calls `act` before a shard is written."""
    write = LocalFolder.write_tensors

    def write_after(self: LocalFolder, name: str, tensors: dict[str, Tensor]) -> str:
        if "rows" in tensors:
            act(self.at / name, tensors)
        return write(self, name, tensors)

    monkeypatch.setattr(LocalFolder, "write_tensors", write_after)


def threads(name: str) -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(name)]


def kept_shards(folder: Path) -> list[str]:
    """The shards of an unfinished harvest that have an entry, all of which are there."""
    entries = [read_entry(LocalFolder(folder), path.name) for path in sorted(folder.glob("shard-*.json"))]
    assert read_plan(LocalFolder(folder)) is not None
    assert all((folder / entry.file).is_file() for entry in entries)
    return [entry.file for entry in entries]
