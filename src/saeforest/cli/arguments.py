"""How the arguments of a command are read, and the one line that says what is wrong with them."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from typing import Any, TypeVar

import tyro

from ..errors import InputError
from .commands import COMMANDS
from .common import near
from .help import asked, show_help

T = TypeVar("T")
# As wide as no message is: tyro breaks its lines where the terminal ends.
_WIDE = "10000"
_LONGEST = 200
_WORDS = {"INT": "a whole number", "FLOAT": "a number", "STR": "text", "PATH": "a path", "None": "None"}
_SEVERAL = {"INT": "whole numbers", "FLOAT": "numbers", "STR": "words", "PATH": "paths"}


def parse(
    args: type[T],
    argv: Sequence[str],
    command: str,
    default: Any = None,
    never_shown: frozenset[str] = frozenset(),
) -> T:
    """The arguments of a command. Where help is asked for, prints it and raises SystemExit.

    never_shown: options that help leaves out (see `Help`).

    Raises InputError, one line that names the option, where the arguments are wrong.
    """
    about = COMMANDS[command]
    if asked(argv):
        show_help(args, argv, command, about, default, never_shown)
    extra = {} if default is None else {"default": default}
    told = io.StringIO()
    try:
        with redirect_stderr(told), _one_line_each():
            return tyro.cli(
                args,
                args=list(argv),
                prog=f"saeforest {command}",
                # Help is ours: tyro would read the source files of all configurations for its own.
                config=(tyro.conf.AvoidSubcommands, tyro.conf.HelptextFromCommentsOff),
                **extra,
            )
    except SystemExit as stop:
        if (error := _of_ours(stop)) is not None:
            raise error from None
        raise InputError(f"{explained(told.getvalue(), argv)} (see `saeforest {command} --help`)") from None


def _of_ours(error: BaseException) -> InputError | None:
    """The InputError of a configuration that does not hold: tyro makes it a box, as it does any ValueError."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, InputError):
            return cause
        cause = cause.__cause__ or cause.__context__
    return None


def taken(argv: Sequence[str], option: str) -> tuple[str | None, list[str]]:
    """The value that is given to an option, None where the option is not there, and the other arguments.

    For options that decide which others there are. Of several values the last holds. Raises InputError where one is
    missing.
    """
    value, rest = None, []
    left = list(argv)
    while left:
        word = left.pop(0)
        if word.startswith(f"{option}="):
            value = word.removeprefix(f"{option}=")
        elif word == option:
            value = left.pop(0) if left and not left[0].startswith("--") else ""
        else:
            rest.append(word)
        if value == "":
            raise InputError(f"{option}: expected a value behind it")
    return value, rest


@contextmanager
def _one_line_each() -> Iterator[None]:
    """Within, a message is on one line, however narrow the terminal is."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = _WIDE
    try:
        yield
    finally:
        if before is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = before


def explained(box: str, argv: Sequence[str]) -> str:
    """The one line that says what is wrong: the option, what was given to it, and what is expected.

    tyro draws a box: a title, the message, and help, of which one line names the option and its kind of value.
    """
    rows = [row.strip("│| ") for row in box.splitlines() if any(map(str.isalnum, row))]
    said, *lines = rows[1:] or [box]
    if found := re.match(r"invalid choice '(.*)' for argument '(\S+)'\. Expected one of \((.*)\)", said):
        given, option, choices = found.groups()
        names = re.findall(r"'([^']*)'", choices)
        return f"{option} {_cut(given)}: expected one of {', '.join(names)}"
    if found := re.match(r"Missing value for argument '(\S+)'", said):
        return f"{found[1]}: expected a value behind it"
    if found := re.match(r"Error parsing (\S+): ", said):
        names = found[1].split("/")
        return f"{names[-1]} {_given(names, argv)}: expected {_kind_of_value(names[-1], lines)}"
    if said.startswith("Unrecognized options: "):
        return _unknown(said.removeprefix("Unrecognized options: ").split(", ")[0], lines, argv)
    if said.startswith("Missing from "):
        return f"expected {lines[0]}"
    return said


def _unknown(word: str, lines: list[str], argv: Sequence[str]) -> str:
    """What is wrong with a word that is no option, or belongs to none."""
    if word.startswith("-"):
        options = [line.split(" ")[0].rstrip(",") for line in lines if line.startswith("--")]
        return f"{_cut(word)}: no such option{near(word, options)}"
    return stray(word, argv)


def stray(word: str, argv: Sequence[str]) -> str:
    """What is wrong where a word stands that belongs to no option."""
    before = [w.partition("=")[0] for w in argv[: _place(word, argv)] if w.startswith("--")]
    behind = f"{before[-1]} {_given(before[-1:], argv)}: " if before else ""
    return f"{behind}expected an option, not '{_cut(word)}'"


def _place(word: str, argv: Sequence[str]) -> int:
    """Where a word that belongs to no option is: it may be joined to one with an equals sign."""
    return next(
        (i + (w != word) for i, w in enumerate(argv) if w == word or w.endswith(f"={word}")), len(argv)
    )


def _given(names: Sequence[str], argv: Sequence[str]) -> str:
    """What follows an option, the last time it is there."""
    words: list[str] = []
    inside = False
    for word in argv:
        name, equals, value = word.partition("=")
        if name.replace("_", "-") in names:
            inside, words = True, [value] if equals else []
        elif name.startswith("--"):
            inside = False
        elif inside:
            words.append(word)
    return _cut(" ".join(words))


def _kind_of_value(option: str, lines: list[str]) -> str:
    """What an option takes, in words: tyro writes `{None}|FLOAT`, `[INT [INT ...]]`, `{auto,float32}` behind it."""
    written = next(
        (found[1] for line in lines if (found := re.search(rf"{re.escape(option)} (.*)", line))), ""
    )
    kinds = []
    for kind in written.split("|"):
        several = re.search(r"\[(\w+) \[", kind)
        names = kind.strip("{}").split(",")
        kinds.append(
            _SEVERAL.get(several[1], several[1])
            if several
            else ", ".join(_WORDS.get(name, name) for name in names)
        )
    return " or ".join(kinds) if written else "another value"


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}… ({len(text):,} characters)"
