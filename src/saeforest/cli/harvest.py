"""`saeforest harvest`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from shlex import quote
from typing import Annotated, Literal

import tyro

from ..config import TrainConfig
from ..errors import InputError
from ..output import say, say_json
from ..schema import Element
from .arguments import parse
from .common import resumable
from .shared import Json

Flag = Annotated[bool, tyro.conf.FlagCreatePairsOff]
#: Options of training that reading activations has no use for.
NOT_READ = frozenset(
    f"config.{name}" for name in ("sae", "optim", "saes", "seed", "epochs", "log_every", "checkpoint_minutes")
)


@dataclass(frozen=True)
class HarvestArguments:
    config: Annotated[TrainConfig, tyro.conf.arg(name="")]
    out: str | None = None
    """Folder for the activations, new or empty, or an address such as s3://bucket/folder. Required."""
    element: Element = "auto"
    """Type of the stored numbers. auto: as the language model computes them; int8: 8 bits and a scale for each
    activation."""
    backend: Literal["transformers", "vllm"] = "transformers"
    """What computes the activations. vllm is untested; it must agree with transformers on the first batch."""
    worker: int | None = None
    """Number of this worker, from 0, if several processes harvest together. Default: as torchrun or SLURM says."""
    of: int | None = None
    """Number of workers. The result does not depend on it."""
    prepare: Flag = False
    """Only tokenize the text, so that the workers that are started afterwards need not."""
    status: str | None = None
    """Say which shards of this folder or address are there, missing or damaged, and do nothing else."""
    quick: Flag = False
    """With --status: compare the sizes of files, and not their checksums."""
    json: Json = False


def harvest(argv: Sequence[str]) -> int:
    args = parse(HarvestArguments, argv, "harvest", HarvestArguments(TrainConfig()), NOT_READ)
    if args.status is not None:
        return _say_status(args.status, quick=args.quick, as_json=args.json)
    if args.out is None:
        raise InputError("harvest: expected --out FOLDER for the activations")
    if args.quick:
        raise InputError("--quick: belongs to --status FOLDER")
    from ..activations.folder import is_address
    from ..training.harvest import device_of, run_harvest, worker_of

    worker = worker_of(args.worker, args.of)
    config = replace(args.config, device=device_of(args.config.device))
    out = args.out if is_address(args.out) else Path(args.out)
    with resumable(Path(args.out), "the same command"):
        found = run_harvest(
            config,
            out,
            worker=worker,
            element=args.element,
            prepare=args.prepare,
            backend=args.backend,
        )
    if found is None:
        about = {"folder": args.out, "complete": False}
        what = "the text is tokenized" if args.prepare else f"{worker} is done"
        if args.json:
            say_json(about)
        else:
            say(f"{what}; saeforest harvest --status {quote(args.out)} says what is missing")
        return 0
    if args.json:
        done = found.done
        about = {"activations": done.n_rows, "tokens": done.n_tokens, "width": found.store.d_in}
        say_json({"folder": args.out, "complete": True} | about)
        return 0
    say(f"{found.done.n_rows:,} activations in {args.out}; train on them with --data {quote(args.out)}")
    say(str(found.done))
    return 0


def _say_status(place: str, *, quick: bool, as_json: bool) -> int:
    """Say what a store holds. Returns 1 if anything is damaged, or missing from a store that was complete."""
    from ..activations.folder import folder_at
    from ..activations.status import store_status

    status = store_status(folder_at(place), quick=quick)
    flawed = bool(status.damaged) or (status.complete and bool(status.missing))
    if as_json:
        say_json({"folder": place} | status.to_dict())
        return int(flawed)
    state = "complete" if status.complete else "unfinished"
    there = f"{len(status.there):,} of {status.shards:,} shards are there"
    say(f"{place}: {state}; {there}, with {status.activations:,} activations")
    for file, problem in status.damaged.items():
        say(f"damaged: {file}: {problem}")
    for what, files in (("missing", status.missing), ("begun", status.begun)):
        if files:
            say(f"{what}: {_ranges(files)}")
    if not status.complete:
        if not status.missing and not status.begun and not status.damaged:
            say("all shards are there: start any worker again, and it writes the manifest")
        else:
            say("start the workers that stopped once more: they read what is missing or damaged")
    elif flawed:
        say("delete the folder and harvest again, or restore these files from a copy")
    return int(flawed)


def _ranges(files: list[str]) -> str:
    """File names with a number, those that follow each other as a range."""
    parts: list[list[str]] = []
    for file in files:
        if parts and _number(file) == _number(parts[-1][-1]) + 1:
            parts[-1].append(file)
        else:
            parts.append([file])
    return ", ".join(part[0] if len(part) == 1 else f"{part[0]} to {part[-1]}" for part in parts)


def _number(file: str) -> int:
    return int(file.removeprefix("shard-").removesuffix(".safetensors"))
