"""`saeforest harvest`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from ..config import TrainConfig
from ..errors import InputError
from ..output import say
from .arguments import parse
from .common import doc, quoted, resumable


@dataclass(frozen=True)
class _Harvest:
    config: Annotated[TrainConfig, tyro.conf.arg(name="")]
    out: Path | None = None
    """The folder for the activations, new or empty."""


def harvest(argv: Sequence[str]) -> None:
    """Read activations into a folder once, to train on them with `saeforest train --data FOLDER` as often as wanted."""
    args = parse(_Harvest, argv, "harvest", doc(harvest), default=_Harvest(TrainConfig()))
    if args.out is None:
        raise InputError("harvest: expected --out FOLDER for the activations")
    from ..training.harvest import run_harvest

    with resumable(args.out, "the same command"):
        _, done = run_harvest(args.config, args.out)
    say(f"{done.n_rows:,} activations in {args.out}; train on them with --data {quoted(args.out)}")
    say(str(done))
