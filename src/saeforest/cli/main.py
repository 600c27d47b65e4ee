"""The command line: `saeforest COMMAND ...`. Every command is a file of its own, and a few calls into the library.

Commands import the library where they use it: language models and their libraries take seconds that `--help` and a
typing error should not.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence

from .. import __version__, out_of_memory
from ..errors import InputError
from ..output import note, say, steady
from ..stopping import Interrupted, interruptible
from .common import doc, near, say_lines
from .compare import compare
from .demo import demo
from .eval import evaluate
from .harvest import harvest
from .index import index
from .infer import infer
from .show import show
from .synthetic import synthetic
from .train import train
from .verify import verify

COMMANDS: dict[str, Callable[[Sequence[str]], int | None]] = {
    "demo": demo,
    "train": train,
    "eval": evaluate,
    "compare": compare,
    "index": index,
    "infer": infer,
    "show": show,
    "harvest": harvest,
    "verify": verify,
    "synthetic": synthetic,
}


def _usage() -> str:
    lines = [f"saeforest {__version__}: hierarchical sparse autoencoders on language models", ""]
    lines += [f"  saeforest {name:8} {doc(f).splitlines()[0]}" for name, f in COMMANDS.items()]
    return "\n".join([*lines, "", "  saeforest COMMAND --help lists a command's options"])


def run(argv: Sequence[str]) -> int:
    """Runs a command line; returns its exit status.

    0: done; 1: done, but some of the output could not be written, or `verify` found damage; 2: a user's error; 128 + N
    after signal N, which is 130 after Ctrl-C.
    """
    with steady() as lost:
        code = _run(argv)
        sys.stdout.flush()
    return code or int(bool(lost))


def _run(argv: Sequence[str]) -> int:
    if not argv or argv[0] in ("-h", "--help", "help"):
        say_lines(_usage())
        return 0 if argv else 2
    if argv[0] == "--version":
        say(__version__)
        return 0
    try:
        if argv[0] not in COMMANDS:
            hint = near(argv[0], COMMANDS)
            raise InputError(f"command '{argv[0]}': expected one of {', '.join(COMMANDS)}{hint}")
        with interruptible():
            return COMMANDS[argv[0]](argv[1:]) or 0
    except InputError as error:
        return _fail(str(error))
    except KeyboardInterrupt as stop:
        note()
        note(str(stop) or "stopped")
        return 128 + (stop.signum if isinstance(stop, Interrupted) else signal.SIGINT)
    except OSError as error:
        if error.errno is None:  # of a library, such as one that cannot be loaded for want of memory
            return _fail(out_of_memory.explained(error) or str(error) or type(error).__name__)
        return _fail(f"{error.filename or 'writing'}: {os.strerror(error.errno)}")
    except (MemoryError, RuntimeError, ValueError) as error:
        if (line := out_of_memory.explained(error)) is None:
            raise
        return _fail(line)


def _fail(message: str) -> int:
    note(f"saeforest: error: {' '.join(message.split())}")
    return 2


def main() -> None:
    sys.exit(run(sys.argv[1:]))
