"""`saeforest steer`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from ..errors import InputError
from ..output import note, results, say, say_json
from .arguments import parse
from .common import named, positive
from .shared import Device, Force, Json, OneSAE, Run

if TYPE_CHECKING:
    from ..interventions import At, Edit
    from ..interventions.side_by_side import SideBySide
    from ..structure.forest import Forest

_OPERATIONS = ("scale", "set", "add", "clamp", "ablate")
_SLICE = re.compile(r"(\d*):(\d*)")
_WIDEST = 120


@dataclass(frozen=True)
class SteerArguments:
    run: Run
    feature: Annotated[tuple[int, ...], tyro.conf.arg(aliases=["-f"])] = ()
    """Features to change, by number."""
    subtree: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Change all features below them too."""
    siblings: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Change the other children of their parents in their place."""
    layer: int | None = None
    """Change all features of this layer in place of --feature."""
    scale: float | None = None
    """Multiply the values of the features by this number. Where they are silent they stay silent."""
    set: float | None = None
    """Give the features this value at every position."""
    add: float | None = None
    """Add this number to the values of the features at every position."""
    clamp: tuple[float, float] | None = None
    """Keep the values of the features between these two numbers."""
    ablate: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Silence the features, and in a gated SAE all below them."""
    prompt: Annotated[str, tyro.conf.arg(aliases=["-p"])] = ""
    """Text to continue; required unless --export is given."""
    tokens: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 40
    """Number of tokens to generate."""
    at: str = "all"
    """Positions to steer: all, prompt, completion, or a range such as 3:8. The first position and special tokens are
    left alone if they were in training."""
    no_error: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Drop what the SAE does not reconstruct, so that the model reads the reconstruction alone."""
    open: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Let features below a silenced one stay active."""
    temperature: float = 0.0
    """Temperature for sampling. 0 takes the most likely token."""
    seed: int = 0
    """Random seed for sampling."""
    export: Path | None = None
    """File to write in place of text: a steering file of lm-evaluation-harness (.pt)."""
    force: Force = False
    sae: OneSAE = None
    device: Device = None
    json: Json = False


def steer(argv: Sequence[str]) -> None:
    args = parse(SteerArguments, argv, "steer")
    positive(args, "tokens")
    operation = _operation(args)
    at = _positions(args.at)
    if args.export is None and not args.prompt:
        raise InputError("--prompt: expected some text to continue")
    from ..interventions import Where
    from ..interventions.side_by_side import side_by_side
    from ..run_folder import RunFolder
    from ..session import open_reader

    run = RunFolder(args.run)
    name = named(run, args.sae)
    config, sae = run.load(name, args.device)
    edit = _edit(args, operation, sae.forest)
    reader = open_reader(config)
    where = Where(at, reader.exclude_first, reader.exclude_special, reader.max_norm)
    if args.export is not None:
        from ..interop.lm_eval import save_steering

        found = save_steering(
            args.export, reader.lm, sae, edit, prompt=args.prompt, site=config.site, force=args.force
        )
        if args.json:
            say_json({"file": str(args.export), **found})
        else:
            say(f"Steering file: {args.export}, for lm_eval --model steered")
        return
    found = side_by_side(
        reader.lm, sae, [edit], args.prompt, where, n_tokens=args.tokens, error=not args.no_error,
        closed=False if args.open else None, site=config.site, temperature=args.temperature, seed=args.seed,
    )  # fmt: skip
    if args.json:
        about = {"run": str(run), "sae": name, "site": config.site, "edit": edit.to_json()}
        say_json({**about, "at": args.at, "error": not args.no_error, **found.to_json()})
        return
    _show(found)
    if not found.changed and args.at != "completion":
        note(
            "the features are silent on the prompt, so scaling them changes nothing there; --set and --add act anyway"
            if operation in ("scale", "ablate")
            else "no value changed on the prompt"
        )


def _operation(args: SteerArguments) -> str:
    """The one operation that is given."""
    given = [name for name in _OPERATIONS if getattr(args, name) not in (None, False)]
    if len(given) != 1:
        every = ", ".join(f"--{name}" for name in _OPERATIONS)
        raise InputError(f"expected one of {every}" + (f", not {len(given)} of them" if given else ""))
    return given[0]


def _edit(args: SteerArguments, operation: str, forest: Forest) -> Edit:
    from .. import interventions

    features = _features(args, forest)
    if operation == "ablate":
        return interventions.ablate(features)
    value: Any = getattr(args, operation)
    values = value if isinstance(value, tuple) else (value,)
    make = getattr(interventions, "set_to" if operation == "set" else operation)
    return make(features, *values)


def _features(args: SteerArguments, forest: Forest) -> list[int]:
    if (args.layer is None) == (not args.feature):
        raise InputError("expected --feature or --layer" + (", not both" if args.feature else ""))
    if args.layer is not None:
        if args.subtree or args.siblings:
            raise InputError("--layer: all features of a layer; leave out --subtree and --siblings")
        return list(forest.in_layer(args.layer))
    chosen = list(args.feature)
    if args.siblings:
        chosen = [s for f in chosen for s in forest.siblings(f)]
        if not chosen:
            raise InputError(f"--siblings: feature {args.feature[0]} has none")
    return [g for f in chosen for g in forest.subtree(f)] if args.subtree else chosen


def _positions(text: str) -> At:
    if text in ("all", "prompt", "completion"):
        return text
    if not (found := _SLICE.fullmatch(text)) or not any(found.groups()):
        raise InputError(f"--at {text[:100]}: expected all, prompt, completion or a range such as 3:8")
    first, end = (int(number) if number else None for number in found.groups())
    return slice(first, end)


def _show(found: SideBySide) -> None:
    from rich import box
    from rich.table import Table

    console = results()
    texts = Table(box=box.SIMPLE_HEAD, width=min(console.width, _WIDEST), pad_edge=False)
    for title in ("clean", "steered"):
        texts.add_column(title, ratio=1)
    texts.add_row(*("\n".join(text.splitlines()) for text in (found.clean, found.steered)))
    console.print(f"{found.prompt} …")
    console.print(texts)
    moved = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    moved.add_column("next token")
    for title in ("clean", "steered", "change"):
        moved.add_column(title, justify="right")
    for token in found.next:
        row = token.clean, token.steered
        moved.add_row(repr(token.token), *(f"{p:.4f}" for p in row), f"{row[1] - row[0]:+.4f}")
    console.print(moved)
    say(f"KL {found.kl:.4f} nats; values changed at {found.changed} of {found.read} positions of the prompt")
