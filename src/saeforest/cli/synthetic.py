"""`saeforest synthetic`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, get_args

import tyro

from ..errors import InputError
from ..output import results, say, say_json
from ..worlds import GENERATORS
from ..worlds.config import SyntheticConfig
from ..worlds.generators import settings_of
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
    world: str = ""
    """Settings of the generator, separated by commas, such as depth=2,parent_offset=0.5. The pages of the documentation
    on known trees describe them."""
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
    world = _settings(args.generator, args.world)
    systems = [name for name in args.systems.split(",") if name]
    if len(set(systems)) < len(systems) or not systems:
        raise InputError(f"--systems {args.systems}: expected different names, separated by commas")
    if unknown := [name for name in systems if name not in SYSTEM_NAMES]:
        raise InputError(f"system '{unknown[0]}': expected some of {', '.join(SYSTEM_NAMES)}")
    out = args.out or Path("runs") / f"synthetic-{args.generator}"
    seeds = range(args.seed, args.seed + args.seeds)
    with resumable(out, "the same command"):
        found = run_synthetic(args.generator, systems, seeds, args.training, out, world)
    if args.json:
        say_json({"file": str(out / RECOVERY), "seeds": list(seeds), "systems": found})
        return
    results().print(recovery_table(found, args.generator))
    say(f"every score, for every seed: {out / RECOVERY}")


def _settings(generator: str, given: str) -> dict[str, bool | int | float]:
    """The settings of a generator from NAME=VALUE,..."""
    types = settings_of(generator)
    found: dict[str, bool | int | float] = {}
    for setting in filter(None, given.split(",")):
        name, _, text = setting.partition("=")
        if name not in types:
            known = f"expected {', '.join(types)}" if types else "it has none"
            raise InputError(
                f"--world {name}: no setting of generator {generator}{near(name, types)}; {known}"
            )
        kind = types[name]
        if kind is bool:
            value = {"true": True, "false": False}.get(text.lower())
            expected = "true or false"
        else:
            whole = int in (kind, *get_args(kind))
            value, expected = (
                _number(int if whole else float, text),
                "a whole number" if whole else "a number",
            )
        if value is None:
            raise InputError(f"--world {name}={text}: expected {expected}")
        found[name] = value
    return found


def _number(kind: type[int] | type[float], text: str) -> int | float | None:
    try:
        value = kind(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
