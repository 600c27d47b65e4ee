"""`saeforest compare`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from ..errors import InputError
from ..output import say
from .arguments import parse
from .common import doc


@dataclass(frozen=True)
class _Compare:
    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN [RUN ...]")]
    """Folders of runs that `saeforest eval` has measured."""
    out: Path
    """The folder for the report, new or empty."""


def compare(argv: Sequence[str]) -> None:
    """Set measured SAEs side by side. Writes report.html, report.md, report.json and figures into --out."""
    args = parse(_Compare, argv, "compare", doc(compare))
    if not args.runs:
        raise InputError("compare: expected the folder of at least one run (see `saeforest compare --help`)")
    from ..report import compare as compare_runs
    from ..training.unfinished import claim_empty

    claim_empty(args.out)
    compare_runs(args.runs, args.out)
    say(f"the report: {args.out / 'report.html'} (also report.md, report.json, figures/)")
