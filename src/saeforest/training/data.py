"""The activations a run trains on: harvested before, or read from text and kept where the configuration says."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from ..activations import (
    ActivationBatch,
    ActivationReader,
    Blocks,
    LiveActivations,
    StoredActivations,
    harvest_folder,
    harvest_memory,
    load_memory,
    open_store,
)
from ..activations.data import GIVEN, GivenData, StoredData, TextData, data_of
from ..activations.sources import MemoryActivations, is_store
from ..config import TrainConfig
from ..errors import InputError
from ..lm import ModelIdentity
from ..output import note
from ..session import about_activations, about_model, open_reader, read_tokens
from ..stopping import Stop
from ..text import Tokens
from .settle import settle_positions, settle_store, settle_text


@dataclass(frozen=True)
class TrainingData:
    """What a run reads. `n_rows` counts the activations of one epoch (read live: at most)."""

    config: TrainConfig
    """With all settled but the scale."""
    tokens: Tokens | None
    """The text that was read; None where activations were handed over."""
    blocks: Blocks
    n_rows: int

    def fingerprint(self) -> str:
        """Tells whether a position in the data still means the same: the text, where it waits, and how much it is."""
        if self.tokens is None:
            return blocks_fingerprint(self.blocks)
        digest = hashlib.blake2b(self.tokens.ids.numpy().tobytes(), digest_size=16)
        digest.update(repr((type(self.blocks).__name__, self.n_rows, self.config.lm.dtype)).encode())
        if isinstance(self.blocks, StoredActivations):
            digest.update(repr([shard.get("checksum") for shard in self.blocks.shards]).encode())
        return digest.hexdigest()


@dataclass
class TextSource:
    """Text, and the language model that reads it."""

    config: TrainConfig
    reader: ActivationReader

    @property
    def model(self) -> ModelIdentity:
        return self.reader.lm.identity

    @cached_property
    def d_in(self) -> int:
        return self.reader.widths[self.reader.site.name]

    @property
    def d_out(self) -> int | None:
        """Width of the target; None where there is none."""
        target = self.config.target
        return None if target is None else self.reader.widths[target]

    @property
    def seconds(self) -> float:
        """Spent in the language model so far."""
        return self.reader.seconds

    def about_model(self) -> dict[str, Any]:
        return about_model(self.reader)

    def read(self, folder: Path | None, stop: Stop, settled: Callable[[TrainConfig], None]) -> TrainingData:
        reader, config = self.reader, settle_text(self.config, self.reader)
        if Path(config.data).expanduser().exists():
            # One window tells whether there is held-out text at all; better now than after the training.
            read_tokens(config, reader, "held_out", config.text.context)
        tokens = read_tokens(config, reader, "train", config.tokens)
        config = settle_positions(config, reader, tokens)
        config = settle_store(config, tokens.n_tokens, sum(reader.widths.values()), reader.lm.dtype.itemsize)
        settled(config)
        store, seed = config.activations.store, config.data_seed
        if store == "disk" and folder is None:
            raise InputError(
                f"activations.store = disk: {tokens.n_tokens:,} tokens wait in a run's folder; give out, or set "
                "activations.store to memory or live"
            )
        if store == "live":
            n_rows = sum(int(reader.keep(ids).sum()) for ids in tokens.ids.split(4096))
            return TrainingData(config, tokens, LiveActivations(reader, tokens, seed, self.d_in), n_rows)
        about = about_activations(config, tokens, reader)
        there = None if folder is None else _of_this_run(folder, about, seed)
        if folder is None or store == "memory":
            memory = (
                load_memory(there, seed)
                if there
                else harvest_memory(reader, tokens, seed, folder, about, stop)
            )
            return TrainingData(config, tokens, memory, len(memory.rows))
        if there is None:
            harvest_folder(reader, tokens, folder, about, stop)
            there = open_store(folder, seed)
        return TrainingData(config, tokens, there, there.n_rows)


@dataclass
class StoredSource:
    """Activations that were harvested before: no language model is needed."""

    config: TrainConfig
    stored: StoredData
    reader: None = None
    seconds: float = 0.0

    @property
    def model(self) -> ModelIdentity:
        """The model that was read, by the name that the run has for it."""
        return replace(self.stored.model, name=self.config.model)

    @property
    def d_in(self) -> int:
        return self.stored.manifest.d_in

    @property
    def d_out(self) -> int | None:
        """Width of the target; None where there is none."""
        target = self.config.target
        return None if target is None else self.stored.manifest.sites[target]

    def about_model(self) -> dict[str, Any]:
        return {**self.stored.about_model(), **self.model.to_dict()}

    @property
    def n_rows(self) -> int:
        return sum(shard.rows for shard in self.stored.manifest.shards)

    def sample(self, n_rows: int) -> ActivationBatch:
        """Up to so many of them."""
        return self.stored.open().shard(0).each(lambda x: x[:n_rows].clone())

    def read(self, folder: Path | None, stop: Stop, settled: Callable[[TrainConfig], None]) -> TrainingData:
        store = self.stored.open(self.config.data_seed)
        if "prepend_bos" not in store.manifest:
            note(
                f"{self.stored.folder}: activations of text read without BOS, as saeforest did before text.bos; if "
                f"the tokenizer of {self.model.name} puts BOS before a text, harvest again to read it so"
            )
        return TrainingData(self.config, store.tokens(), store, store.n_rows)


@dataclass
class GivenSource:
    """Activations that a Python program hands over. `config.tokens` counts those in all training steps together."""

    config: TrainConfig
    blocks: Blocks
    d_out: int | None = None
    reader: None = None
    seconds: float = 0.0
    model: ModelIdentity = field(default_factory=lambda: ModelIdentity(""))

    @property
    def d_in(self) -> int:
        return self.blocks.d_in

    def about_model(self) -> dict[str, Any]:
        return {}

    def read(self, folder: Path | None, stop: Stop, settled: Callable[[TrainConfig], None]) -> TrainingData:
        return TrainingData(self.config, None, self.blocks, self.config.tokens)


def blocks_fingerprint(blocks: Blocks) -> str:
    """Tells sources of activations apart: by all their values where they are in memory, else by the first block."""
    x = blocks.x if isinstance(blocks, MemoryActivations) else blocks.block(0, 0).x
    order = blocks.seed if isinstance(blocks, MemoryActivations) else None
    about = repr((type(blocks).__name__, blocks.n_blocks, order, list(x.shape), str(x.dtype)))
    digest = hashlib.blake2b(about.encode(), digest_size=16)
    # numpy has no bfloat16, so the bytes are taken as they are.
    digest.update(x.contiguous().view(torch.uint8).cpu().numpy().data)
    return digest.hexdigest()


def open_source(config: TrainConfig) -> TextSource | StoredSource:
    """Where the activations of a run come from. The configuration is a settled one (see `settle`).

    Its `read` reads the text and, unless they are read live or were harvested before, the activations:

    folder:  where activations wait on disk. Those that an earlier process has read for the same run are used again.
    settled: called with the configuration once it is known where they wait: a run that is killed and goes on must not
        choose anew.

    It raises InputError where the text is missing or too short; Interrupted where `stop` says so.
    """
    match data_of(config.data):
        case TextData():
            return TextSource(config, open_reader(config))
        case StoredData() as stored:
            return StoredSource(config, stored)
        case GivenData():
            raise InputError(
                f"data = {GIVEN}: stands for activations that a Python program handed over; go on there, with the "
                "same saeforest.train(x, ..., out=...)"
            )


def _of_this_run(folder: Path, about: dict[str, Any], seed: int) -> StoredActivations | None:
    """What an earlier process of the run has read, if it has read all. Raises InputError if it read another text."""
    if not is_store(folder):
        return None
    store = open_store(folder, seed)
    check_store(store, about, "bring that back, or start anew in another folder")
    return store


def check_store(store: StoredActivations, about: dict[str, Any], remedy: str) -> None:
    """Raises InputError, with the remedy, where a store says another thing of itself than `about`."""
    for key, wanted in about.items():
        if key != "version" and store.manifest.get(key) != wanted:
            raise InputError(
                f"{store.folder}: holds activations with {key} = {store.manifest.get(key)!r}, not {wanted!r}; {remedy}"
            )
