"""A whole run: from a configuration to trained SAEs, in a folder or in memory."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from .. import __version__
from ..activations import ActivationReader, ActivationStream, Blocks
from ..activations.data import GIVEN
from ..activations.sources import MemoryActivations
from ..config import TrainConfig, resolve_device, to_dict
from ..errors import InputError
from ..files import write_json
from ..lm import ModelIdentity
from ..memory import give_back
from ..ranks import ALONE, Ranks
from ..run_folder import RunFolder
from ..saes import SAE, RunLength, Training, start_training
from ..saes.files import TRAINING, training_settings
from ..session import about_text
from ..sinks.names import SinkName
from ..stopping import NEVER, stopping
from ..text import Tokens
from .checkpoint import latest_checkpoint
from .data import GivenSource, TrainingData, open_source
from .log import Log
from .loop import train
from .settle import settle, settle_scale
from .team import Division, Team, WholeTeam, team_of
from .together import tell, told
from .unfinished import TooFew, check_about, claimed_run, going_on, run_state, undone_if_worthless

#: The key, in the metadata of an SAE trained on the caller's activations, of the digest that identifies them.
FINGERPRINT = "activations_fingerprint"


@dataclass
class Trained:
    """Trained SAEs, in a folder or in memory, and the data they were trained on."""

    config: TrainConfig
    """The configuration, with actual values for all settings."""
    saes: dict[str, SAE]
    """The SAEs by name."""
    logs: dict[str, Log]
    """The log of each SAE, by its name."""
    data: TrainingData
    reader: ActivationReader | None
    seconds_harvest: float


@dataclass
class Run:
    """A finished run and the data it read, for further use in the same process."""

    folder: RunFolder
    config: TrainConfig
    saes: dict[str, SAE]
    """The SAEs by name."""
    reader: ActivationReader | None
    """The reader of the language model; None if the activations were harvested earlier."""
    tokens: Tokens
    blocks: Blocks
    seconds_harvest: float
    """Seconds spent in the language model before training began."""

    @property
    def sae(self) -> SAE:
        """The first SAE of the run, usually the only one."""
        return next(iter(self.saes.values()))

    def drop_activations(self) -> None:
        """Delete the activations that are stored on disk. `blocks` must not be used afterwards."""
        shutil.rmtree(self.folder.activations, ignore_errors=True)


def resume_config(run: RunFolder) -> TrainConfig:
    """The configuration of an unfinished run. Raises InputError if there is no unfinished run in the folder."""
    state = run_state(run)
    if state == "complete":
        raise InputError(f"{run}: this run is complete; nothing to resume")
    if state != "started":
        raise InputError(
            f"{run}: nothing to resume; expected a folder with the {run.config_file.name} of an unfinished run"
        )
    return run.config()


def count_steps(config: TrainConfig, n_rows: int) -> int:
    """The number of training steps over `n_rows` activations. Raises InputError if they do not fill one batch."""
    if n_rows < config.batch_size:
        raise TooFew(
            f"{n_rows:,} activations are fewer than one batch (optim.batch_size = {config.batch_size:,}); "
            "give more tokens or a smaller batch"
        )
    return n_rows * config.epochs // config.batch_size


def run_training(
    config: TrainConfig,
    out: Path,
    *,
    resume: bool = False,
    sinks: Sequence[SinkName] = (),
    ranks: Ranks = ALONE,
    division: Division | None = None,
) -> Run:
    """Train the SAE or the SAEs of `config`, and save them in the folder `out`.

    If `out` holds an unfinished run of the same configuration, that run is resumed from its last checkpoint, or from
    the activations it has read. The result is bit-identical to that of a run that was never stopped. With `resume`,
    there must be an unfinished run, and its own configuration is used.

    sinks: where the log goes besides the folder, such as wandb; a resumed run goes on in those that it had.
    ranks: the processes that train together, of which this is the first; the others call `help_training`.
    division: what is divided among them.

    Raises InputError if something is wrong with the configuration, the model, the text, the activations or the folder,
    or if another process works in it; Interrupted if a signal asks to stop. If the run has then saved nothing that took
    time to compute, its files are deleted.
    """
    folder = RunFolder(out)
    with claimed_run(out):
        run = train_in(folder, config, resume=resume, sinks=sinks, ranks=ranks, division=division)
        if isinstance(run.blocks, MemoryActivations):
            run.drop_activations()  # this is only the backup copy, in case the run was killed
        return run


def help_training(ranks: Ranks) -> None:
    """Do the share of this rank in the run that the first rank trains. Reads the run's activations, writes nothing.

    Raises InputError if this machine cannot read the activations.
    """
    config, about, blocks = told(ranks)
    team, members, model = (
        team_of(ranks, config, Division(**about.division)),
        config.members(),
        ModelIdentity(""),
    )
    with team.building():
        trained = {
            name: new_training(members[name], about.d_in, about.n_steps, model, about.d_out)
            for name in team.own(list(members))
        }
    train(config, trained, ActivationStream(blocks, config.batch_size), None, team=team)


def train_in(
    run: RunFolder,
    config: TrainConfig,
    *,
    resume: bool = False,
    sinks: Sequence[SinkName] = (),
    ranks: Ranks = ALONE,
    division: Division | None = None,
) -> Run:
    """The same as `run_training`, in a folder that this process has already claimed."""
    if resume:
        config = resume_config(run)
    done = _in_folder(run, config, sinks=sinks, ranks=ranks, division=division)
    assert done.data.tokens is not None  # the activations were read from a text
    return Run(
        run, done.config, done.saes, done.reader, done.data.tokens, done.data.blocks, done.seconds_harvest
    )


def train_given(
    config: TrainConfig, blocks: Blocks, out: Path | None, *, sinks: Sequence[SinkName] = ()
) -> Trained:
    """Train on activations that the caller passes in; `config.data` must be `GIVEN`.

    out: folder of the run, as in `run_training`; it can only be resumed with the same activations. None: no file is
    written.

    Raises the same errors as `run_training`, or without `out` those of `train_in_memory`.
    """
    if out is None:
        return _train(None, settle(config), blocks)
    with claimed_run(out):
        return _in_folder(RunFolder(out), config, blocks, sinks=sinks)


def train_in_memory(config: TrainConfig) -> Trained:
    """The same as `run_training` without files: activations are kept in memory, or read during training.

    Raises InputError if something is wrong with the configuration, the model or the text, or if the activations do not
    fit in memory.
    """
    return _train(None, settle(config))


def _in_folder(
    run: RunFolder,
    config: TrainConfig,
    given: Blocks | None = None,
    *,
    sinks: Sequence[SinkName],
    ranks: Ranks = ALONE,
    division: Division | None = None,
) -> Trained:
    config = going_on(run, settle(config))
    team = team_of(ranks, config, division or Division())
    with undone_if_worthless(run):
        if not run.config_file.exists():
            run.save_config(config)
        return _train(run, config, given, sinks, team)


def _train(
    run: RunFolder | None,
    config: TrainConfig,
    given: Blocks | None = None,
    sinks: Sequence[SinkName] = (),
    team: Team | None = None,
) -> Trained:
    team = team or WholeTeam()
    count_steps(config, config.tokens)
    source = open_source(config) if given is None else GivenSource(config, given)
    if run is not None:
        write_json(run.model_file, source.about_model())
    with nullcontext(NEVER) if run is None else stopping("what was read") as stop:
        data = source.read(
            None if run is None else run.activations,
            stop,
            (lambda settled: None) if run is None else run.save_config,
        )
    give_back()
    n_steps = count_steps(config, data.n_rows)
    config = settle_scale(data.config, lambda: data.blocks.block(0, 0))
    trained = {
        name: new_training(
            # An SAE of another rank is only a copy here, to be saved.
            member if name in team.own([name]) else replace(member, device="cpu"),
            source.d_in,
            n_steps,
            source.model,
            source.d_out,
        )
        for name, member in config.members().items()
    }
    fingerprint = "" if run is None else data.fingerprint()
    if run is not None and given is not None:
        for training in trained.values():
            training.sae.metadata[FINGERPRINT] = fingerprint
    about = {"config": to_dict(config), "model": {"fingerprint": source.model.fingerprint}}
    if run is not None:
        if (checkpoint := latest_checkpoint(run.checkpoints)) is not None:
            check_about(checkpoint, about, run.config_file)
        run.save_config(config)
    harvested = source.seconds
    if run is not None:
        tell(team.ranks, config, data, run, source.d_in, source.d_out, n_steps, team.division)
    logs = train(
        config,
        trained,
        ActivationStream(data.blocks, config.batch_size),
        run,
        fingerprint=fingerprint,
        about=about,
        lm_seconds=lambda: source.seconds,
        sinks=sinks,
        team=team,
    )
    saes = {name: training.sae for name, training in trained.items()}
    return Trained(config, saes, logs, data, source.reader, harvested)


def reopened(run: RunFolder) -> Run:
    """A complete run, as `run_training` returned it. Its activations are read again if they have been deleted."""
    config = run.config()
    source = open_source(config)
    saes = {name: run.load(name)[1] for name in config.members()}
    with stopping("what was read") as stop:
        data = source.read(run.activations, stop, lambda settled: None)
    assert data.tokens is not None
    return Run(run, config, saes, source.reader, data.tokens, data.blocks, source.seconds)


def new_training(
    config: TrainConfig, d_in: int, n_steps: int, model: ModelIdentity, d_out: int | None = None
) -> Training:
    """Start the training of one SAE of a run, with its metadata."""
    run, device = RunLength(n_steps, config.optim.batch_size), resolve_device(config.device)
    training = start_training(
        config.sae, d_in, run, d_out=d_out, seed=config.seed, optim=config.optim, device=device
    )
    training.sae.metadata = metadata(config, n_steps, model)
    return training


def metadata(config: TrainConfig, n_steps: int, model: ModelIdentity) -> dict[str, Any]:
    """The metadata of an SAE: its language model, site and text, the number of training tokens, seed and versions."""
    text = {
        **model.to_dict(),
        "hook_name": config.site,
        **({} if config.target is None else {"hook_name_out": config.target}),
        **about_text(config, config.tokens // config.text.context * config.text.context),
    }
    return {
        **({} if config.data == GIVEN else text),
        "tokens": n_steps * config.optim.batch_size,
        "seed": config.seed,
        TRAINING: training_settings(config.sae),
        "version": __version__,
        "torch": torch.__version__,
    }
