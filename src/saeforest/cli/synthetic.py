"""`saeforest synthetic`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from ..errors import InputError
from ..output import results, say, say_json
from ..worlds import GENERATORS
from ..worlds.config import SyntheticConfig
from ..worlds.presets import SYSTEM_NAMES
from .arguments import parse
from .common import near, positive, resumable
from .shared import Json


@dataclass(frozen=True)
class SyntheticArguments:
    generator: Annotated[
        str,
        tyro.conf.Positional,
        tyro.conf.arg(
            metavar="GENERATOR", help=f"What makes the data and its tree. One of {', '.join(GENERATORS)}."
        ),
    ]
    systems: Annotated[
        str, tyro.conf.arg(help=f"Systems to train, separated by commas. Any of {', '.join(SYSTEM_NAMES)}.")
    ] = "tree,topk,batchtopk,matryoshka"
    seeds: int = 5
    """Number of seeds; each makes new data and new initial weights."""
    seed: int = 0
    """First of the random seeds."""
    out: Path | None = None
    """Folder for recovery.json, new or empty. Default: runs/synthetic-GENERATOR."""
    training: Annotated[SyntheticConfig, tyro.conf.arg(name="")] = field(default_factory=SyntheticConfig)
    json: Json = False


def synthetic(argv: Sequence[str]) -> None:
    from ..worlds.run import RECOVERY, recovery_table, run_synthetic

    args = parse(SyntheticArguments, argv, "synthetic")
    positive(args, "seeds")
    if args.generator not in GENERATORS:
        names = ", ".join(GENERATORS)
        raise InputError(
            f"generator '{args.generator}': expected one of {names}{near(args.generator, GENERATORS)}"
        )
    systems = [name for name in args.systems.split(",") if name]
    if len(set(systems)) < len(systems) or not systems:
        raise InputError(f"--systems {args.systems}: expected different names, separated by commas")
    if unknown := [name for name in systems if name not in SYSTEM_NAMES]:
        raise InputError(f"system '{unknown[0]}': expected some of {', '.join(SYSTEM_NAMES)}")
    out = args.out or Path("runs") / f"synthetic-{args.generator}"
    seeds = range(args.seed, args.seed + args.seeds)
    with resumable(out, "the same command"):
        found = run_synthetic(args.generator, systems, seeds, args.training, out)
    if args.json:
        say_json({"file": str(out / RECOVERY), "seeds": list(seeds), "systems": found})
        return
    results().print(recovery_table(found, args.generator))
    say(f"every score, for every seed: {out / RECOVERY}")
