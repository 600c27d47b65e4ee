"""`saeforest infer`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from ..infer import InferConfig
from ..output import say
from ..stopping import Interrupted
from .arguments import parse
from .common import doc, positive


@dataclass(frozen=True)
class _Infer:
    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN|SAE")]
    """A run's folder, or the folder of an SAE."""
    settings: Annotated[InferConfig, tyro.conf.arg(name="")] = field(default_factory=InferConfig)
    tokens: int = 200_000
    """Number of training tokens to infer the forest from."""
    sae: str | None = None
    """Which SAE, of a run that trained several."""
    out: Path | None = None
    """Folder for the forest of an SAE, new or empty. That of a run goes to RUN/forest."""
    model: str = ""
    """Language model of an SAE. Default: the one its metadata name."""
    site: str = ""
    """Site of an SAE. Default: the one its metadata name."""
    data: str = ""
    """Text for an SAE. Default: the packaged text."""
    device: str | None = None
    """Of language model and SAE; by default the one the run was trained on, for an SAE the best there is."""


def infer(argv: Sequence[str]) -> None:
    """Infer a forest for a flat SAE from text. Writes RUN/forest/, which `eval` takes, or for an SAE alone --out."""
    args = parse(_Infer, argv, "infer", doc(infer))
    positive(args, "tokens")
    from ..evaluation import infer as infer_forest_of

    try:
        found = infer_forest_of(
            args.source,
            args.settings,
            tokens=args.tokens,
            sae=args.sae,
            device=args.device,
            out=args.out,
            model=args.model,
            site=args.site,
            data=args.data,
        )
    except Interrupted as stop:
        raise Interrupted("stopped; nothing was written: the same command begins anew", stop.signum) from None
    edges, d_sae = found.forest.edges.shape[1], found.forest.d_sae
    say(
        f"{edges:,} of {d_sae:,} features have a parent, by {found.config.method} on {found.n_tokens:,} activations"
    )
