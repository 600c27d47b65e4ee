"""`saeforest show`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from ..errors import InputError
from ..output import note, results, say_json
from .arguments import parse
from .common import named, positive
from .shared import Device, Json, OneSAE, Run

_MOST_DIGITS = 20


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
    from ..explore import Explorer, Index, index_run, show_families, show_feature
    from ..explore.nulls import nulls_line
    from ..kept_forest import forest_of
    from ..lm import load_tokenizer
    from ..run_folder import RunFolder

    run = RunFolder(args.run)
    name = named(run, args.sae)
    config, sae = run.load(name, args.device)
    folder = run.index(name)
    forest, origin = forest_of(sae, run.forest(name))
    feature = None if args.feature is None else _feature(args.feature, sae.d_sae, args.run)
    if folder.exists():
        found = Index.load(folder, sae, forest)
    else:
        note(f"{args.run} has no index yet; making it, once")
        found = index_run(run, sae=name, device=args.device)
    explorer = Explorer(found, forest, load_tokenizer(config.model), origin=origin)
    if args.json:
        about = {"overview": explorer.overview().to_dict()}
        if feature is None:
            say_json(about | {"families": [card.to_dict() for card in explorer.families(args.families)]})
        else:
            say_json(about | {"feature": explorer.feature(feature).to_dict()})
    elif feature is None:
        show_families(results(), explorer, args.families, nulls=nulls_line(run, name))
    else:
        show_feature(results(), explorer, feature, nulls=nulls_line(run, name))


def _feature(text: str, d_sae: int, run: Path) -> int:
    if text.isdecimal() and len(text) <= _MOST_DIGITS and int(text) < d_sae:
        return int(text)
    raise InputError(f"feature {text[:_MOST_DIGITS]}: expected 0 to {d_sae - 1}, the features of {run}")
