"""The activations on which a run trains: harvested earlier, read from text, or passed in by a Python program."""

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
    """The data of a run."""

    config: TrainConfig
    """The configuration, with actual values for all settings except the normalization factors."""
    tokens: Tokens | None
    """The text that was read. None if activations were passed in."""
    blocks: Blocks
    n_rows: int
    """Number of activations in an epoch; an upper bound if they are read live."""

    def fingerprint(self) -> str:
        """A digest of the text and of how its activations are stored; if it changes, so do positions in the data."""
        if self.tokens is None:
            return blocks_fingerprint(self.blocks)
        digest = hashlib.blake2b(self.tokens.ids.numpy().tobytes(), digest_size=16)
        digest.update(repr((type(self.blocks).__name__, self.n_rows, self.config.lm.dtype)).encode())
        if isinstance(self.blocks, StoredActivations):
            digest.update(repr([shard.get("checksum") for shard in self.blocks.shards]).encode())
        return digest.hexdigest()


@dataclass
class TextSource:
    """Activations that a language model computes from text."""

    config: TrainConfig
    reader: ActivationReader

    @property
    def model(self) -> ModelIdentity:
        """The language model."""
        return self.reader.lm.identity

    @cached_property
    def d_in(self) -> int:
        """Width of the activations."""
        return self.reader.widths[self.reader.site.name]

    @property
    def d_out(self) -> int | None:
        """Width of the target; None if there is none."""
        target = self.config.target
        return None if target is None else self.reader.widths[target]

    @property
    def seconds(self) -> float:
        """Seconds spent in the language model so far."""
        return self.reader.seconds

    def about_model(self) -> dict[str, Any]:
        """The description of the language model for RUN/model.json."""
        return about_model(self.reader)

    def read(self, folder: Path | None, stop: Stop, settled: Callable[[TrainConfig], None]) -> TrainingData:
        """Read the text and, unless they are read live, its activations; see `open_source`."""
        reader, config = self.reader, settle_text(self.config, self.reader)
        if Path(config.data).expanduser().exists():
            # Read one window of held-out text, so that an error for missing text comes now and not after training.
            read_tokens(config, reader, "held_out", config.text.context)
        tokens = read_tokens(config, reader, "train", config.tokens)
        config = settle_positions(config, reader, tokens)
        config = settle_store(config, tokens.n_tokens, sum(reader.widths.values()), reader.lm.dtype.itemsize)
        settled(config)
        store, seed = config.activations.store, config.data_seed
        if store == "disk" and folder is None:
            raise InputError(
                f"activations.store = disk: activations of {tokens.n_tokens:,} tokens are stored in the run's folder; "
                "give out, or set activations.store to memory or live"
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
    """Activations that were harvested earlier, so that no language model is needed."""

    config: TrainConfig
    stored: StoredData
    reader: None = None
    seconds: float = 0.0

    @property
    def model(self) -> ModelIdentity:
        """The language model, under the name that the configuration has for it."""
        return replace(self.stored.model, name=self.config.model)

    @property
    def d_in(self) -> int:
        """Width of the activations."""
        return self.stored.manifest.d_in

    @property
    def d_out(self) -> int | None:
        """Width of the target; None if there is none."""
        target = self.config.target
        return None if target is None else self.stored.manifest.sites[target]

    def about_model(self) -> dict[str, Any]:
        """The description of the language model for RUN/model.json."""
        return {**self.stored.about_model(), **self.model.to_dict()}

    @cached_property
    def activations(self) -> StoredActivations:
        """Those of the first `config.tokens` tokens."""
        return self.stored.open(self.config.data_seed, self.config.tokens)

    @property
    def n_rows(self) -> int:
        """Number of activations."""
        return self.activations.n_rows

    def sample(self, n_rows: int) -> ActivationBatch:
        """The first activations, up to `n_rows`."""
        return self.activations.shard(0).each(lambda x: x[:n_rows].clone())

    def read(self, folder: Path | None, stop: Stop, settled: Callable[[TrainConfig], None]) -> TrainingData:
        """Open the stored activations; see `open_source`."""
        store, there = self.activations, self.stored.manifest.tokens
        if store.n_tokens < there:
            note(f"{self.stored.folder}: the first {store.n_tokens:,} of its {there:,} tokens are read")
        if "prepend_bos" not in store.manifest:
            note(
                f"{self.stored.folder}: activations of text read without BOS, as older versions of saeforest did; if "
                f"the tokenizer of {self.model.name} puts BOS before a text, harvest again"
            )
        return TrainingData(self.config, store.tokens(), store, store.n_rows)


@dataclass
class GivenSource:
    """Activations that a Python program passes in. `config.tokens` is their total number over all training steps."""

    config: TrainConfig
    blocks: Blocks
    d_out: int | None = None
    reader: None = None
    seconds: float = 0.0
    model: ModelIdentity = field(default_factory=lambda: ModelIdentity(""))

    @property
    def d_in(self) -> int:
        """Width of the activations."""
        return self.blocks.d_in

    def about_model(self) -> dict[str, Any]:
        """Nothing: the language model is unknown."""
        return {}

    def read(self, folder: Path | None, stop: Stop, settled: Callable[[TrainConfig], None]) -> TrainingData:
        """The activations as they are."""
        return TrainingData(self.config, None, self.blocks, self.config.tokens)


def blocks_fingerprint(blocks: Blocks) -> str:
    """A digest of a source of activations: of all values if they are in memory, otherwise of the first block."""
    x = blocks.x if isinstance(blocks, MemoryActivations) else blocks.block(0, 0).x
    order = blocks.seed if isinstance(blocks, MemoryActivations) else None
    about = repr((type(blocks).__name__, blocks.n_blocks, order, list(x.shape), str(x.dtype)))
    digest = hashlib.blake2b(about.encode(), digest_size=16)
    # NumPy has no bfloat16, so hash the bytes.
    digest.update(x.contiguous().view(torch.uint8).cpu().numpy().data)
    return digest.hexdigest()


def open_source(config: TrainConfig) -> TextSource | StoredSource:
    """The source of a run's activations. The configuration must come from `settle`.

    Its method `read(folder, stop, settled)` reads the text and, unless they are read live or were harvested earlier,
    the activations:

    folder:  where activations are stored on disk. Those that an earlier process of the same run has read are reused.
    settled: called with the configuration once it says where activations are stored, so that a run that is killed
        makes the same choice when it is resumed.

    `read` raises InputError if the text is missing or too short, and Interrupted if `stop` asks to stop.
    """
    match data_of(config.data):
        case TextData():
            return TextSource(config, open_reader(config))
        case StoredData() as stored:
            return StoredSource(config, stored)
        case GivenData():
            raise InputError(
                f"data = {GIVEN}: the activations were passed in by a Python program; resume there, with the same "
                "saeforest.train(x, ..., out=...)"
            )


def _of_this_run(folder: Path, about: dict[str, Any], seed: int) -> StoredActivations | None:
    """The activations from an earlier process of the run; None if they are missing or incomplete.

    Raises InputError if they were read from another text.
    """
    if not is_store(folder):
        return None
    store = open_store(folder, seed)
    check_store(store, about, "restore that setting, or start again in another folder")
    return store


def check_store(store: StoredActivations, about: dict[str, Any], remedy: str) -> None:
    """Raise InputError, with the remedy, if the manifest of a store differs from `about`."""
    for key, wanted in about.items():
        if key != "version" and store.manifest.get(key) != wanted:
            raise InputError(
                f"{store.folder}: activations with {key} = {store.manifest.get(key)!r}, not {wanted!r}; {remedy}"
            )
