"""The activations a run trains on: harvested before, or read from text and kept where the configuration says."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..activations import (
    ActivationReader,
    Blocks,
    LiveActivations,
    StoredActivations,
    harvest_folder,
    harvest_memory,
    load_memory,
    open_store,
)
from ..activations.sources import is_store
from ..config import TrainConfig
from ..errors import UserError
from ..lm import ModelIdentity, identify, same_model
from ..memory import available
from ..output import note
from ..session import about_activations, read_tokens, settle_positions
from ..stopping import NEVER, Stop
from ..text import Tokens, adds_bos

# Of the memory that is left, what stored activations may take before they go to disk.
_MEMORY_SHARE = 0.4


@dataclass(frozen=True)
class TrainingData:
    """What a run reads. `n_rows` counts the activations of one epoch (read live: at most)."""

    config: TrainConfig
    """With `activations.store` and `activations.max_norm` settled."""
    tokens: Tokens
    blocks: Blocks
    n_rows: int

    def fingerprint(self) -> str:
        """Tells whether a position in the data still means the same: the text, where it waits, and how much it is."""
        digest = hashlib.blake2b(self.tokens.ids.numpy().tobytes(), digest_size=16)
        digest.update(repr((type(self.blocks).__name__, self.n_rows, self.config.lm.dtype)).encode())
        if isinstance(self.blocks, StoredActivations):
            digest.update(repr([shard.get("checksum") for shard in self.blocks.shards]).encode())
        return digest.hexdigest()


def as_harvested(config: TrainConfig) -> TrainConfig:
    """Of a run on harvested activations, the configuration with the text and positions of the harvest.

    Raises UserError where the folder is not whole or holds activations of another model or site.
    """
    if not is_store(Path(config.data)):
        return config
    manifest = open_store(Path(config.data)).manifest
    check_model(manifest, identify(config.model), config.data)
    if manifest["site"] != config.site:
        raise UserError(
            f"{config.data}: activations of site '{manifest['site']}', but the run says '{config.site}'; "
            f"set site to {manifest['site']}"
        )
    bos = "yes" if manifest.get("prepend_bos", False) else "no"
    if config.text.bos not in ("auto", bos):
        raise UserError(
            f"text.bos = {config.text.bos}: {config.data} holds activations of text read "
            f"{'with' if bos == 'yes' else 'without'} BOS; set text.bos to {bos}, or harvest again"
        )
    positions = {key: manifest[key] for key in ("exclude_first", "exclude_special", "max_norm")}
    return replace(
        config,
        tokens=manifest["tokens"],
        text=replace(
            config.text,
            context=manifest["context"],
            held_out=manifest["held_out"],
            bos=bos,
            column=manifest.get("column", ""),
            split=manifest.get("split", "train"),
            chat=manifest.get("chat", False),
        ),
        activations=replace(config.activations, store="disk", **positions),
    )


def check_model(manifest: dict[str, Any], model: ModelIdentity, data: str) -> None:
    """Raises UserError unless the activations of a manifest were harvested from `model`, however it is spelled."""
    harvested = ModelIdentity.from_dict({"model_name": manifest["model"], **manifest})
    if harvested is None or not same_model(harvested, model):
        raise UserError(
            f"{data}: activations of model '{harvested}', but the run says '{model}'; "
            f"set model to {manifest['model']} as it was, or harvest again"
        )


def open_data(
    config: TrainConfig,
    reader: ActivationReader,
    d_in: int,
    folder: Path,
    stop: Stop = NEVER,
    settled: Callable[[TrainConfig], None] = lambda config: None,
) -> TrainingData:
    """Reads the text and, unless they are read live or were harvested before, its activations.

    folder:  where activations wait on disk. Those that an earlier process has read for the same run are used again.
    settled: called with the configuration once it is known where they wait: a run that is killed and goes on must not
        choose anew.

    Raises UserError where the text is missing or too short, or the activations are of another width; Interrupted where
    `stop` says so.
    """
    if is_store(Path(config.data)):
        stored = open_store(Path(config.data), config.data_seed)
        check_model(stored.manifest, reader.lm.identity, config.data)  # a Hub model may be known only now
        if stored.d_in != d_in:
            raise UserError(
                f"{config.data}: activations of width {stored.d_in}, but {config.site} has width {d_in}"
            )
        if "prepend_bos" not in stored.manifest and adds_bos(reader.lm.tokenizer):
            note(
                f"{config.data}: activations of text read without BOS, as saeforest did before text.bos; the tokenizer "
                f"of {reader.lm.name} puts BOS before a text: harvest again to read it so"
            )
        return TrainingData(config, stored.tokens(), stored, stored.n_rows)
    if Path(config.data).expanduser().exists():
        # One window tells whether there is held-out text at all; better now than after the training.
        read_tokens(config, reader, "held_out", config.text.context)
    tokens = read_tokens(config, reader, "train", config.tokens)
    config = settle_positions(config, reader, tokens)
    store = choose_store(config, tokens.n_tokens, d_in, reader.lm.dtype.itemsize)
    config = replace(config, activations=replace(config.activations, store=store))
    settled(config)
    if store == "live":
        n_rows = sum(int(reader.keep(ids).sum()) for ids in tokens.ids.split(4096))
        return TrainingData(config, tokens, LiveActivations(reader, tokens, config.data_seed, d_in), n_rows)
    about = about_activations(config, tokens, reader.lm.identity)
    there = _of_this_run(folder, about, config.data_seed)
    if store == "memory":
        memory = (
            load_memory(there, config.data_seed)
            if there
            else harvest_memory(reader, tokens, config.data_seed, folder, about, stop)
        )
        return TrainingData(config, tokens, memory, len(memory.rows))
    if there is None:
        harvest_folder(reader, tokens, folder, about, stop)
        there = open_store(folder, config.data_seed)
    return TrainingData(config, tokens, there, there.n_rows)


def _of_this_run(folder: Path, about: dict[str, Any], seed: int) -> StoredActivations | None:
    """What an earlier process of the run has read, if it has read all. Raises UserError where it is of another text."""
    if not is_store(folder):
        return None
    store = open_store(folder, seed)
    check_store(store, about, "bring that back, or start anew in another folder")
    return store


def check_store(store: StoredActivations, about: dict[str, Any], remedy: str) -> None:
    """Raises UserError, with the remedy, where a store says another thing of itself than `about`."""
    for key, wanted in about.items():
        if key != "version" and store.manifest.get(key) != wanted:
            raise UserError(
                f"{store.folder}: holds activations with {key} = {store.manifest.get(key)!r}, not {wanted!r}; {remedy}"
            )


def choose_store(config: TrainConfig, n_tokens: int, d_in: int, itemsize: int) -> str:
    """Where activations wait: as configured, or in memory if they fit there beside the rest."""
    if config.activations.store != "auto":
        return config.activations.store
    if n_tokens * d_in * itemsize <= _MEMORY_SHARE * available():
        return "memory"
    return "disk" if config.epochs > 1 else "live"
