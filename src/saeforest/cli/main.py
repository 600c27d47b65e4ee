"""The command line: `saeforest COMMAND ...`. Every command is a file of its own, and a few calls into the library.

A command's file is imported when it is run, and imports language models and their libraries where it uses them: these
take seconds, which `--help` and a typing error should not.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from .. import __version__
from ..errors import InputError, require
from ..output import note, only_json, say, silenced, steady
from ..stopping import Interrupted, interruptible
from .commands import COMMANDS, HELP
from .common import near, say_lines

# The commands that several processes run together, started by torchrun. The processes of `harvest` share only a folder.
_BY_RANKS = ("train", "eval")
_EITHER = " and ".join(_BY_RANKS)
_OPTIONS = {
    "-h, --help, --help-all": "show this; after a command, its main options, or all",
    "--version": "show the version",
    "--print-completion SHELL": "print the completion of bash, zsh, fish or tcsh",
}


def _usage() -> str:
    width = max(map(len, COMMANDS))
    wide = max(map(len, _OPTIONS))
    return "\n".join(
        [
            "usage: saeforest COMMAND [OPTIONS]; to start with: saeforest demo",
            f"saeforest {__version__}: hierarchical sparse autoencoders on language models",
            "",
            *(f"  {name:{width}}  {command.summary}" for name, command in COMMANDS.items()),
            *(f"  {option:{wide}}  {what}" for option, what in _OPTIONS.items()),
            "Exit codes: 0 done; 1 damage found or output lost; 2 error; 128+N signal N",
        ]
    )


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
        if argv[0].partition("=")[0] == "--print-completion":
            from .completion import say_completion

            say_completion(argv)
            return 0
        if argv[0] not in COMMANDS:
            hint = near(argv[0], COMMANDS)
            raise InputError(f"command '{argv[0]}': expected one of {', '.join(COMMANDS)}{hint}")
        with interruptible(), _among_ranks(argv[0]), _as_asked(argv):
            return COMMANDS[argv[0]].load()(argv[1:]) or 0
    except SystemExit as stop:  # help was shown
        return int(stop.code or 0)
    except InputError as error:
        return _fail(str(error))
    except KeyboardInterrupt as stop:
        note()
        note(str(stop) or "stopped")
        return 128 + (stop.signum if isinstance(stop, Interrupted) else signal.SIGINT)
    except OSError as error:
        if error.errno is None:  # raised by a library, for example if it cannot be loaded for lack of memory
            return _fail(_of_memory(error) or str(error) or type(error).__name__)
        return _fail(f"{error.filename or 'writing'}: {os.strerror(error.errno)}")
    except (MemoryError, RuntimeError, ValueError) as error:
        if (line := _of_memory(error)) is None:
            raise
        return _fail(line)


@contextmanager
def _as_asked(argv: Sequence[str]) -> Iterator[None]:
    """Within, a command that is given --json has the standard output for one JSON document alone, which it must print:
    for all commands, so that none can forget it."""
    if "--json" not in argv or silenced() or any(word in HELP for word in argv):
        yield
        return
    with only_json() as documents:
        yield
    require(documents.printed == 1, f"saeforest {argv[0]} --json", "one JSON document on the standard output")


@contextmanager
def _among_ranks(command: str) -> Iterator[None]:
    """Within, this process is one of those that torchrun started, if it did."""
    alone = os.environ.get("WORLD_SIZE", "1") in ("", "1") or "RANK" not in os.environ
    if alone or command == "harvest":
        yield
        return
    if command not in _BY_RANKS:
        if os.environ["RANK"] != "0":
            raise SystemExit(2)
        raise InputError(f"{command}: runs in one process; start it without torchrun, which is for {_EITHER}")
    from ..ranks import joined

    with joined():
        yield


def _of_memory(error: Exception) -> str | None:
    """The line for an error that says that memory ran out; None for any other."""
    from .. import out_of_memory  # which loads PyTorch

    return out_of_memory.explained(error)


def _fail(message: str) -> int:
    note(f"saeforest: error: {' '.join(message.split())}")
    return 2


def main() -> None:
    code = run(sys.argv[1:])
    if code and os.environ.get("WORLD_SIZE", "1") not in ("", "1"):
        os._exit(code)  # threads that wait for a rank that is gone would keep Python from ending
    sys.exit(code)
