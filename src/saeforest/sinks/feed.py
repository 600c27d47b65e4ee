"""A thread that feeds a sink with the lines of a training log."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

from ..output import note
from .sink import Sink, numbers

_PAUSE_S = 10.0
#: How long a run waits for its sinks at the end.
PATIENCE_S = 60.0


class Place(NamedTuple):
    """A line of a log: the `n`-th of its step, from 1. Lines come in this order, so it says how many were before."""

    step: int
    n: int


START = Place(-1, 0)


class Feed:
    """Feeds a sink in the background. A sink that fails is tried again every 10 seconds, and one that hangs is waited
    for only at the end, for a minute at most; what it did not take is in log.jsonl.

    title: what notes call it. sent: the last line that an earlier process sent; lines up to it are left out.
    """

    def __init__(self, title: str, sink: Sink, sent: Place = START) -> None:
        self._title, self._sink = title, sink
        self.sent = sent
        self._at = START
        self._already = sent
        self._lines: deque[tuple[Place, dict[str, float]]] = deque()
        self._changed = threading.Condition()
        self._closed: bool | None = None
        self._failed = False
        self._thread = threading.Thread(target=self._work, name=f"log {title}", daemon=True)
        self._thread.start()

    @property
    def id(self) -> str:
        """The id by which the sink's run is opened again."""
        return self._sink.id

    def put(self, line: dict[str, Any]) -> None:
        """Send a line of the log, soon."""
        step = int(line["step"])
        self._at = Place(step, self._at.n + 1 if step == self._at.step else 1)
        if self._at <= self._already:
            return
        with self._changed:
            self._lines.append((self._at, numbers(line)))
            self._changed.notify()

    def end(self, finished: bool) -> None:
        """Send what waits, and end the sink's run, in the background. finished: whether training came to its end."""
        with self._changed:
            self._closed = finished
            self._changed.notify()

    def wait(self, seconds: float) -> None:
        """Wait until the sink's run has ended, so long at most; a note says what it did not take."""
        self._thread.join(max(seconds, 0))
        if left := len(self._lines):
            note(f"{self._title}: {left:,} lines of the log were not sent; they are in log.jsonl")
        elif self._thread.is_alive():
            note(f"{self._title}: everything was sent, but it does not end")

    # In the thread

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._lines and self._closed is None:
                    self._changed.wait()
                if not self._lines:
                    break
                place, values = self._lines[0]
            if self._tried(lambda p=place, v=values: self._sink.log(p.step, v)):
                with self._changed:
                    self._lines.popleft()
                self.sent = place
            elif self._closed is not None:
                break
            else:
                with self._changed:
                    self._changed.wait_for(lambda: self._closed is not None, _PAUSE_S)
        finished = bool(self._closed) and not self._lines
        self._tried(lambda: self._sink.close(finished))

    def _tried(self, act: Callable[[], None]) -> bool:
        try:
            act()
        except Exception as error:  # whatever a tool may raise
            if not self._failed:
                self._failed = True
                said = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
                note(f"{self._title}: {said[:300]}; training goes on, and the log in log.jsonl is whole")
            return False
        if self._failed:
            self._failed = False
            note(f"{self._title}: works again")
        return True
