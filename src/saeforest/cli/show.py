"""`saeforest show`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro

from ..output import results, say_json
from .arguments import parse
from .common import named, positive
from .shared import Device, Json, OneSAE, Run


@dataclass(frozen=True)
class ShowArguments:
    run: Run
    feature: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="FEATURE")] = None
    """Number of the feature to show. Default: the most telling families."""
    families: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 10
    """Number of families to show."""
    sae: OneSAE = None
    device: Device = None
    json: Json = False


def show(argv: Sequence[str]) -> None:
    args = parse(ShowArguments, argv, "show")
    positive(args, "families")
    from ..explore import open_explorer, show_families, show_feature
    from ..explore.views.nulls import nulls_line
    from ..run_folder import RunFolder

    run = RunFolder(args.run)
    name = named(run, args.sae)
    explorer = open_explorer(run, name, args.device, feature=args.feature)
    feature = None if args.feature is None else int(args.feature)
    if args.json:
        about = {"overview": explorer.overview().to_dict(), "nulls": nulls_line(run, name)}
        if feature is None:
            say_json(about | {"families": [card.to_dict() for card in explorer.families(args.families)]})
        else:
            say_json(about | {"feature": explorer.feature(feature).to_dict()})
    elif feature is None:
        show_families(results(), explorer, args.families, nulls=nulls_line(run, name))
    else:
        show_feature(results(), explorer, feature, nulls=nulls_line(run, name))
