"""`saeforest train`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import tyro

from ..config import TrainConfig, load_config
from ..errors import InputError
from ..output import note, say, status
from ..presets import PRESET_NAMES, PRESETS, together, with_seeds
from ..run_folder import CONFIG, RunFolder
from ..saes import SYSTEMS
from .arguments import parse, taken
from .common import near, resumable, say_next

_SEVERAL = "set up each with --saes.NAME..."


@dataclass(frozen=True)
class _Train:
    config: Annotated[TrainConfig, tyro.conf.arg(name="")]
    architecture: Annotated[str, tyro.conf.arg(metavar=f"{{{','.join(SYSTEMS)}}}")]
    """Which system to train, if not the preset's: then the --sae options are that system's, with its own defaults,
    the papers' sizes (--sae.layer-sizes and --sae.k-per-layer set others)."""
    out: Path | None = None
    """The run's folder, new or empty. Default: runs/PRESET, or runs/PRESET-ARCHITECTURE."""
    resume: tyro.conf.FlagCreatePairsOff[bool] = False
    """Go on with the run in --out from its latest checkpoint."""
    dry_run: tyro.conf.FlagCreatePairsOff[bool] = False
    """Only tell sizes, memory, steps and an estimate of the time."""
    seeds: tuple[int, ...] = ()
    """The seeds themselves, such as 0 1 2: every SAE is trained once with each, on the same activations."""


def train(argv: Sequence[str]) -> None:
    """Train one SAE, or several on the same activations. `saeforest train [PRESET ...] [--config FILE] [--out RUN]`."""
    name, base, rest = _presets(argv)
    name, base, rest = _architecture(name, base, rest)
    about = f"{train.__doc__} {PRESET_NAMES}"
    args = parse(_Train, rest, "train", about, default=_Train(base, base.sae.architecture))
    out = args.out or Path("runs") / name
    if args.resume and (args.dry_run or args.seeds or args.config != PRESETS["demo"]):
        raise InputError(
            f"--resume goes on with the settings of {RunFolder(out).config_file}; give only --out beside it"
        )
    config = _checked(args.config, base)
    if args.seeds and args.config.seed != base.seed:
        raise InputError(f"--seed {args.config.seed} and --seeds: give one of them")
    config = with_seeds(config, args.seeds, name)
    if args.dry_run:
        from ..memory import too_much
        from ..training.dry_run import describe, estimate

        found = estimate(config)
        status.print(describe(found))
        if warning := too_much(found.memory.peak, found.memory.lower):
            note(f"warning: {warning}")
        return
    from ..training import run_training
    from ..training.unfinished import is_complete, tidy

    run = RunFolder(out)
    if is_complete(run, None if args.resume else config):
        note(f"{out}: this run is complete; nothing is left to do")
    else:
        with resumable(out, "train --resume"):
            run_training(config, out, resume=args.resume)
    tidy(run)
    saes = {name: run.load(name)[1] for name in run.names()}
    for name, sae in saes.items():
        _say_trained(run, name, sae.d_sae)
    name, sae = next(iter(saes.items()))
    say_next(run, name, families=sae.has_forest)


def _say_trained(run: RunFolder, name: str, d_sae: int) -> None:
    from ..training.log import read_log

    steps = [line for line in read_log(run.logs(name)) if "event" not in line]
    if not steps:
        return
    last = steps[-1]
    l0, dead, fve = sum(last["l0"]), sum(last["dead"]), last["fve"]
    said = f"FVE {'-' if fve is None else f'{fve:.3f}'}, L0 {l0:.1f}, {dead:,} of {d_sae:,} features dead"
    say(f"In training: {name + ': ' if run.several else ''}{said}")


def _presets(argv: Sequence[str]) -> tuple[str, TrainConfig, list[str]]:
    """The name and configuration a command starts from, and the arguments that are left."""
    file, rest = taken(argv, "--config")
    names = []
    while rest and not rest[0].startswith("-"):
        names.append(rest.pop(0))
    for name in names:
        if name not in PRESETS:
            hint = near(name, PRESETS)
            raise InputError(f"preset '{name}': no such preset{hint}; `saeforest train --help` lists them")
    if file is not None:
        if names:
            raise InputError(f"preset '{names[0]}' and --config {file}: give one of them")
        path = Path(file)
        # RUN/config.yaml is known by its run, any other file by its own name.
        known_as = path.resolve().parent.name if path.name == CONFIG else path.stem
        return known_as, load_config(path), rest
    names = names or ["demo"]
    return "+".join(names), together(names), rest


def _architecture(name: str, base: TrainConfig, argv: list[str]) -> tuple[str, TrainConfig, list[str]]:
    """The same with the system that `--architecture` names: its own defaults, unless it is the one that is there."""
    for option in ("--architecture", "--sae.architecture"):
        system, argv = taken(argv, option)
        if system is None or (not base.saes and system == base.sae.architecture):
            continue
        if system not in SYSTEMS:
            hint = near(system, SYSTEMS)
            raise InputError(f"{option} {system[:100]}: expected one of {', '.join(SYSTEMS)}{hint}")
        if base.saes:
            raise InputError(f"{option} {system}: sets up one SAE, but there are several; {_SEVERAL}")
        sae: Any = SYSTEMS[system].config_class()
        name, base = f"{name}-{system}", replace(base, sae=sae)
    return name, base, argv


def _checked(config: TrainConfig, base: TrainConfig) -> TrainConfig:
    """Raises InputError where an option for one SAE was given beside several."""
    if config.saes and any(getattr(config, key) != getattr(base, key) for key in ("sae", "optim", "seed")):
        raise InputError(f"--sae, --optim and --seed set up one SAE, but there are several; {_SEVERAL}")
    return config
