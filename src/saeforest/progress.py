"""Progress of long work: a live bar with rate and time left on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rich.cells import cell_len, set_cell_size
from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import Progress, ProgressColumn, Task
from rich.text import Text

from .output import note as say_so
from .output import printable, status

_LINE_EVERY_S = 15.0
# Cells of the bar, and the fewest that a note is worth showing in.
_BAR, _LEAST_NOTE = 28, 8

Advance = Callable[..., None]


def _duration(seconds: float) -> str:
    minutes, s = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{s:02}" if hours else f"{minutes}:{s:02}"


class _Pace:
    """Units per second since the first ones were done: those may have waited for compilation."""

    def __init__(self) -> None:
        self._done = 0
        self._start: float | None = None
        self.rate: float | None = None

    def add(self, n: int, now: float) -> None:
        if self._start is None:
            self._start = now
            return
        self._done += n
        self.rate = self._done / max(now - self._start, 1e-9)


class _Line(ProgressColumn):
    """The whole of a task, in one line of the terminal as it is now."""

    def render(self, task: Task) -> RenderableType:
        left = task.time_remaining
        return _Fitted(
            task.description, task.percentage, task.fields["rate"], left, task.finished, task.fields["note"]
        )


@dataclass(frozen=True)
class _Fitted:
    """What is drawn of a task: in a narrow terminal the note goes first, then the bar, the rate and the time left."""

    description: str
    percentage: float
    rate: str
    seconds_left: float | None
    finished: bool
    note: str

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        percent = f"{self.percentage:3.0f}%"
        left = "" if self.finished or self.seconds_left is None else f"{_duration(self.seconds_left)} left"
        room = options.max_width - cell_len(percent)
        # At least this much of the description is kept.
        name = min(cell_len(self.description), max(room // 2, 0))
        room -= name + 1
        width = {
            "left": cell_len(left),
            "rate": cell_len(self.rate),
            "bar": _BAR,
            "note": cell_len(self.note),
        }
        shown = set()
        for part in ("left", "rate", "bar"):
            if width[part] and width[part] < room:
                shown.add(part)
                room -= width[part] + 1
        if self.note and "bar" in shown and room > _LEAST_NOTE:
            shown.add("note")
            width["note"] = min(width["note"], room - 1)
            room -= width["note"] + 1
        text = Text(_cut(self.description, name + max(room, 0)), no_wrap=True, overflow="crop", end="")
        if "bar" in shown:
            full = round(_BAR * min(self.percentage, 100) / 100)
            done, todo = "#-" if options.ascii_only else "━━"
            text.append(" ").append(done * full, "bar.complete").append(todo * (_BAR - full), "bar.back")
        text.append(f" {percent}", "progress.percentage")
        for part, words in (("rate", self.rate), ("left", left), ("note", self.note)):
            if part in shown:
                text.append(" ").append(_cut(words, width[part]))
        text.truncate(options.max_width, overflow="crop")
        yield text


def _cut(text: str, cells: int) -> str:
    """The text in at most so many cells of the terminal: some signs take two."""
    if cell_len(text) <= cells:
        return text
    return set_cell_size(text, cells - 1).rstrip() + "…" if cells > 1 else ""


@contextmanager
def progress(description: str, total: int, unit: str = "tokens", before: int = 0) -> Iterator[Advance]:
    """Yields `advance(n, note="")`: `n` more units are done, `note` is shown behind the bar.

    `before`: units that were done before, by a run that is now resumed; they don't count for the rate.
    """
    start, pace = time.monotonic(), _Pace()
    if status.is_terminal:
        with Progress(_Line(), console=status, transient=False) as bar:
            task = bar.add_task(printable(description), total=total, completed=before, rate="", note="")

            def advance(n: int, note: str = "") -> None:
                pace.add(n, time.monotonic())
                rate = "" if pace.rate is None else f"{pace.rate:,.0f} {unit}/s"
                bar.update(task, advance=n, rate=rate, note=printable(note))

            yield advance
        return

    done, last, total = 0, start, total - before

    def advance_line(n: int, note: str = "") -> None:
        nonlocal done, last
        done += n
        now = time.monotonic()
        pace.add(n, now)
        if now - last >= _LINE_EVERY_S:
            last = now
            text = f"{description}  {100 * done / max(total, 1):3.0f}%"
            if pace.rate:
                text += f"  {pace.rate:,.0f} {unit}/s  {_duration((total - done) / pace.rate)} left"
            say_so(f"{text}  {note}".rstrip())

    yield advance_line
    elapsed = time.monotonic() - start
    say_so(
        f"{description}  done: {done:,} {unit} in {_duration(elapsed)} ({done / max(elapsed, 1e-9):,.0f} {unit}/s)"
    )
