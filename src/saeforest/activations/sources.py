"""Where activations wait for training: in memory, on disk, or nowhere (read when needed).

Every source hands out blocks. Which rows make up block `i` of an epoch, and in which order, is a function of the
seed and the epoch alone, so a position in the data is three numbers and can be returned to exactly.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..errors import UserError
from ..files import atomic_folder, read_json, read_tensors, write_json, write_tensors
from ..progress import progress
from ..seeds import seeded
from ..text import Tokens
from .reader import ActivationBatch, ActivationReader

STORE_VERSION = 1
MANIFEST, TOKENS = "activations.json", "tokens.safetensors"
# What a manifest says beside its version: the shards, and how to read the same positions again.
_ABOUT = ("d_in", "shards", "model", "site", "data", "tokens", "context", "held_out")
_ABOUT += ("exclude_first", "exclude_special", "max_norm")
_BLOCK_ROWS = 1 << 16
_SHARD_ROWS = 1 << 16
_SHARDS_MIXED = 8


@runtime_checkable
class Blocks(Protocol):
    """A source of activations, in blocks of shuffled rows."""

    @property
    def d_in(self) -> int: ...
    @property
    def n_blocks(self) -> int: ...
    def block(self, epoch: int, index: int) -> ActivationBatch: ...


def _shuffled(batch: ActivationBatch, generator: torch.Generator) -> ActivationBatch:
    order = torch.randperm(len(batch), generator=generator)
    return ActivationBatch(batch.x[order], batch.rows[order])


def _concatenated(batches: list[ActivationBatch]) -> ActivationBatch:
    return ActivationBatch(torch.cat([b.x for b in batches]), torch.cat([b.rows for b in batches]))


@dataclass
class MemoryActivations:
    """All activations in memory; every epoch is one permutation of all rows."""

    x: Float[Tensor, "n d_in"]
    rows: Int[Tensor, "n"]
    seed: int

    def __post_init__(self) -> None:
        self.d_in = self.x.shape[1]
        self.n_blocks = -(-len(self.x) // _BLOCK_ROWS)
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.int64)

    def block(self, epoch: int, index: int) -> ActivationBatch:
        if epoch != self._epoch:
            self._epoch = epoch
            self._order = torch.randperm(len(self.x), generator=seeded(self.seed, "rows", epoch))
        order = self._order[index * _BLOCK_ROWS : (index + 1) * _BLOCK_ROWS]
        return ActivationBatch(self.x[order], self.rows[order])


@dataclass
class LiveActivations:
    """Read from the language model when needed; every epoch permutes the windows, every block its rows."""

    reader: ActivationReader
    tokens: Tokens
    seed: int
    d_in: int

    def __post_init__(self) -> None:
        self._windows = max(_BLOCK_ROWS * 4 // self.tokens.context, self.reader.batch_size)
        self.n_blocks = -(-len(self.tokens.ids) // self._windows)

    def block(self, epoch: int, index: int) -> ActivationBatch:
        order = torch.randperm(len(self.tokens.ids), generator=seeded(self.seed, "windows", epoch))
        windows = order[index * self._windows : (index + 1) * self._windows]
        batches = [batch for batch, _ in self.reader.batches(self.tokens, windows)]
        return _shuffled(_concatenated(batches), seeded(self.seed, "rows", epoch, index))


@dataclass
class StoredActivations:
    """Activations in a folder; every epoch permutes the shards and shuffles the rows of several at a time."""

    folder: Path
    manifest: dict[str, Any]
    seed: int

    def __post_init__(self) -> None:
        self.d_in = int(self.manifest["d_in"])
        self.shards: list[dict[str, Any]] = self.manifest["shards"]
        self.n_blocks = -(-len(self.shards) // _SHARDS_MIXED)

    @property
    def n_rows(self) -> int:
        return sum(s["rows"] for s in self.shards)

    def block(self, epoch: int, index: int) -> ActivationBatch:
        order = torch.randperm(len(self.shards), generator=seeded(self.seed, "shards", epoch))
        mixed = order[index * _SHARDS_MIXED : (index + 1) * _SHARDS_MIXED].tolist()
        batch = _concatenated([self._shard(i) for i in mixed])
        return _shuffled(batch, seeded(self.seed, "rows", epoch, index))

    def _shard(self, index: int) -> ActivationBatch:
        shard = self.shards[index]
        path = self.folder / shard["file"]
        tensors = read_tensors(path)
        x, rows = tensors.get("x"), tensors.get("rows")
        if x is None or rows is None or x.shape != (shard["rows"], self.d_in) or len(rows) != len(x):
            raise UserError(
                f"{path}: expected x [{shard['rows']}, {self.d_in}] and rows [{shard['rows']}] as {MANIFEST} says; "
                "harvest again"
            )
        if not bool(torch.isfinite(x).all()):
            raise UserError(f"{path}: activations hold NaN or infinite values; harvest again")
        return ActivationBatch(x, rows)

    def tokens(self) -> Tokens:
        return Tokens.load(self.folder / TOKENS)


def harvest_memory(reader: ActivationReader, tokens: Tokens, seed: int) -> MemoryActivations:
    """Reads all activations of `tokens` into memory."""
    x: Tensor | None = None
    rows = torch.empty(tokens.n_tokens, dtype=torch.int64)
    n = 0
    with progress("harvest", tokens.n_tokens) as advance:
        for batch, n_read in reader.batches(tokens):
            if x is None:
                # As much as there can be; what the excluded positions leave over is never touched.
                x = torch.empty(tokens.n_tokens, batch.x.shape[1], dtype=batch.x.dtype)
            x[n : n + len(batch)], rows[n : n + len(batch)] = batch.x, batch.rows
            n += len(batch)
            advance(n_read)
    if x is None or n == 0:
        raise UserError("no activations: every position of the text is excluded; give longer text")
    return MemoryActivations(x[:n], rows[:n], seed)


def harvest_folder(reader: ActivationReader, tokens: Tokens, folder: Path, about: dict[str, Any]) -> int:
    """Reads all activations of `tokens` into shards in `folder`, which appears when whole; returns their number."""
    with atomic_folder(folder) as temporary:
        return _write_store(reader, tokens, temporary, about)


def _write_store(reader: ActivationReader, tokens: Tokens, folder: Path, about: dict[str, Any]) -> int:
    tokens.save(folder / TOKENS)
    shards: list[dict[str, Any]] = []
    waiting: list[ActivationBatch] = []
    d_in = 0

    def write() -> None:
        batch = _concatenated(waiting)
        name = f"shard-{len(shards):05}.safetensors"
        write_tensors(folder / name, {"x": batch.x, "rows": batch.rows})
        shards.append({"file": name, "rows": len(batch)})
        waiting.clear()

    with progress("harvest", tokens.n_tokens) as advance:
        for batch, n_read in reader.batches(tokens):
            waiting.append(batch)
            d_in = batch.x.shape[1]
            if sum(map(len, waiting)) >= _SHARD_ROWS:
                write()
            advance(n_read)
        if waiting:
            write()
    n_rows = sum(shard["rows"] for shard in shards)
    if n_rows == 0:
        raise UserError("no activations: every position of the text is excluded; give longer text")
    write_json(folder / MANIFEST, {"format_version": STORE_VERSION, "d_in": d_in, **about, "shards": shards})
    return n_rows


def is_store(path: Path) -> bool:
    return (path / MANIFEST).is_file()


def open_store(folder: Path, seed: int = 0) -> StoredActivations:
    """Harvested activations. Raises UserError where the folder is not whole."""
    if not is_store(folder):
        raise UserError(f"{folder}: no {MANIFEST}; expected a folder that `saeforest harvest` finished")
    manifest = read_json(folder / MANIFEST)
    version = manifest.get("format_version") if isinstance(manifest, dict) else None
    if version != STORE_VERSION:
        raise UserError(
            f"{folder / MANIFEST}: format_version {version!r}, expected {STORE_VERSION}; harvest again"
        )
    _check_manifest(manifest, folder / MANIFEST)
    for shard in manifest["shards"]:
        if not (folder / shard["file"]).is_file():
            raise UserError(f"{folder / shard['file']}: missing; harvest again")
    return StoredActivations(folder, manifest, seed)


def _check_manifest(manifest: dict[str, Any], path: Path) -> None:
    for key in _ABOUT:
        if key not in manifest:
            raise UserError(f"{path}: key '{key}' is missing; harvest again")
    d_in, shards = manifest["d_in"], manifest["shards"]
    if not isinstance(d_in, int) or d_in < 1:
        raise UserError(f"{path}: d_in {d_in!r}: expected the width of the activations; harvest again")
    described = isinstance(shards, list) and all(
        isinstance(s, dict) and isinstance(s.get("file"), str) and isinstance(s.get("rows"), int)
        for s in shards
    )
    if not described or not shards:
        raise UserError(f"{path}: shards: expected a file and a number of rows for each; harvest again")
