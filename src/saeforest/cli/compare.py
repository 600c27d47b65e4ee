"""`saeforest compare`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from ..errors import InputError
from ..output import say, say_json
from .arguments import parse
from .shared import Json


@dataclass(frozen=True)
class CompareArguments:
    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN [RUN ...]")]
    """Folders of runs that `saeforest eval` has measured."""
    out: Path
    """Folder for the report, new or empty."""
    json: Json = False


def compare(argv: Sequence[str]) -> None:
    args = parse(CompareArguments, argv, "compare")
    if not args.runs:
        raise InputError("compare: expected the folder of at least one run (see `saeforest compare --help`)")
    from ..report import compare as compare_runs
    from ..report.write import FIGURES, MARKDOWN, PAGE, VALUES
    from ..training.unfinished import claim_empty

    claim_empty(args.out)
    compare_runs(args.runs, args.out)
    if args.json:
        paths = {"html": PAGE, "markdown": MARKDOWN, "json": VALUES}
        figures = sorted(str(path) for path in (args.out / FIGURES).iterdir())
        say_json({name: str(args.out / path) for name, path in paths.items()} | {"figures": figures})
    else:
        say(f"Report: {args.out / PAGE} (also {MARKDOWN}, {VALUES} and {FIGURES}/)")
