"""`saeforest index`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..output import say_json
from .arguments import parse
from .common import positive, subject_of
from .shared import Device, Json, OneSAE, Reads, ReadsOptions, RunOrSAE


@dataclass(frozen=True)
class IndexArguments:
    source: RunOrSAE
    tokens: int | None = None
    """Number of training tokens to read. Default: as many as in training, up to 600,000."""
    sae: OneSAE = None
    out: Path | None = None
    """Folder for the index and the forest, for an SAE without a run; required there, and only then."""
    reads: ReadsOptions = field(default_factory=Reads)
    device: Device = None
    json: Json = False


def index(argv: Sequence[str]) -> None:
    args = parse(IndexArguments, argv, "index")
    if args.tokens is not None:
        positive(args, "tokens")
    from dataclasses import asdict

    from ..explore.measuring.run import make_index

    subject = subject_of(args.source, args.sae, args.out, args.reads, args.device)
    found = make_index(subject, args.tokens)
    if args.json:
        say_json({"folder": str(subject.place.index), "sae": subject.name, "about": asdict(found.about)})
