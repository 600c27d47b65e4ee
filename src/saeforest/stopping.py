"""Signals that ask a process to stop: Ctrl-C, an end of the session, a scheduler's warning."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

#: SIGUSR1 is what Slurm is usually told to send before it ends a job.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


class Interrupted(KeyboardInterrupt):
    """A signal stopped the work. The message says what was kept and how to go on; `signum` is the signal."""

    def __init__(self, message: str = "", signum: int = signal.SIGINT) -> None:
        super().__init__(message)
        self.signum = signum


class Stop:
    """Says whether a signal has asked to stop."""

    signum: int | None = None

    def __call__(self) -> bool:
        return self.signum is not None

    def interrupted(self, message: str) -> Interrupted:
        return Interrupted(message, self.signum or signal.SIGINT)


#: Nobody asks to stop.
NEVER = Stop()


@contextmanager
def stopping(what: str) -> Iterator[Stop]:
    """Yields what says whether to stop; the second signal stops at once. `what` is to be saved, for the message.

    Signals that were ignored before (`nohup`) stay ignored; outside the main thread signals are the caller's.
    """
    stop = Stop()

    def handle(signum: int, frame: FrameType | None) -> None:
        if stop():
            raise Interrupted("stopped at once", signum)
        stop.signum = signum
        with suppress(OSError):  # Not print: the signal may come in the middle of one.
            os.write(2, f"\nfinishing this step and saving {what}; again to stop at once\n".encode())

    with _handling(handle):
        yield stop


@contextmanager
def interruptible() -> Iterator[None]:
    """Within, every signal that asks to stop raises Interrupted, so that nothing is left half-written."""

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
