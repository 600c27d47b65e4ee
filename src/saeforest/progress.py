"""Progress of long work: a live bar with rate and time left on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from .output import note as say_so
from .output import printable, status

_LINE_EVERY_S = 15.0

Advance = Callable[..., None]


def _duration(seconds: float) -> str:
    minutes, s = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{s:02}" if hours else f"{minutes}:{s:02}"


def _rate(done: float, seconds: float, unit: str) -> str:
    return f"{done / max(seconds, 1e-9):,.0f} {unit}/s"


@contextmanager
def progress(description: str, total: int, unit: str = "tokens", before: int = 0) -> Iterator[Advance]:
    """Yields `advance(n, note="")`: `n` more units are done, `note` is shown behind the bar.

    `before`: units that were done before, by a run that is now resumed; they don't count for the rate.
    """
    start = time.monotonic()
    if status.is_terminal:
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=28),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.fields[rate]}", markup=False),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", markup=False),
        )
        with Progress(*columns, console=status, transient=False) as bar:
            task = bar.add_task(printable(description), total=total, completed=before, rate="", note="")

            def advance(n: int, note: str = "") -> None:
                done = bar.tasks[0].completed + n - before
                bar.update(task, advance=n, rate=_rate(done, time.monotonic() - start, unit), note=note)

            yield advance
        return

    done, last, total = 0, start, total - before

    def advance_line(n: int, note: str = "") -> None:
        nonlocal done, last
        done += n
        now = time.monotonic()
        if now - last >= _LINE_EVERY_S:
            last = now
            left = (total - done) * (now - start) / max(done, 1)
            text = f"{description}  {100 * done / max(total, 1):3.0f}%  {_rate(done, now - start, unit)}"
            say_so(f"{text}  {_duration(left)} left  {note}".rstrip())

    yield advance_line
    elapsed = time.monotonic() - start
    say_so(f"{description}  done: {done:,} {unit} in {_duration(elapsed)} ({_rate(done, elapsed, unit)})")
