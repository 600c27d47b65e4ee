"""`saeforest demo`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..output import say_json
from ..presets import PRESETS
from .arguments import parse
from .common import positive, resumable, say_next
from .shared import Json

# Half the text of `saeforest train demo` and half the passes, for a first impression in some minutes. A training so
# short takes a higher rate: docs/results/tree-options.md#rates.
DEMO_TOKENS = 200_000
DEMO_EPOCHS = 4
DEMO_RATE = 3e-3
DEMO_EVAL_TOKENS = 30_000


@dataclass(frozen=True)
class DemoArguments:
    out: Path = Path("runs/demo")
    """Folder for the run, new or empty."""
    tokens: int = DEMO_TOKENS
    """Number of distinct tokens to train on."""
    epochs: int = DEMO_EPOCHS
    """Number of passes over them. `saeforest train demo` makes 8 over 400,000, which takes longer and explains more."""
    eval_tokens: int = DEMO_EVAL_TOKENS
    """Number of held-out tokens to measure on."""
    json: Json = False


def demo(argv: Sequence[str]) -> None:
    args = parse(DemoArguments, argv, "demo")
    positive(args, "tokens", "epochs", "eval_tokens")
    from ..demo import run_demo
    from ..run_folder import RunFolder

    with resumable(args.out, "the same command"):
        preset = PRESETS["demo"]
        optim = replace(preset.optim, lr=DEMO_RATE)
        config = replace(preset, tokens=args.tokens, epochs=args.epochs, optim=optim)
        done = run_demo(config, args.out, args.eval_tokens)
    run = RunFolder(args.out)
    if args.json:
        say_json(done.to_json())
        return
    done.show()
    say_next(run, run.names()[0])
