"""`saeforest figure`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from ..errors import InputError
from ..output import say, say_json
from .arguments import parse
from .common import named, positive
from .shared import Device, Force, Json, OneSAE, Run


@dataclass(frozen=True)
class FigureArguments:
    run: Run
    feature: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FEATURE")]
    """Number of a feature with children."""
    kind: Literal["family", "geometry"] = "family"
    """What to draw: the tree of concepts under the feature, or its activations in a plane."""
    out: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    """File to write, .svg, .png or .pdf. Default: FEATURE-KIND.svg in this folder."""
    children: int = 6
    """Number of children to draw in a family, the most frequent ones; half as many below each of them."""
    depth: int = 2
    """Number of generations to draw in a family."""
    force: Force = False
    sae: OneSAE = None
    device: Device = None
    json: Json = False


def figure(argv: Sequence[str]) -> None:
    args = parse(FigureArguments, argv, "figure")
    positive(args, "children", "depth")
    from ..explore.api import Api
    from ..explore.figures import SUFFIXES, draw
    from ..explore.views.nulls import nulls_line
    from ..files import atomic_file
    from ..run_folder import RunFolder

    out = args.out or Path(f"{args.feature}-{args.kind}.svg")
    suffix = out.suffix.removeprefix(".").lower()
    if suffix not in SUFFIXES:
        known = ", ".join(f".{kind}" for kind in SUFFIXES)
        raise InputError(f"--out {out}: expected a name that ends with one of {known}")
    if out.is_dir():
        raise InputError(f"--out {out}: a folder; expected the name of a file")
    if out.exists() and not args.force:
        raise InputError(f"{out}: exists; choose another name, or give --force to replace it")
    run = RunFolder(args.run)
    name = named(run, args.sae)
    api = Api.of_run(run, name, args.device, make_index=True, feature=args.feature)
    explorer = api.explorer
    explorer.labels |= {f: label for f, (label, source) in api.labels.all().items() if source != "auto"}
    image = draw(
        explorer,
        int(args.feature),
        args.kind,
        suffix,
        children=args.children,
        depth=args.depth,
        nulls=nulls_line(run, name),
    )
    with atomic_file(out) as temporary:
        temporary.write_bytes(image)
    if args.json:
        say_json({"file": str(out), "kind": args.kind, "feature": int(args.feature), "bytes": len(image)})
    else:
        say(f"Figure: {out}")
