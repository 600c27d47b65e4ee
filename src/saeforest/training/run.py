"""A whole run: from a configuration to a folder with a trained SAE in it."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from .. import __version__
from ..activations import ActivationReader, ActivationStream, Blocks
from ..config import TrainConfig, load_config, resolve, resolve_precision, save_config
from ..errors import UserError
from ..lm import ModelIdentity
from ..saes import SAE, TrainingPlan, build
from ..session import CONFIG, SAE_FOLDER, about_text, open_reader, settle_text
from ..text import Tokens
from .checkpoint import latest_checkpoint
from .data import ACTIVATIONS, as_harvested, open_data
from .loop import CHECKPOINTS, train


@dataclass
class Run:
    """A finished run, and what it read, for those who go on with it in the same process."""

    folder: Path
    config: TrainConfig
    saes: dict[str, SAE]
    """By name; the single SAE of a run has an empty one."""
    reader: ActivationReader
    tokens: Tokens
    blocks: Blocks
    seconds_harvest: float
    """In the language model before training began."""

    @property
    def sae(self) -> SAE:
        """The first of them, and in most runs the only one."""
        return next(iter(self.saes.values()))

    def drop_activations(self) -> None:
        """Deletes activations that waited on disk; `blocks` is of no use afterwards."""
        shutil.rmtree(self.folder / ACTIVATIONS, ignore_errors=True)


def claim_folder(out: Path, *, resume: bool = False, hint: str = "choose another --out") -> None:
    """Raises UserError where a fresh run would land in a folder in use, or a resumed one finds nothing to resume."""
    if resume:
        if latest_checkpoint(out / CHECKPOINTS) is None:
            if (out / SAE_FOLDER).exists():
                raise UserError(f"{out}: this run is complete; nothing to resume")
            raise UserError(f"{out}: no checkpoint to resume from; expected {out / CHECKPOINTS}/step-*")
        return
    for folder in (out, *out.parents):
        if folder.exists() and not folder.is_dir():
            raise UserError(f"{folder}: is a file, but --out {out} calls for a folder; {hint}")
    if out.exists() and any(out.iterdir()):
        raise UserError(f"{out}: exists and is not empty; {hint}")


@contextmanager
def claimed(out: Path, *, resume: bool) -> Iterator[None]:
    """The run's folder. What a fresh run wrote goes again if it fails before its first checkpoint."""
    claim_folder(out, resume=resume, hint="choose another --out, or continue that run with --resume")
    created = [folder for folder in (out, *out.parents) if not folder.exists()]
    try:
        out.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        if not resume and latest_checkpoint(out / CHECKPOINTS) is None:
            shutil.rmtree(out, ignore_errors=True)
            _remove_empty(created[1:])
            if not created:
                out.mkdir(exist_ok=True)
        raise


def _remove_empty(folders: list[Path]) -> None:
    for folder in folders:
        try:
            folder.rmdir()
        except OSError:  # somebody else has put something there meanwhile
            return


def resume_config(out: Path) -> TrainConfig:
    """The configuration of the run in `out`, with which it must go on."""
    claim_folder(out, resume=True)
    return load_config(out / CONFIG, of_run=True)


def count_steps(config: TrainConfig, n_rows: int) -> int:
    """Steps of a run over `n_rows` activations. Raises UserError where they fill no batch."""
    if n_rows < config.batch_size:
        raise UserError(
            f"{n_rows:,} activations fill no batch of optim.batch_size = {config.batch_size:,}; "
            "give more --tokens or a smaller batch"
        )
    return n_rows * config.epochs // config.batch_size


def run_training(config: TrainConfig, out: Path, *, resume: bool = False) -> Run:
    """Trains the SAE or the SAEs of `config` and saves them in `out`.

    Raises UserError for anything wrong with the configuration, the model, the text, the activations or the folder;
    unless a checkpoint was written by then, nothing is left of the run. Raises Interrupted after Ctrl-C.
    """
    with claimed(out, resume=resume):
        config = as_harvested(resolve(config))
        count_steps(config, config.tokens)
        reader = open_reader(config)
        config = settle_text(config, reader)
        d_in = reader.lm.site_width(reader.site)
        data = open_data(config, reader, d_in, out)
        n_steps = count_steps(config, data.n_rows)
        config = settle_scales(data.config, data.blocks)
        saes = {name: new_sae(member, d_in, n_steps, reader) for name, member in config.members().items()}
        save_config(config, out / CONFIG)
        harvested = reader.seconds
        train(
            config,
            saes,
            ActivationStream(data.blocks, config.batch_size),
            n_steps,
            out,
            fingerprint=data.fingerprint(),
            lm_seconds=lambda: reader.seconds,
        )
    for sae in saes.values():
        sae.eval().compute_dtype = torch.float32
    return Run(out, config, saes, reader, data.tokens, data.blocks, harvested)


def settle_scales(config: TrainConfig, blocks: Blocks) -> TrainConfig:
    """The configuration with the number that normalize_activations="dataset_scale" stands for."""
    members = config.members()
    if all(member.sae.normalize_activations != "dataset_scale" for member in members.values()):
        return config
    scale = dataset_scale(blocks)
    return config.with_members(
        {
            name: replace(member, sae=replace(member.sae, normalize_activations=scale))
            if member.sae.normalize_activations == "dataset_scale"
            else member
            for name, member in members.items()
        }
    )


def dataset_scale(blocks: Blocks) -> float:
    """The factor that makes the mean norm of the activations sqrt(d_in) (SPEC 6.3, #8)."""
    return math.sqrt(blocks.d_in) / float(blocks.block(0, 0).x.float().norm(dim=1).mean())


def new_sae(config: TrainConfig, d_in: int, n_steps: int, reader: ActivationReader) -> SAE:
    sae = build(config.sae, d_in, seed=config.seed).to(reader.lm.device)
    sae.metadata = metadata(config, n_steps, reader.lm.identity)
    sae.compute_dtype = resolve_precision(config.optim.precision, sae.device)
    sae.prepare(TrainingPlan(n_steps, config.optim.batch_size))
    return sae


def metadata(config: TrainConfig, n_steps: int, model: ModelIdentity) -> dict[str, Any]:
    return {
        **model.to_dict(),
        "hook_name": config.site,
        **about_text(config, config.tokens // config.text.context * config.text.context),
        "tokens": n_steps * config.optim.batch_size,
        "seed": config.seed,
        "version": __version__,
        "torch": torch.__version__,
    }
