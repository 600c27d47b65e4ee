"""`saeforest index`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..output import say_json
from .arguments import parse
from .common import named, positive
from .shared import Device, Json, OneSAE, Run


@dataclass(frozen=True)
class IndexArguments:
    run: Run
    tokens: int | None = None
    """Number of training tokens to read. Default: as many as in training, up to 600,000."""
    sae: OneSAE = None
    device: Device = None
    json: Json = False


def index(argv: Sequence[str]) -> None:
    args = parse(IndexArguments, argv, "index")
    if args.tokens is not None:
        positive(args, "tokens")
    from dataclasses import asdict

    from ..explore import index_run
    from ..run_folder import RunFolder

    run = RunFolder(args.run)
    name = named(run, args.sae)
    found = index_run(run, args.tokens, name, args.device)
    if args.json:
        say_json({"folder": str(run.index(name)), "sae": name, "about": asdict(found.about)})
