"""`saeforest.train`: a trained SAE from a tensor, a source of blocks, harvested activations or a configuration."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..activations.data import GIVEN, StoredData, data_of
from ..activations.sources import Blocks, MemoryActivations, is_store
from ..config import TrainConfig, system_config
from ..errors import InputError
from ..optim import OptimConfig
from ..run_folder import RunFolder
from ..saes import SAE, SYSTEMS, SystemConfig
from ..schema import shown
from ..sinks.names import SinkName, check_sinks
from ..training.data import blocks_fingerprint
from ..training.log import MemoryLog, read_log
from ..training.run import FINGERPRINT, Trained, run_training, train_given, train_in_memory
from ..training.unfinished import is_complete
from .arguments import Activations, a, activations, named_as_arguments, near, whole

# What fits most tensors: enough steps to learn from, and enough batches in one pass to shuffle well.
_LEAST_STEPS, _BATCHES_A_PASS = 2_000, 64
_BATCH = 256, 4_096
# The learning rate 2e-4 at 2^14 features, and as the inverse root of their number elsewhere: a known rule of thumb.
_LR, _LR_FEATURES = 2e-4, 2**14


@dataclass(frozen=True, eq=False, repr=False)
class TrainedRun:
    """What `saeforest.train` returns: the trained SAEs, their logs, and the run's folder if it has one.

    config: the whole configuration, with everything settled.
    saes:   the SAEs by name; a single one's name is its architecture.
    logs:   the training log of each SAE by its name: the lines of log.jsonl, steps and events, as dicts.
    folder: where everything was written; None for a run in memory.
    """

    config: TrainConfig
    saes: dict[str, SAE]
    logs: dict[str, list[dict[str, Any]]]
    folder: RunFolder | None = None

    @property
    def sae(self) -> SAE:
        """The trained SAE; the first one of a run with several."""
        return next(iter(self.saes.values()))

    @property
    def log(self) -> list[dict[str, Any]]:
        """The logged steps of `sae`: each a dict with step, loss, fve, l0 and dead (by layer), lr and more."""
        return [line for line in next(iter(self.logs.values())) if "event" not in line]

    @property
    def events(self) -> list[dict[str, Any]]:
        """What else happened in the training of `sae`: reallocations of a Tree SAE, say."""
        return [line for line in next(iter(self.logs.values())) if "event" in line]

    def __repr__(self) -> str:
        place = "in memory" if self.folder is None else str(self.folder)
        steps = self.log
        last = steps[-1] if steps else {}
        found = f"{last['step']:,} steps of {self.config.batch_size:,}" if steps else ""
        fve = f"FVE {last['fve']:.3f}, " if last.get("fve") is not None else ""
        l0 = f"L0 {sum(last['l0']):.1f}" if steps else ""
        saes = "".join(f"\n  {name}: {sae!r}" for name, sae in self.saes.items())
        return f"TrainedRun({place}; {found}; last batch: {fve}{l0}){saes}"


def train(
    data: Activations | Blocks | str | Path | TrainConfig,
    architecture: str | SystemConfig = "tree",
    *,
    out: str | Path | None = None,
    steps: int | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    optim: OptimConfig | None = None,
    seed: int = 0,
    device: str = "auto",
    log_every: int = 50,
    log: str | Sequence[str] = (),
    **settings: Any,
) -> TrainedRun:
    """Trains an SAE on activations, and returns it with its log.

    data: what to train on, one of
        a tensor or NumPy array of activations `[n, d]`;
        a source of blocks of activations (`saeforest.activations.Blocks`), such as what `saeforest.synthetic` returns;
        the path of a folder that `saeforest harvest` wrote;
        a whole `saeforest.config.TrainConfig`: its language model reads its text, and all other settings are in it.
    architecture: the system, by name (tree, hsae, topk, batchtopk, matryoshka, jumprelu, matching_pursuit, ...) or as
        its configuration (`saeforest.saes.TreeConfig(...)`, say).
    out: a folder for the run, laid out as `saeforest train` does; a call that was stopped goes on where it was when it
        is made again. None: everything stays in memory.
    steps, epochs: the length of the training: in steps, or in passes over the data. Default: one pass, or 2,000 steps
        if that is more.
    batch_size: activations in a step. Default: 1/64 of the rows, within 256 to 4,096.
    lr: peak learning rate. Default: 2e-4 times the root of 16,384 / the number of features.
    optim: all settings of the optimizer, in place of `lr` and `batch_size`. Default: Adam, 2% of the steps warm-up, and
        a linear decay to 0 over the last fifth.
    seed: random seed for the weights, the forest an SAE starts with, and the order of the activations.
    device: cpu, cuda, or auto.
    log_every: steps between logged steps.
    log: where the log of a run with `out` goes as well: tensorboard, trackio, wandb, mlflow, or several of them.
    settings: of the system, such as `layer_sizes` (features in each layer) and `k_per_layer` (active features in each).
        Defaults are those of the system's paper, which are for a language model: give sizes that suit your data.

    Activations of any floating-point type are read as float32. The SAE normalizes them itself
    (`normalize_activations`).

    Raises InputError for a wrong or unknown argument, for activations of a wrong shape, with NaN or infinite values or
    fewer than one batch, and for a folder that holds something else.

    Example:
        >>> import torch, saeforest
        >>> x = torch.randn(2_000, 16)
        >>> run = saeforest.train(x, "tree", layer_sizes=(8, 24), k_per_layer=(2, 2), steps=20)
        >>> run.sae.forest.layer_sizes
        (8, 24)
        >>> run.sae(x).shape
        torch.Size([2000, 16])
    """
    with named_as_arguments():
        sinks = check_sinks([log] if isinstance(log, str) else log)
        if sinks and out is None:
            raise InputError(
                f"log = {', '.join(sinks)}: a run in memory has no log to show elsewhere; give out"
            )
        if isinstance(data, TrainConfig):
            _only_out(
                architecture != "tree" and "architecture",
                *(name for name, value in (("steps", steps), ("epochs", epochs)) if value is not None),
                *(name for name, value in (("batch_size", batch_size), ("lr", lr)) if value is not None),
                optim is not None and "optim",
                seed != 0 and "seed",
                device != "auto" and "device",
                log_every != 50 and "log_every",
                *settings,
            )
            return _train_config(data, out, sinks)
        system = _system(architecture, settings)
        for name, value in (("steps", steps), ("epochs", epochs), ("batch_size", batch_size)):
            if value is not None:
                whole(name, value, 1)
        whole("seed", seed, 0)
        whole("log_every", log_every, 1)
        if steps is not None and epochs is not None:
            raise InputError(f"steps = {steps} and epochs = {epochs}: give one of them")
        common = TrainConfig(seed=seed, data_seed=seed, device=device, log_every=log_every, sae=system)
        if isinstance(data, str | Path):
            if not is_store(data):
                raise InputError(
                    f"data = {shown(str(data))}: no folder of activations that `saeforest harvest` wrote; "
                    "to train on a tensor give the tensor itself; "
                    "to train on text give a saeforest.config.TrainConfig"
                )
            stored = data_of(str(data))
            assert isinstance(stored, StoredData)
            if steps is not None:
                raise InputError(
                    f"steps = {steps}: harvested activations are read in whole passes; give epochs"
                )
            n = sum(shard.rows for shard in stored.manifest.shards)
            optimizer = _optimizer(optim, lr, batch_size, n, system)
            epochs = epochs or max(math.ceil(_LEAST_STEPS * optimizer.batch_size / n), 1)
            there = stored.manifest.tokens
            config = replace(common, data=str(data), tokens=there, epochs=epochs, optim=optimizer)
            return _train_config(config, out, sinks)
        blocks, n = _blocks(data, seed)
        optimizer = _optimizer(optim, lr, batch_size, n, system)
        size = optimizer.batch_size
        if n is None:
            if epochs is not None:
                raise InputError(
                    f"epochs = {epochs}: a source of blocks does not say how long it is; give steps"
                )
        elif n < size:
            raise InputError(
                f"batch_size = {size:,}: data has {n:,} rows, fewer than one batch; give more rows or a smaller batch"
            )
        elif epochs is not None:
            steps = n * epochs // size
        steps = steps or max(_LEAST_STEPS, (n or 0) // size)
        config = replace(common, model="", site="", data=GIVEN, tokens=steps * size, optim=optimizer)
        if out is not None and is_complete(RunFolder(Path(out)), config):
            return _finished(RunFolder(Path(out)), blocks)
        place = None if out is None else Path(out)
        return _run_of(train_given(config, blocks, place, sinks=sinks), out)


# Its own arguments, besides data and the settings of the system.
_OWN = tuple(name for name, p in signature(train).parameters.items() if p.kind is p.KEYWORD_ONLY)


def _train_config(config: TrainConfig, out: str | Path | None, sinks: Sequence[SinkName]) -> TrainedRun:
    if config.data == GIVEN:
        raise InputError(
            f"data = {GIVEN}: that configuration is of a run on a tensor; give the tensor itself"
        )
    if out is None:
        return _run_of(train_in_memory(config), None)
    folder = RunFolder(Path(out))
    if not is_complete(folder, config):
        run_training(config, folder.path, sinks=sinks)
    return _finished(folder)


def _run_of(trained: Trained, out: str | Path | None) -> TrainedRun:
    if out is not None:
        return _finished(RunFolder(Path(out)))
    logs = {name: log.lines for name, log in trained.logs.items() if isinstance(log, MemoryLog)}
    return TrainedRun(trained.config, trained.saes, logs)


def _finished(folder: RunFolder, blocks: Blocks | None = None) -> TrainedRun:
    """A complete run. Raises InputError where it was trained on other activations than `blocks`."""
    saes = {name: folder.load(name)[1] for name in folder.names()}
    if blocks is not None:
        now = blocks_fingerprint(blocks)
        if any(sae.metadata.get(FINGERPRINT) != now for sae in saes.values()):
            raise InputError(f"{folder}: holds a finished run on other activations; choose another folder")
    logs = {name: read_log(folder.logs(name)) for name in saes}
    return TrainedRun(folder.config(), saes, logs, folder)


def _blocks(data: object, seed: int) -> tuple[Blocks, int | None]:
    """What to read, and its number of rows where that is known."""
    if isinstance(data, Tensor | np.ndarray):
        x = activations("data", data)
        return MemoryActivations(x, torch.arange(len(x)), seed), len(x)
    if isinstance(data, Blocks):
        return data, None
    raise InputError(
        f"data: expected a tensor or array [n, d], a source of blocks, a folder that `saeforest harvest` wrote, or a "
        f"TrainConfig, not {a(data)}"
    )


def _optimizer(
    optim: OptimConfig | None,
    lr: float | None,
    batch_size: int | None,
    n: int | None,
    system: SystemConfig,
) -> OptimConfig:
    if optim is not None:
        if not isinstance(optim, OptimConfig):
            raise InputError(f"optim: expected a saeforest.optim.OptimConfig, not {a(optim)}")
        for name, value in (("lr", lr), ("batch_size", batch_size)):
            if value is not None:
                raise InputError(f"{name} = {value} and optim: give one of them")
        return optim
    if lr is not None and (isinstance(lr, bool) or not isinstance(lr, int | float)):
        raise InputError(f"lr = {shown(lr)}: expected a number above 0")
    if batch_size is None:
        least, most = _BATCH
        batch_size = 1_024 if n is None else max(min(max(n // _BATCHES_A_PASS, least), most, n), 1)
    rate = _LR * math.sqrt(_LR_FEATURES / sum(system.layer_sizes)) if lr is None else float(lr)
    return OptimConfig(lr=rate, batch_size=batch_size, warmup=0.02, decay="linear", decay_from=0.8)


def _system(architecture: str | SystemConfig, settings: Mapping[str, Any]) -> SystemConfig:
    """A system's configuration. Raises InputError for a name or a setting that there is not."""
    if not isinstance(architecture, str):
        kinds = tuple(sae.config_class for sae in SYSTEMS.values())
        if not isinstance(architecture, kinds):
            raise InputError(
                f"architecture: expected one of {', '.join(SYSTEMS)}, or a configuration of one, not "
                f"{a(architecture)}"
            )
        if settings:
            raise InputError(
                f"{next(iter(settings))}: architecture is a whole configuration; set it there, or give a system's name"
            )
        return architecture  # pyright: ignore[reportReturnType]
    if architecture not in SYSTEMS:
        raise InputError(
            f"architecture = {shown(architecture)}: expected one of {', '.join(SYSTEMS)}{near(architecture, SYSTEMS)}"
        )
    kind: Any = SYSTEMS[architecture].config_class
    names = [f.name for f in fields(kind) if f.name != "architecture"]
    for name in settings:
        if name not in names:
            raise InputError(
                f"{name}: no argument of train, and no setting of architecture {architecture}"
                f"{_instead(name, settings) or near(name, [*_OWN, *names])}; "
                f"expected {', '.join(_OWN)}, or a setting: {', '.join(names)}"
            )
    given = {
        name: _by_layer(name, value) if name in ("layer_sizes", "k_per_layer") else value
        for name, value in settings.items()
    }
    return system_config(architecture, given)


def _instead(name: str, settings: Mapping[str, Any]) -> str:
    """What to give in place of a name that other libraries have; empty if it is none of these."""
    if name in ("d_sae", "k"):
        sizes = {
            new: f"({value},)" if isinstance(value := settings.get(old), int) else example
            for old, new, example in (("d_sae", "layer_sizes", "(32,)"), ("k", "k_per_layer", "(3,)"))
        }
        written = ", ".join(f"{new}={value}" for new, value in sizes.items())
        return f"; for d_sae and k give {written}"
    return "; did you mean lr?" if name == "learning_rate" else ""


def _by_layer(name: str, value: object) -> tuple[int, ...]:
    """Numbers by layer: a single one is that of a single layer."""
    numbers = tuple(value) if isinstance(value, list | tuple) else (value,)
    if not numbers or any(isinstance(n, bool) or not isinstance(n, int) for n in numbers):
        raise InputError(
            f"{name} = {shown(value)}: expected a whole number for each layer, such as (64, 192)"
        )
    return numbers  # pyright: ignore[reportReturnType]


def _only_out(*given: object) -> None:
    """Raises InputError where an argument was given beside a TrainConfig."""
    if others := [name for name in given if name]:
        raise InputError(f"{others[0]}: data is a TrainConfig, which says everything but out; set it there")
