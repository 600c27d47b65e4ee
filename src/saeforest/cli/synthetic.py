"""`saeforest synthetic`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from ..errors import InputError
from ..output import results, say
from ..worlds.config import SyntheticConfig
from ..worlds.presets import SYSTEM_NAMES
from .arguments import parse
from .common import doc, near, positive, resumable


@dataclass(frozen=True)
class _Synthetic:
    generator: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="GENERATOR")]
    """A world whose tree is known."""
    systems: str = "tree,topk,batchtopk,matryoshka"
    """Names, separated by commas."""
    seeds: int = 5
    """How many of them."""
    seed: int = 0
    """The first of them; each makes a world and the weights of all systems."""
    out: Path | None = None
    """The folder for recovery.json, new or empty. Default: runs/synthetic-GENERATOR."""
    training: Annotated[SyntheticConfig, tyro.conf.arg(name="")] = field(default_factory=SyntheticConfig)


def synthetic(argv: Sequence[str]) -> None:
    """Train systems on a world whose tree is known, and score how much of it they recover. Writes recovery.json."""
    from ..worlds import GENERATORS
    from ..worlds.run import RECOVERY, recovery_table, run_synthetic

    names = ", ".join(GENERATORS)
    args = parse(
        _Synthetic,
        argv,
        "synthetic",
        f"{doc(synthetic)} GENERATOR: {names}. Systems: {', '.join(SYSTEM_NAMES)}.",
    )
    positive(args, "seeds")
    if args.generator not in GENERATORS:
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
    results().print(recovery_table(found, args.generator))
    say(f"every score, for every seed: {out / RECOVERY}")
