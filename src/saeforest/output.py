"""The one place that prints: results on the standard output, everything else on the standard error.

Text that comes from files, names and paths is shown, never obeyed: control characters become visible signs, and
nothing is taken for markup. Output that cannot be written (a reader that went away, a full disk, a closed terminal)
never ends the work: it is dropped, and `lost` remembers that there was some.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import unicodedata
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

UNKNOWN = "\ufffd"
_UNUSUAL = re.compile("[^ -~]")
_MOST = 4_000  # characters of one line
_PIPED = 100  # columns


def printable(text: str) -> str:
    """The same text without line breaks, control sequences and direction overrides; a sign stands for each."""
    return _UNUSUAL.sub(lambda found: _sign(found[0]), text.replace("\r\n", "\n"))


def _sign(c: str) -> str:
    if " " <= c <= "~":
        return c
    match unicodedata.category(c):
        case "Cc" if c == "\n":
            return "↵"
        case "Cc" if c == "\t":
            return "⇥"
        case "Cc" if c < " ":
            return chr(0x2400 + ord(c))  # control pictures: ␛ for escape
        case "Zl" | "Zp":
            return "↵"
        case "Zs":
            return " "
        case "Cc" | "Cf" | "Cs" | "Co" | "Cn":
            return UNKNOWN
        case _:
            return c


def _line(text: str) -> str:
    cut = text if len(text) <= _MOST else f"{text[:_MOST]} … ({len(text):,} characters)"
    return printable(cut)


class _Console(Console):
    """Rich's console for strings that are text and nothing else, wherever in a table or title they stand."""

    def render_str(self, text: str, **options: Any) -> Text:
        lines = "\n".join(map(_line, text.split("\n")))
        return super().render_str(lines, **{**options, "markup": False, "emoji": False})

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        # Text that was already styled is escaped as well, since only its styles are ours.
        for segment in super().render(renderable, options):
            if segment.control or (segment.text.isascii() and segment.text.isprintable()):
                yield segment
            else:
                text = "\n".join(map(printable, segment.text.split("\n")))
                yield Segment(text, segment.style)


status = _Console(stderr=True, highlight=False, markup=False, emoji=False)
"""For progress and notes."""


def results() -> Console:
    """The console for results: as wide as the terminal; into a file or a pipe 100 columns, without colors."""
    _lenient(sys.stdout)
    terminal = sys.stdout is not None and sys.stdout.isatty()
    return _Console(highlight=False, markup=False, emoji=False, width=None if terminal else _PIPED)


_silent = False


def silence(silent: bool = True) -> None:
    """From now on nothing is printed, or everything again: of the processes of one run, the first prints for all."""
    global _silent
    _silent = status.quiet = silent


def silenced() -> bool:
    """Whether nothing is printed."""
    return _silent


def say(text: str = "") -> None:
    """Prints a line of a result."""
    _print(text, sys.stdout)


_documents: list[_Documents] = []


class _Documents:
    """Where JSON documents are printed while nothing else may be, and how many there were."""

    def __init__(self, stream: Any) -> None:
        self.stream, self.printed = stream, 0


@contextmanager
def only_json() -> Iterator[_Documents]:
    """Within, the standard output is left to `say_json`: whatever else is printed, also by other libraries, goes to the
    standard error. Yields what counts the documents."""
    documents = _Documents(sys.stdout)
    _documents.append(documents)
    try:
        with redirect_stdout(sys.stderr):
            yield documents
    finally:
        _documents.pop()


def say_json(result: Any) -> None:
    """Prints a result as one JSON document. Escapes all that is not ASCII, so that it is valid in any encoding."""
    stream = _documents[-1].stream if _documents else sys.stdout
    if _documents:
        _documents[-1].printed += 1
    if stream is not None and not _silent:
        stream.write(json.dumps(result, indent=2, allow_nan=False) + "\n")
        stream.flush()


def say_script(text: str) -> None:
    """Prints a text of this package as it stands: long lines are not cut, and nothing in it comes from elsewhere."""
    if sys.stdout is not None and not _silent:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()


def note(text: str = "") -> None:
    """Prints a line that is no result: what happens, what was left out, what to do."""
    if status.is_terminal:
        status.print(text, soft_wrap=True)  # above a progress bar, should there be one
    else:
        _print(text, sys.stderr)


def _lenient(stream: Any) -> None:
    """A sign that the stream's encoding lacks becomes a question mark instead of an error."""
    if (reconfigure := getattr(stream, "reconfigure", None)) is not None:
        with suppress(OSError, ValueError):  # a stream that is broken or closed
            reconfigure(errors="replace")


def _print(text: str, stream: Any) -> None:
    if stream is not None and not _silent:
        stream.write(_line(text) + "\n")
        stream.flush()


@contextmanager
def _printable_logs() -> Iterator[None]:
    """Within, what other libraries log or warn of is shown and not obeyed: they quote names and values of files."""
    make, show = logging.getLogRecordFactory(), warnings.showwarning

    def record(*args: Any, **options: Any) -> logging.LogRecord:
        made = make(*args, **options)
        with suppress(
            TypeError, ValueError
        ):  # if a message does not fit its values, logging reports that itself
            made.msg, made.args = _line(made.getMessage()), ()
        return made

    def warning(message: Warning | str, category: type[Warning], *place: Any, **options: Any) -> None:
        note(f"{category.__name__}: {message}")

    logging.setLogRecordFactory(record)
    warnings.showwarning = warning
    try:
        yield
    finally:
        logging.setLogRecordFactory(make)
        warnings.showwarning = show


class _Steady:
    """A stream whose writes never raise: after the first that fails, the rest is dropped."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.lost = False
        _lenient(stream)

    def write(self, text: str) -> int:
        if self._stream is not None and not self.lost:
            try:
                self._stream.write(text)
            except (OSError, ValueError):  # ValueError: the stream was closed
                self._give_up()
        return len(text)

    def flush(self) -> None:
        if self._stream is not None and not self.lost:
            try:
                self._stream.flush()
            except (OSError, ValueError):
                self._give_up()

    def isatty(self) -> bool:
        return self._stream is not None and not self._stream.closed and self._stream.isatty()

    def _give_up(self) -> None:
        self.lost = True
        # What is still in the buffers must go somewhere when Python ends, or that fails in turn.
        with suppress(OSError, ValueError, AttributeError):
            assert self._stream is not None
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        if self.__dict__.get("_stream") is None:
            raise AttributeError(name)
        return getattr(self._stream, name)


class Lost:
    """Whether any output could not be written."""

    def __init__(self, streams: tuple[_Steady, ...]) -> None:
        self._streams = streams

    def __bool__(self) -> bool:
        return any(stream.lost for stream in self._streams)


@contextmanager
def steady() -> Iterator[Lost]:
    """Within, writing to the standard streams never raises; yields what tells whether something was lost.

    Streams that were closed from the start (`>&-`) lose nothing: nobody wanted to read them.
    """
    before = sys.stdout, sys.stderr
    out, err = _Steady(sys.stdout), _Steady(sys.stderr)
    sys.stdout, sys.stderr = out, err  # pyright: ignore[reportAttributeAccessIssue]
    try:
        with _printable_logs():
            yield Lost((out, err))
    finally:
        out.flush()
        err.flush()
        sys.stdout, sys.stderr = before
