"""`saeforest index`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .arguments import parse
from .common import Run, doc, named, positive


@dataclass(frozen=True)
class _Index:
    run: Run
    """A run's folder."""
    tokens: int | None = None
    """Tokens of the training text to look at. Default: those of the run, 600,000 at most."""
    sae: str | None = None
    """Which SAE, of a run that trained several."""
    device: str | None = None
    """Of language model and SAE; by default the one the run was trained on."""


def index(argv: Sequence[str]) -> None:
    """Collect what `show` needs: where each feature fires most, its density, its direction. Writes RUN/index/."""
    args = parse(_Index, argv, "index", doc(index))
    if args.tokens is not None:
        positive(args, "tokens")
    from ..explore import index_run
    from ..run_folder import RunFolder

    run = RunFolder(args.run)
    index_run(run, args.tokens, named(run, args.sae), args.device)
