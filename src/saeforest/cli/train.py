"""`saeforest train`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from ..config import TrainConfig, load_config
from ..errors import InputError
from ..output import note, say, say_json, status
from ..presets import PRESETS, together, with_seeds
from ..ranks import here
from ..run_folder import CONFIG, RunFolder
from ..saes import SYSTEMS
from ..sinks.names import SinkName, check_sinks
from .arguments import parse, stray, taken
from .common import near, positive, resumable, say_next
from .presets import say_presets
from .shared import Json

_SEVERAL = "set up each with --saes.NAME..."
# Not read where a run trains several SAEs.
_OF_ONE = frozenset({"config.sae", "config.optim", "config.seed"})


@dataclass(frozen=True)
class TrainArguments:
    config: Annotated[TrainConfig, tyro.conf.arg(name="")]
    presets: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="PRESET ...")] = ()
    """Settings to start from. Several presets train several SAEs on the same activations. Default: demo."""
    list_presets: tyro.conf.FlagCreatePairsOff[bool] = False
    """List the presets and exit."""
    file: Annotated[Path | None, tyro.conf.arg(name="config", metavar="FILE")] = None
    """File to start from instead, such as RUN/config.yaml."""
    architecture: Annotated[
        str,
        tyro.conf.arg(
            metavar="SYSTEM", help=f"System to train: {', '.join(SYSTEMS)}. Default: that of the preset."
        ),
    ] = "tree"
    out: Path | None = None
    """Folder for the run. It must be new or empty, or hold a run to resume. Default: runs/PRESET."""
    resume: tyro.conf.FlagCreatePairsOff[bool] = False
    """Continue the run in --out from its latest checkpoint."""
    dry_run: tyro.conf.FlagCreatePairsOff[bool] = False
    """Estimate sizes, memory and time, and exit."""
    log: tuple[SinkName, ...] = ()
    """Show the training log in other tools too. A resumed run goes on in the same remote runs."""
    seeds: tuple[int, ...] = ()
    """Train every SAE once with each of these seeds, such as 0 1 2. Default: only --seed."""
    spread: Literal["rows", "saes"] | None = None
    """What the processes that torchrun started divide: the rows of every batch, or whole SAEs of which each trains its
    own. Default: saes if the run has several, and at least as many as there are processes."""
    shards: int = 1
    """Number of processes among which the rows of a dictionary are divided, for one that is too large for a single GPU.
    It divides the number of processes; their other factor divides the batch."""
    whole_checkpoints: tyro.conf.FlagCreatePairsOff[bool] = False
    """With --shards, let the first process gather each checkpoint and write it as one file. Default: every shard is
    written by a process that has it, to a file of its own."""
    json: Json = False


def train(argv: Sequence[str]) -> None:
    if not (ranks := here()).first:  # the first rank reads the arguments
        from ..training.run import help_training

        help_training(ranks)
        return
    if "--list-presets" in argv:
        say_presets(json="--json" in argv)
        return
    name, base, rest = _presets(argv)
    name, base, rest = _architecture(name, base, rest)
    default = TrainArguments(base, architecture=base.sae.architecture)
    args = parse(TrainArguments, rest, "train", default, _OF_ONE if base.saes else frozenset())
    if args.presets:
        first = "; presets come before all options" if args.presets[0] in PRESETS else ""
        raise InputError(f"{stray(args.presets[0], rest)}{first} (see `saeforest train --help`)")
    out = args.out or Path("runs") / name
    if args.resume and (args.dry_run or args.seeds or args.config != PRESETS["demo"]):
        raise InputError(
            f"--resume takes only --out and --log; all other settings come from {RunFolder(out).config_file}"
        )
    division = _division(args, ranks.size)
    sinks = check_sinks(args.log)
    config = _checked(args.config, base)
    if args.seeds and args.config.seed != base.seed:
        raise InputError(f"--seed {args.config.seed} and --seeds: give one of them")
    config = with_seeds(config, args.seeds, name)
    if args.dry_run:
        _dry_run(config, json=args.json)
        return
    from ..training import run_training
    from ..training.unfinished import is_complete, tidy

    run = RunFolder(out)
    if is_complete(run, None if args.resume else config):
        note(f"{out}: this run is complete; nothing is left to do")
    else:
        with resumable(out, "train --resume"):
            run_training(
                config,
                out,
                resume=args.resume,
                sinks=sinks,
                ranks=ranks,
                division=division,
            )
    tidy(run)
    saes = {name: run.load(name)[1] for name in run.names()}
    if args.json:
        say_json({"run": str(run), "saes": {name: _trained(run, name) for name in saes}})
        return
    for name, sae in saes.items():
        _say_trained(run, name, sae.d_sae)
    name, sae = next(iter(saes.items()))
    say_next(run, name, families=sae.has_forest)


def _division(args: TrainArguments, n_ranks: int) -> Any:
    """What several processes divide."""
    from ..training.team import Division

    positive(args, "shards")
    given = f"--spread {args.spread}" if args.spread else f"--shards {args.shards}" if args.shards > 1 else ""
    if given and n_ranks == 1:
        raise InputError(
            f"{given}: there is one process; start with torchrun --nproc-per-node N -m saeforest train"
        )
    if args.spread and args.shards > 1:
        raise InputError(f"--spread {args.spread} and --shards {args.shards}: give one of them")
    if args.whole_checkpoints and args.shards == 1:
        raise InputError("--whole-checkpoints: without --shards, every checkpoint is one file; leave it out")
    return Division(args.spread or "auto", args.shards, args.whole_checkpoints)


def _dry_run(config: TrainConfig, *, json: bool) -> None:
    from ..memory import too_much
    from ..training.dry_run import describe, estimate

    found = estimate(config)
    if json:
        own = {key: getattr(found, key) for key in _ESTIMATED}
        say_json({"device": str(found.device), **own, "memory": asdict(found.memory)})
    else:
        status.print(describe(found))
    if warning := too_much(found.memory.peak, found.memory.lower):
        note(f"warning: {warning}")


_ESTIMATED = (
    "d_in",
    "n_steps",
    "store",
    "n_parameters",
    "bytes_sae",
    "bytes_lm",
    "bytes_activations",
    "seconds_lm",
    "seconds_sae",
)


def _last_step(run: RunFolder, name: str) -> dict[str, Any] | None:
    """The last line of an SAE's training log that tells of a step; None if there is none."""
    from ..training.log import read_log

    steps = [line for line in read_log(run.logs(name)) if "event" not in line]
    return steps[-1] if steps else None


def _trained(run: RunFolder, name: str) -> dict[str, Any]:
    """Where an SAE is, and the last line of its training log."""
    config, sae = run.load(name)
    about = {"folder": str(run.sae(name)), "architecture": config.sae.architecture, "features": sae.d_sae}
    return {**about, "last_step": _last_step(run, name)}


def _say_trained(run: RunFolder, name: str, d_sae: int) -> None:
    if (last := _last_step(run, name)) is None:
        return
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
            raise InputError(
                f"preset '{name}': no such preset{hint}; `saeforest train --list-presets` lists them"
            )
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
