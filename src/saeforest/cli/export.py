"""`saeforest export`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from ..errors import InputError
from ..output import note, say, say_json
from .arguments import parse
from .common import named
from .shared import Device, Force, Json, OneSAE, Run

# A page of more bytes is slow to open and to send.
_LARGE = 10_000_000


@dataclass(frozen=True)
class ExportArguments:
    format: Annotated[Literal["html"], tyro.conf.Positional]
    """Format to export to: html, the page that `saeforest explore` shows."""
    run: Run
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    """File for one subtree (--root), or else folder for everything, new or empty."""
    root: Annotated[str | None, tyro.conf.arg(metavar="FEATURE")] = None
    """Number of a feature: export it with all features below it and its ancestors as one file."""
    force: Force = False
    sae: OneSAE = None
    device: Device = None
    json: Json = False


def export(argv: Sequence[str]) -> None:
    args = parse(ExportArguments, argv, "export")
    from ..explore.api import Api
    from ..explore.serving.static import check_file, check_folder, export_everything, export_subtree
    from ..run_folder import RunFolder

    if args.root is None:
        if args.out.suffix.lower() in (".html", ".htm"):
            raise InputError(
                f"--out {args.out}: the name of a file; give --root FEATURE to export a subtree into it, or a folder "
                "for everything"
            )
        check_folder(args.out, args.force)
    else:
        check_file(args.out, args.force)
    run = RunFolder(args.run)
    name = named(run, args.sae)
    api = Api.of_run(run, name, args.device, static=True, make_index=True, feature=args.root)
    if args.root is None:
        done = export_everything(api, args.out, force=args.force)
    else:
        done = export_subtree(api, int(args.root), args.out, force=args.force)
    if args.root is not None and done.size > _LARGE:
        note(f"{args.out}: {done.size / 1e6:,.0f} MB; a feature with fewer below it makes a smaller file")
    if args.json:
        where = {"file": str(done.path)} if args.root is not None else {"folder": str(done.path)}
        say_json({**where, "features": done.n_features, "files": done.n_files, "bytes": done.size})
        return
    opened = done.path if args.root is not None else done.path / "index.html"
    say(f"{done.n_features:,} features, {done.size / 1e6:,.1f} MB: open {opened} in a browser")
