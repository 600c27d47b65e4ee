"""Signals that ask a process to stop: Ctrl-C, the end of a terminal session, or a scheduler's warning."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from .output import silenced

#: SIGUSR1 is the signal that Slurm is usually configured to send before it ends a job.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


# A terminal sends Ctrl-C to torchrun and to its processes, and torchrun passes it on: this soon, it is the same one.
_REPEATED_S = 5.0


def _launched() -> bool:
    return os.environ.get("WORLD_SIZE", "1") not in ("", "1")


class Interrupted(KeyboardInterrupt):
    """A signal stopped the work. The message says what was kept and how to go on; `signum` is the signal."""

    def __init__(self, message: str = "", signum: int = signal.SIGINT) -> None:
        super().__init__(message)
        self.signum = signum


class Stop:
    """Calling it tells whether a signal has asked to stop."""

    signum: int | None = None
    message: str | None = None

    def at_once(self, message: str) -> None:
        """All is saved: from now on a signal raises Interrupted at once, as one does now that came before.

        message: says what was kept and how to go on.
        """
        self.message = message
        if self():
            raise self.interrupted(message)

    def __call__(self) -> bool:
        return self.signum is not None

    def interrupted(self, message: str) -> Interrupted:
        """The exception to raise after stopping; the message says what was kept."""
        return Interrupted(message, self.signum or signal.SIGINT)


#: A `Stop` that never asks to stop.
NEVER = Stop()


@contextmanager
def stopping(what: str) -> Iterator[Stop]:
    """Inside the `with` block, a signal only sets the `Stop` that this yields; a second one raises Interrupted at once,
    as any does after `Stop.at_once`.

    what: what is saved before stopping, for the message.

    Signals that were ignored before (by `nohup`) stay ignored. Outside the main thread, signals are left to the caller.
    """
    stop = Stop()
    first = 0.0

    def handle(signum: int, frame: FrameType | None) -> None:
        nonlocal first
        if stop() and _launched() and time.monotonic() - first < _REPEATED_S:
            return
        first = time.monotonic()
        if stop() or stop.message is not None:
            raise Interrupted(stop.message or "stopped at once", signum)
        stop.signum = signum
        if silenced():
            return
        with suppress(OSError):  # not print, because the signal may arrive in the middle of one
            os.write(2, f"\nfinishing this step and saving {what}; again to stop at once\n".encode())

    with _handling(handle):
        yield stop


@contextmanager
def interruptible() -> Iterator[None]:
    """Inside the `with` block, signals that ask to stop raise Interrupted, so that no file is left half-written."""

    def handle(signum: int, frame: FrameType | None) -> None:
        raise Interrupted("", signum)

    with _handling(handle):
        yield


@contextmanager
def _handling(handle: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    before = {}
    with suppress(ValueError):  # not in the main thread
        for signum in SIGNALS:
            if signal.getsignal(signum) is not signal.SIG_IGN:
                before[signum] = signal.signal(signum, handle)
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
