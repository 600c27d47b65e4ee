"""`saeforest train`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from ..config import TrainConfig, load_config
from ..errors import UserError
from ..output import note, say, status
from ..presets import PRESET_NAMES, PRESETS, together, with_seeds
from .common import near, parse, resumable, say_next


@dataclass(frozen=True)
class _Train:
    config: Annotated[TrainConfig, tyro.conf.arg(name="")]
    out: Path | None = None
    """The run's folder, new or empty. Default: runs/PRESET."""
    resume: tyro.conf.FlagCreatePairsOff[bool] = False
    """Go on with the run in --out from its latest checkpoint."""
    dry_run: tyro.conf.FlagCreatePairsOff[bool] = False
    """Only tell sizes, memory, steps and an estimate of the time."""
    seeds: tuple[int, ...] = ()
    """The seeds themselves, such as 0 1 2: every SAE is trained once with each, on the same activations."""


def train(argv: Sequence[str]) -> None:
    """Train one SAE, or several on the same activations. `saeforest train [PRESET ...] [--config FILE] [--out RUN]`."""
    name, base, rest = _presets(argv)
    about = f"{train.__doc__} {PRESET_NAMES}"
    args = parse(_Train, rest, "train", about, default=_Train(base))
    out = args.out or Path("runs") / name
    if args.resume and (args.dry_run or args.seeds or args.config != PRESETS["demo"]):
        raise UserError(
            f"--resume goes on with the settings of {out / 'config.yaml'}; give only --out beside it"
        )
    config = _checked(args.config, base)
    if args.seeds and args.config.seed != base.seed:
        raise UserError(f"--seed {args.config.seed} and --seeds: give one of them")
    config = with_seeds(config, args.seeds, name)
    if args.dry_run:
        from ..memory import too_much
        from ..training.dry_run import describe, estimate

        found = estimate(config)
        status.print(describe(found))
        if warning := too_much(found.memory.peak, found.memory.lower):
            note(f"warning: {warning}")
        return
    from ..session import load_run, sae_names
    from ..training import run_training
    from ..training.unfinished import is_complete, tidy

    if is_complete(out, None if args.resume else config):
        note(f"{out}: this run is complete; nothing is left to do")
    else:
        with resumable(out, "train --resume"):
            run_training(config, out, resume=args.resume)
    tidy(out)
    saes = {name: load_run(out, name=name)[1] for name in sae_names(out)}
    for name, sae in saes.items():
        _say_trained(out, name, sae.d_sae)
    name, sae = next(iter(saes.items()))
    say_next(out, name, families=not sae.flat)


def _say_trained(run: Path, name: str, d_sae: int) -> None:
    from ..training.log import log_folder, read_log

    steps = [line for line in read_log(log_folder(run, name)) if "event" not in line]
    if not steps:
        return
    last = steps[-1]
    l0, dead, fve = sum(last["l0"]), sum(last["dead"]), last["fve"]
    said = f"FVE {'-' if fve is None else f'{fve:.3f}'}, L0 {l0:.1f}, {dead:,} of {d_sae:,} features dead"
    say(f"In training: {name + ': ' if name else ''}{said}")


def _presets(argv: Sequence[str]) -> tuple[str, TrainConfig, list[str]]:
    """The name and configuration a command starts from, and the arguments that are left."""
    rest = [part for arg in argv for part in (arg.split("=", 1) if arg.startswith("--config=") else [arg])]
    names = []
    while rest and not rest[0].startswith("-"):
        names.append(rest.pop(0))
    for name in names:
        if name not in PRESETS:
            hint = near(name, PRESETS)
            raise UserError(f"preset '{name}': no such preset{hint}; `saeforest train --help` lists them")
    if "--config" in rest:
        i = rest.index("--config")
        if len(rest) < i + 2:
            raise UserError("--config: expected a file such as RUN/config.yaml behind it")
        if names:
            raise UserError(f"preset '{names[0]}' and --config {rest[i + 1]}: give one of them")
        path = Path(rest[i + 1])
        del rest[i : i + 2]
        # RUN/config.yaml is known by its run, any other file by its own name.
        known_as = path.resolve().parent.name if path.name == "config.yaml" else path.stem
        return known_as, load_config(path), rest
    names = names or ["demo"]
    return "+".join(names), together(names), rest


def _checked(config: TrainConfig, base: TrainConfig) -> TrainConfig:
    """Raises UserError where an option for one SAE was given beside several."""
    if config.saes and any(getattr(config, key) != getattr(base, key) for key in ("sae", "optim", "seed")):
        raise UserError(
            "--sae, --optim and --seed set up one SAE, but there are several; set up each with --saes.NAME..."
        )
    return config
