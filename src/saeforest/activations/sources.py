"""Sources of activations for training: in memory, on disk, or read from the language model when needed.

Every source yields blocks. The rows of block `i` of an epoch, and their order, depend only on the seed and the epoch,
so a position in the data consists of three numbers (epoch, block, row) and can be restored exactly.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..errors import InputError
from ..files import listed_checksum
from ..ranks import ALONE, Ranks
from ..schema import FLOATS, checked, shown
from ..seeds import seeded
from ..text import Tokens
from .folder import Folder, folder_at
from .manifest import HarvestRecord, Manifest, further_sites
from .reader import ActivationBatch, ActivationReader, all_finite, concatenated
from .shards import batch_of, scale_of, tensor_of
from .writer import (
    HARVEST,
    MANIFEST,
    STORE_VERSION,
    STORE_VERSION_8BIT,
    TOKENS,
)

BLOCK_ROWS = 1 << 16
LIVE_ROWS = 4 * BLOCK_ROWS
SHARDS_MIXED = 8


@runtime_checkable
class Blocks(Protocol):
    """A source of activations, in blocks of shuffled rows."""

    @property
    def d_in(self) -> int:
        """Width of the activations."""
        ...

    @property
    def n_blocks(self) -> int:
        """Number of blocks in an epoch."""
        ...

    def block(self, epoch: int, index: int) -> ActivationBatch:
        """Block `index` of an epoch; the same arguments always return the same rows in the same order."""
        ...


@runtime_checkable
class SlowBlocks(Protocol):
    """A source for which getting a block takes time, and can be stopped."""

    @property
    def in_background(self) -> bool:
        """Whether the next block should be read in the background, during training on the current one."""
        ...

    def block(self, epoch: int, index: int, stop: Callable[[], bool] = ...) -> ActivationBatch:
        """Block `index` of an epoch. Raises Stopped soon after `stop()` returns True."""
        ...


class Stopped(Exception):
    """The block is no longer needed."""


def _never() -> bool:
    return False


def _until(stop: Callable[[], bool], parts: Iterator[ActivationBatch]) -> Iterator[ActivationBatch]:
    for part in parts:
        if stop():
            raise Stopped
        yield part


def _mixed(parts: list[ActivationBatch], generator: torch.Generator) -> ActivationBatch:
    """The rows of all parts in random order. This empties the list, to free each part as early as possible."""
    order = torch.randperm(sum(map(len, parts)), generator=generator)
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order))
    mixed = parts[0].each(lambda x: x.new_empty(len(order), *x.shape[1:]))
    # Every row is copied once, directly to its place, and each part is freed before the next one is copied.
    for to in place.split([len(part) for part in parts]):
        part = parts.pop(0)
        mixed.x.index_copy_(0, to, part.x)
        mixed.rows[to] = part.rows
        for name, x in mixed.others.items():
            x.index_copy_(0, to, part.others[name])
    return mixed


@dataclass
class MemoryActivations:
    """Activations in memory. Every epoch is one permutation of all rows."""

    x: Float[Tensor, "n d_in"]
    rows: Int[Tensor, "n"]
    seed: int
    harvest: dict[str, Any] = field(default_factory=dict)
    """How long reading them took (`Harvest.record`), if known."""
    others: Mapping[str, Float[Tensor, "n _"]] = field(default_factory=dict)
    """Activations at other sites, by name."""

    def __post_init__(self) -> None:
        self.d_in = self.x.shape[1]
        self.n_blocks = -(-len(self.x) // BLOCK_ROWS)
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.int64)

    def block(self, epoch: int, index: int) -> ActivationBatch:
        if epoch != self._epoch:
            self._epoch = epoch
            self._order = torch.randperm(len(self.x), generator=seeded(self.seed, "rows", epoch))
        order = self._order[index * BLOCK_ROWS : (index + 1) * BLOCK_ROWS]
        everything = ActivationBatch(self.x, self.rows, self.others)
        return everything.each(lambda x: x.index_select(0, order))


@dataclass
class LiveActivations:
    """Activations that are read from the language model when needed.

    Every epoch is a permutation of the windows; the rows within a block are shuffled.
    """

    reader: ActivationReader
    tokens: Tokens
    seed: int
    d_in: int
    ranks: Ranks = ALONE
    """The processes among which the forward passes of a block are divided."""

    def __post_init__(self) -> None:
        self._windows = max(BLOCK_ROWS * 4 // self.tokens.context, self.reader.batch_size)
        self.n_blocks = -(-len(self.tokens.ids) // self._windows)

    @property
    def in_background(self) -> bool:
        # On a CPU, language model and training would share the cores. On two cores, with SmolLM2 and a tree of 24,576
        # features, two measurements gave 1,270 and 1,880 tokens/s in the background, and 1,550 and 1,750 one after the
        # other: no gain, for twice the memory.
        # Several ranks exchange a block, and an exchange cannot be stopped.
        return self.reader.lm.device.type == "cuda" and self.ranks.size == 1

    def block(self, epoch: int, index: int, stop: Callable[[], bool] = _never) -> ActivationBatch:
        order = torch.randperm(len(self.tokens.ids), generator=seeded(self.seed, "windows", epoch))
        windows = order[index * self._windows : (index + 1) * self._windows]
        return _mixed(self._read(windows, stop), seeded(self.seed, "rows", epoch, index))

    def _read(self, windows: Int[Tensor, "w"], stop: Callable[[], bool]) -> list[ActivationBatch]:
        passes = windows.split(self.reader.batch_size)
        shared = self.ranks.size > 1 and len(passes) >= self.ranks.size
        own = torch.cat(passes[self.ranks.own(len(passes))]) if shared else windows
        read = list(_until(stop, (batch for batch, _ in self.reader.batches(self.tokens, own))))
        return [concatenated(read).each(self.ranks.gather)] if shared else read


@dataclass
class StoredActivations:
    """Activations in a folder. Every epoch permutes the shards, and shuffles the rows of several shards at a time."""

    folder: Folder
    manifest: dict[str, Any]
    seed: int
    most: int | None = None
    """Read the activations of the first so many tokens alone, in whole windows. None: all."""

    def __post_init__(self) -> None:
        self.d_in = int(self.manifest["d_in"])
        self._widths = further_sites(self.manifest)
        self.shards: list[dict[str, Any]] = self.manifest["shards"]
        if self.n_tokens < self.manifest["tokens"]:
            self.shards = self._beginning()
        self.n_blocks = -(-len(self.shards) // SHARDS_MIXED)

    @property
    def n_rows(self) -> int:
        return sum(s["rows"] for s in self.shards)

    @property
    def n_tokens(self) -> int:
        """Number of tokens of the text to which the activations belong."""
        all_tokens, context = self.manifest["tokens"], self.manifest["context"]
        return all_tokens if self.most is None else min(self.most // context * context, all_tokens)

    def _beginning(self) -> list[dict[str, Any]]:
        """The shards with the activations of the first `n_tokens` tokens, the last of them with fewer rows."""
        last = bisect_left(range(len(self.shards)), self.n_tokens, key=self._end)
        kept = self.shards[: last + 1]
        if last < len(self.shards):
            rows = int((self.shard(last).rows < self.n_tokens).sum())
            kept[last:] = [{**kept[last], "rows": rows}] if rows else []
        if not kept:
            raise InputError(
                f"{self.folder}: no activations of its first {self.n_tokens:,} tokens; give more tokens"
            )
        return kept

    def _end(self, index: int) -> int:
        """The flat position in the text behind a shard, or behind its last row if the manifest does not say."""
        windows = self.shards[index].get("windows")
        return int(self.shard(index).rows[-1]) + 1 if windows is None else windows * self.manifest["context"]

    @property
    def in_background(self) -> bool:
        return True

    @property
    def harvest(self) -> dict[str, Any]:
        """How long reading them took (`Harvest.record`), if known."""
        if not self.folder.has(HARVEST):
            return {}
        record = self.folder.read_json(HARVEST)
        where = self.folder.path(HARVEST)
        checked(HarvestRecord, record, where, "delete it: it only records how long the harvest took")
        return record

    def block(self, epoch: int, index: int, stop: Callable[[], bool] = _never) -> ActivationBatch:
        order = torch.randperm(len(self.shards), generator=seeded(self.seed, "shards", epoch))
        mixed = order[index * SHARDS_MIXED : (index + 1) * SHARDS_MIXED].tolist()
        shards = (self.shard(i) for i in mixed)
        return _mixed(list(_until(stop, shards)), seeded(self.seed, "rows", epoch, index))

    def shard(self, index: int) -> ActivationBatch:
        """The activations of one shard, in the order of the text. Raises InputError if its file is damaged."""
        shard = self.manifest["shards"][index]
        path = self.folder.path(shard["file"])
        tensors = self.folder.read_tensors(shard["file"], shard.get("checksum"), "harvest again")
        n = shard["rows"]
        shapes = {"x": (n, self.d_in), "rows": (n,)}
        shapes |= {tensor_of(site): (n, width) for site, width in self._widths.items()}
        in_8bit = self.manifest.get("element") == "int8"
        if in_8bit:
            shapes |= {scale_of(name): (n,) for name in shapes if name != "rows"}
        for name, shape in shapes.items():
            found = tensors.get(name)
            if found is None or found.shape != shape:
                raise InputError(
                    f"{path}: expected {name} of shape {list(shape)}, as in {MANIFEST}; harvest again"
                )
            eight = in_8bit and name in ("x", *map(tensor_of, self._widths))
            allowed = (torch.int64,) if name == "rows" else (torch.int8,) if eight else FLOATS
            if found.dtype not in allowed:
                raise InputError(
                    f"{path}: {name} has dtype {found.dtype}, which is never harvested; harvest again"
                )
            if name != "rows" and not eight and not all_finite(found.view(n, -1)):
                raise InputError(f"{path}: activations hold NaN or infinite values; harvest again")
        rows = tensors["rows"]
        if not 0 <= int(rows.min()) <= int(rows.max()) < self.manifest["tokens"]:
            raise InputError(
                f"{path}: rows are outside the text of {self.manifest['tokens']:,} tokens; harvest again"
            )
        n_read = self.shards[index]["rows"]
        return batch_of(tensors).each(lambda x: x[:n_read])

    def tokens(self) -> Tokens:
        """The text from which the activations were read."""
        tensors = self.folder.read_tensors(TOKENS, listed_checksum(self.manifest, TOKENS))
        tokens = Tokens.of_tensors(tensors, self.folder.path(TOKENS))
        return tokens.first(self.n_tokens // tokens.context)


def load_memory(store: StoredActivations, seed: int) -> MemoryActivations:
    """Load all activations of a store into memory, in the order in which they were harvested."""
    read = concatenated([store.shard(i) for i in range(len(store.shards))])
    return MemoryActivations(read.x, read.rows, seed, store.harvest, read.others)


def is_store(place: Path | str | Folder) -> bool:
    """Whether a folder, or an address that fsspec knows, holds a complete harvest."""
    return folder_at(place).has(MANIFEST)


def open_store(place: Path | str | Folder, seed: int = 0, tokens: int | None = None) -> StoredActivations:
    """Open harvested activations in a folder, or at an address that fsspec knows.

    seed: random seed for the order in which they are read.
    tokens: the first so many tokens of the text whose activations are read. None: all.

    Raises InputError if the store is incomplete or damaged.
    """
    folder = folder_at(place)
    manifest = open_manifest(folder)
    there = folder.sizes()
    for shard in manifest["shards"]:
        if shard["file"] not in there:
            raise InputError(f"{folder.path(shard['file'])}: missing; harvest again")
    return StoredActivations(folder, manifest, seed, tokens)


def open_manifest(folder: Folder) -> dict[str, Any]:
    """The manifest of a complete store. Raises InputError if it is missing or damaged."""
    if not folder.has(MANIFEST):
        raise InputError(f"{folder}: no {MANIFEST}; expected a folder that `saeforest harvest` finished")
    where = folder.path(MANIFEST)
    manifest = folder.read_json(MANIFEST)
    version = manifest.get("format_version") if isinstance(manifest, dict) else None
    versions = (STORE_VERSION, STORE_VERSION_8BIT)
    if version not in versions or isinstance(version, bool):
        raise InputError(
            f"{where}: format_version {shown(version)}; expected {STORE_VERSION} or {STORE_VERSION_8BIT}; harvest again"
        )
    checked(Manifest, manifest, where, "harvest again")
    if (version == STORE_VERSION_8BIT) != (manifest.get("element") == "int8"):
        raise InputError(
            f"{where}: format_version {version} with element {shown(manifest.get('element'))}; harvest again"
        )
    return manifest
