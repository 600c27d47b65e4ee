"""`saeforest harvest`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from ..config import TrainConfig
from ..errors import InputError
from ..output import say, say_json
from .arguments import parse
from .common import quoted, resumable
from .shared import Json

#: Options of training that reading activations has no use for.
NOT_READ = frozenset(
    f"config.{name}" for name in ("sae", "optim", "saes", "seed", "epochs", "log_every", "checkpoint_minutes")
)


@dataclass(frozen=True)
class HarvestArguments:
    config: Annotated[TrainConfig, tyro.conf.arg(name="")]
    out: Path | None = None
    """Folder for the activations, new or empty. Required."""
    json: Json = False


def harvest(argv: Sequence[str]) -> None:
    args = parse(HarvestArguments, argv, "harvest", HarvestArguments(TrainConfig()), NOT_READ)
    if args.out is None:
        raise InputError("harvest: expected --out FOLDER for the activations")
    from ..training.harvest import run_harvest

    with resumable(args.out, "the same command"):
        store, done = run_harvest(args.config, args.out)
    if args.json:
        about = {"activations": done.n_rows, "tokens": done.n_tokens, "width": store.d_in}
        say_json({"folder": str(args.out)} | about)
        return
    say(f"{done.n_rows:,} activations in {args.out}; train on them with --data {quoted(args.out)}")
    say(str(done))
