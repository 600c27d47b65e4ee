"""A whole run: from a configuration to a folder with a trained SAE in it."""

from __future__ import annotations

import math
import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from .. import __version__
from ..activations import (
    ActivationReader,
    ActivationStream,
    Blocks,
    LiveActivations,
    harvest_folder,
    harvest_memory,
    open_store,
)
from ..activations.sources import is_store
from ..config import TextConfig, TrainConfig, load_config, resolve_precision, save_config
from ..errors import UserError
from ..saes import SAE, TrainingPlan, build, save_sae
from ..session import (
    CONFIG,
    SAE_FOLDER,
    about_activations,
    open_reader,
    read_tokens,
    settle_positions,
)
from ..text import Tokens
from .checkpoint import latest_checkpoint
from .loop import CHECKPOINTS, train

ACTIVATIONS = "activations"
# Of the machine's memory, what stored activations may take before they go to disk.
_MEMORY_SHARE = 0.4


def machine_memory() -> int:
    """Bytes of memory this machine has."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def choose_store(config: TrainConfig, n_tokens: int, d_in: int, itemsize: int) -> str:
    if config.activations.store != "auto":
        return config.activations.store
    if n_tokens * d_in * itemsize <= _MEMORY_SHARE * machine_memory():
        return "memory"
    return "disk" if config.epochs > 1 else "live"


@dataclass
class Run:
    """A finished (or begun) run, and what it read, for those who go on with it in the same process."""

    folder: Path
    config: TrainConfig
    sae: SAE
    reader: ActivationReader
    tokens: Tokens
    blocks: Blocks


def claim_folder(out: Path, resume: bool) -> None:
    """Raises UserError where a fresh run would land in a folder in use, or a resumed one finds nothing to resume."""
    if resume:
        if (out / SAE_FOLDER).exists():
            raise UserError(f"{out}: this run is complete; nothing to resume")
        if latest_checkpoint(out / CHECKPOINTS) is None:
            raise UserError(f"{out}: no checkpoint to resume from; expected {out / CHECKPOINTS}/step-*")
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(
            f"{out}: exists and is not empty; choose another --out, or continue that run with --resume"
        )


def resume_config(out: Path) -> TrainConfig:
    """The configuration of the run in `out`, with which it must go on."""
    claim_folder(out, resume=True)
    return load_config(out / CONFIG)


def count_steps(config: TrainConfig, n_rows: int) -> int:
    """Steps of a run over `n_rows` activations. Raises UserError where they fill no batch."""
    steps = n_rows * config.epochs // config.optim.batch_size
    if steps < 1:
        raise UserError(
            f"{n_rows:,} activations in {config.epochs} epoch(s) fill no batch of optim.batch_size = "
            f"{config.optim.batch_size:,}; give more --tokens or a smaller batch"
        )
    return steps


def run_training(config: TrainConfig, out: Path, *, resume: bool = False) -> Run:
    """Trains the SAE of `config` and saves it in `out`.

    Raises UserError for anything wrong with the configuration, the model, the text or the folder, before anything is
    written; Interrupted after Ctrl-C.
    """
    claim_folder(out, resume)
    config = as_harvested(config)
    if config.tokens * config.epochs < config.optim.batch_size:
        count_steps(config, config.tokens)
    reader = open_reader(config)
    d_in = reader.lm.site_width(reader.site)
    missing = [folder for folder in (out, *out.parents) if not folder.exists()]
    try:
        out.mkdir(parents=True, exist_ok=True)
        tokens = open_tokens(config, reader)
        config = settle_positions(config, reader, tokens)
        blocks, n_rows = open_blocks(config, reader, tokens, d_in, out)
        n_steps = count_steps(config, n_rows)
        config = resolve_scale(config, blocks)
        sae = new_sae(config, d_in, n_steps, reader)
        save_config(config, out / CONFIG)
    except BaseException:
        if not resume:  # there was no such folder, or nothing in it
            shutil.rmtree(missing[-1] if missing else out, ignore_errors=True)
            if not missing:
                out.mkdir(exist_ok=True)
        raise
    sae.metadata = metadata(config, n_steps)
    stream = ActivationStream(blocks, config.optim.batch_size)
    lm_before = reader.seconds
    train(config, sae, stream, n_steps, out, lm_seconds=lambda: reader.seconds - lm_before)
    save_sae(sae, out / SAE_FOLDER)
    for leftover in (CHECKPOINTS, ACTIVATIONS):
        shutil.rmtree(out / leftover, ignore_errors=True)
    return Run(out, config, sae.eval(), reader, tokens, blocks)


def as_harvested(config: TrainConfig) -> TrainConfig:
    """The configuration of a run on harvested activations, with the text and positions they were harvested with.

    Raises UserError where the folder is not whole or holds activations of another model or site.
    """
    folder = Path(config.data)
    if not is_store(folder):
        return config
    manifest = open_store(folder).manifest
    for key, wanted in (("model", config.model), ("site", config.site)):
        if manifest[key] != wanted:
            raise UserError(
                f"{folder}: activations of {key} '{manifest[key]}', but the run says '{wanted}'; "
                f"give --{key} {manifest[key]}"
            )
    positions = {key: manifest[key] for key in ("exclude_first", "exclude_special", "max_norm")}
    return replace(
        config,
        tokens=manifest["tokens"],
        text=TextConfig(context=manifest["context"], held_out=manifest["held_out"]),
        activations=replace(config.activations, **positions),
    )


def open_tokens(config: TrainConfig, reader: ActivationReader) -> Tokens:
    """The tokens to train on."""
    folder = Path(config.data)
    return (
        open_store(folder).tokens()
        if is_store(folder)
        else read_tokens(config, reader, "train", config.tokens)
    )


def open_blocks(
    config: TrainConfig, reader: ActivationReader, tokens: Tokens, d_in: int, out: Path
) -> tuple[Blocks, int]:
    """The source of the tokens' activations, and how many it holds (read live: at most)."""
    harvested = Path(config.data)
    if is_store(harvested):
        stored = open_store(harvested, config.seed)
        if stored.d_in != d_in:
            raise UserError(
                f"{harvested}: activations of width {stored.d_in}, but {config.site} has width {d_in}"
            )
        return stored, stored.n_rows
    store = choose_store(config, tokens.n_tokens, d_in, reader.lm.dtype.itemsize)
    if store == "memory":
        memory = harvest_memory(reader, tokens, config.seed)
        return memory, len(memory.rows)
    if store == "disk":
        folder = out / ACTIVATIONS
        if not is_store(folder):  # a resumed run may have it already
            shutil.rmtree(folder, ignore_errors=True)
            harvest_folder(reader, tokens, folder, about_activations(config, tokens), config.seed)
        disk = open_store(folder, config.seed)
        return disk, disk.n_rows
    n_rows = sum(int(reader.keep(ids).sum()) for ids in tokens.ids.split(4096))
    return LiveActivations(reader, tokens, config.seed, d_in), n_rows


def resolve_scale(config: TrainConfig, blocks: Blocks) -> TrainConfig:
    """Replaces normalize_activations="dataset_scale" by the number that makes the mean norm sqrt(d_in)."""
    if config.sae.normalize_activations != "dataset_scale":
        return config
    norm = blocks.block(0, 0).x.float().norm(dim=1).mean()
    scale = math.sqrt(blocks.d_in) / float(norm)
    return replace(config, sae=replace(config.sae, normalize_activations=scale))


def new_sae(config: TrainConfig, d_in: int, n_steps: int, reader: ActivationReader) -> SAE:
    sae = build(config.sae, d_in, seed=config.seed).to(reader.lm.device)
    sae.compute_dtype = resolve_precision(config.optim.precision, sae.device)
    sae.prepare(TrainingPlan(n_steps, config.optim.batch_size))
    return sae


def metadata(config: TrainConfig, n_steps: int) -> dict[str, Any]:
    return {
        "model_name": config.model,
        "hook_name": config.site,
        "context_size": config.text.context,
        "dataset": config.data,
        "tokens": n_steps * config.optim.batch_size,
        "seed": config.seed,
        "version": __version__,
        "torch": torch.__version__,
    }
