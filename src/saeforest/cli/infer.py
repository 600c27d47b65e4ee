"""`saeforest infer`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from ..infer import InferConfig
from ..output import say, say_json
from ..stopping import Interrupted
from .arguments import parse
from .common import positive
from .shared import Device, Json, OneSAE, Reads, ReadsOptions, RunOrSAE


@dataclass(frozen=True)
class InferArguments:
    source: RunOrSAE
    settings: Annotated[InferConfig, tyro.conf.arg(name="")] = field(default_factory=InferConfig)
    tokens: int = 200_000
    """Number of training tokens to infer the forest from."""
    sae: OneSAE = None
    out: Path | None = None
    """Folder for the forest, new or empty; required for an SAE without a run, and only then."""
    reads: ReadsOptions = field(default_factory=Reads)
    device: Device = None
    json: Json = False


def infer(argv: Sequence[str]) -> None:
    args = parse(InferArguments, argv, "infer")
    positive(args, "tokens")
    from ..evaluation import infer as infer_forest_of
    from ..run_folder import RunFolder

    try:
        found = infer_forest_of(
            args.source,
            args.settings,
            tokens=args.tokens,
            sae=args.sae,
            device=args.device,
            out=args.out,
            model=args.reads.model,
            site=args.reads.site,
            data=args.reads.data,
        )
    except Interrupted as stop:
        raise Interrupted("stopped; nothing was written: the same command starts over", stop.signum) from None
    edges, d_sae = found.forest.edges.shape[1], found.forest.d_sae
    if args.json:
        run = RunFolder(Path(args.source))
        folder = args.out or run.forest(args.sae or run.names()[0])
        about = {"features": d_sae, "edges": edges, "activations": found.n_tokens}
        say_json({"folder": str(folder), **about, "settings": asdict(found.config)})
        return
    say(
        f"{edges:,} of {d_sae:,} features have a parent, by {found.config.method} on {found.n_tokens:,} activations"
    )
