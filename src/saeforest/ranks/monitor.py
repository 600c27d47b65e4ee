"""Who of the ranks is still there: every rank says so twice a second, and looks for the others.

A process that dies, a machine that is cut off and a process that stands still all look the same: its beats stop. Then
every other rank ends within half a minute, whatever it waits for, and one of them says why.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NoReturn, TypeVar

from .. import output
from ..errors import InputError

T = TypeVar("T")
BEAT = 0.5
#: The environment variable with the seconds without a beat after which a rank is lost.
PATIENCE = "SAEFOREST_RANKS_PATIENCE"
_PATIENCE_S = 30.0
# After an exchange of tensors has failed, somebody is gone, and this is enough to see who.
_SOON_S, _KNOWN_S = 3.0, 15.0
# The first rank saves and speaks; the others wait this long for what it says.
_FIRST_SPEAKS_S = 120.0
# A main thread that computes finds out at its next exchange, of which a step has several. This is longer than any step
# in docs/performance.md, and leaves the first rank as long again to save before the others stop waiting for it.
_LATEST_S = 60.0
# For saving, where the monitor has to do it: 14 GB, a million features with their moments, at 50 MB/s. A disk or a GPU
# may also never answer.
_SAVE_S = 300.0
# For a few short questions to the meeting point, which may be cut off.
_ANSWER_S = 20.0


class RankLost(InputError):
    """Another rank died, or cannot be reached. The message says which, and what was saved."""


class Over(SystemExit):
    """Another rank has said why the run ends; this one ends without a word."""


class Monitor(threading.Thread):
    """Tells the others that this rank is there, and finds out if one of them no longer is."""

    def __init__(self, store: Any, rank: int, size: int) -> None:
        """store: a client of its own, since other threads must not hold it up."""
        super().__init__(name="monitor of ranks", daemon=True)
        self.save: Callable[[], str] | None = None
        """Called once if a rank is lost. Returns what was saved, in words."""
        self._store, self._rank, self._size = store, rank, size
        patience = os.environ.get(PATIENCE, str(_PATIENCE_S))
        try:
            self._patience = float(patience)
        except ValueError:
            raise InputError(f"{PATIENCE}={patience}: expected a number of seconds") from None
        self._beats = 0
        now = time.monotonic()
        self._seen = {other: ("", now) for other in range(size) if other != rank}
        self._heard = now  # when the meeting point last answered
        self._who: dict[int, str] = {}  # empty until all have met
        self._left: set[int] = set()
        self._waits = False  # whether the main thread is inside an exchange
        self._leaving = threading.Event()
        self._ended: dict[str, Any] | None = None
        self._lost: str | None = None
        self._apart = False  # whether the meeting point is out of reach
        self._speaking = threading.Lock()
        self._outcome: InputError | Over | None = None
        self._decided_by = 0  # a thread
        store.set(f"who/{rank}", f"process {os.getpid()} on {socket.gethostname()}")
        store.set(f"alive/{rank}", "0")

    def meet(self, seconds: float) -> None:
        """Wait until every rank is there, then begin to beat.

        Raises InputError if one of them does not come, on the lowest of those that are there; on the others Over.
        """
        keys = [f"alive/{rank}" for rank in range(self._size)]
        until = time.monotonic() + seconds
        # Not the store's own `wait`, inside which Python handles no signals.
        while not self._store.check(keys):
            if self._store.check(["ended"]):
                self._ended = json.loads(self._store.get("ended"))
                self.end()
            if time.monotonic() > until:
                self._miss([rank for rank, key in enumerate(keys) if not self._store.check([key])], seconds)
            time.sleep(BEAT / 5)
        self._begin()

    def _miss(self, missing: list[int], seconds: float) -> None:
        """Raise what `meet` does, unless the last rank has come in this moment."""
        if not missing:
            return
        if any(rank not in missing for rank in range(self._rank)):
            raise Over(2)
        output.silence(False)
        ranks = f"rank{'s' if missing[1:] else ''} {', '.join(map(str, missing[:8]))}{' ...' if missing[8:] else ''}"
        raise InputError(
            f"{ranks} of {self._size} did not come within {seconds:.0f} s; check that all of them were started, and "
            "what ended them"
        )

    def _begin(self) -> None:
        self._who = {other: self._store.get(f"who/{other}").decode() for other in self._seen}
        threading.Thread(target=self._talk, name="beats of ranks", daemon=True).start()
        self.start()

    # -- the threads

    def run(self) -> None:
        last = time.monotonic()
        since = None  # when the run was first seen to be over
        while not self._leaving.wait(BEAT):
            now = time.monotonic()
            if (
                now - last > self._patience / 2
            ):  # this process stood still, which says nothing about the others
                self._forgive(now)
            last = now
            self._judge(self._patience)
            if not self.over:
                continue
            # The main thread ends by itself, unless it is inside an exchange that never returns, or comes to none. On a
            # GPU an exchange returns at once, and what never returns is the next question for a value.
            since = since or now
            if now - since > (_SOON_S + BEAT if self._waits else _LATEST_S):
                self._end_here()

    def _talk(self) -> None:
        """Beat, and listen to the others. A meeting point out of reach holds up this thread alone."""
        while not self._leaving.wait(BEAT):
            self._exchange()

    def _exchange(self) -> None:
        self._beats += 1
        try:
            if not self._leaving.is_set():
                self._store.set(f"alive/{self._rank}", str(self._beats))
            left = set()
            for other, (before, _) in list(self._seen.items()):
                beat = self._store.get(f"alive/{other}").decode()
                if beat != before:
                    self._seen[other] = beat, time.monotonic()
                if beat == "left":
                    left.add(other)
            # A rank that ends all says so before it leaves, and it must be known in this order: whoever waits for one
            # that left without a word takes it that nothing was to be done.
            if self._ended is None and self._store.check(["ended"]):
                self._ended = json.loads(self._store.get("ended"))
            self._left |= left
        except (RuntimeError, OSError):
            return
        self._heard = time.monotonic()

    def _forgive(self, now: float) -> None:
        self._heard = now
        self._seen = {other: (beat, now) for other, (beat, _) in self._seen.items()}

    def _silent(self) -> dict[int, float]:
        """For how many seconds there is no sign of each of the others."""
        now = time.monotonic()
        return {other: now - at for other, (_, at) in self._seen.items() if other not in self._left}

    def _judge(self, patience: float) -> None:
        if self.over:
            return
        unheard, silent = time.monotonic() - self._heard, self._silent()
        if unheard > patience:
            self._apart = True
            self._lost = f"the ranks' meeting point cannot be reached for {unheard:.0f} s"
        elif silent and (age := max(silent.values())) > patience:
            other = max(silent, key=silent.__getitem__)
            who = f"rank {other} of {self._size} ({self._who[other]})"
            self._lost = f"{who} ended or cannot be reached: no sign of it for {age:.0f} s"

    def _end_here(self) -> None:
        """End the process from this thread, because the main thread does not; unless it then does."""
        own: list[InputError | SystemExit] = []

        def end() -> None:
            try:
                self.end()
            except (InputError, SystemExit) as outcome:
                own.append(outcome)

        _within(_SAVE_S, end)
        if self._outcome not in own and self._outcome is not None and self._leaving.wait(_LATEST_S):
            return  # the main thread was about to end
        outcome = self._outcome or self._without_saving()
        if not isinstance(outcome, SystemExit):
            # Printing can take forever too, into a pipe that nobody reads.
            _within(_ANSWER_S, lambda: _say(outcome))
        os._exit(int(outcome.code or 0) if isinstance(outcome, SystemExit) else 2)

    def _without_saving(self) -> InputError | Over:
        """How this rank ends if it cannot save, or cannot even find out whether it should."""
        if self._ended is not None:
            return Over(self._ended["code"]) if self._rank else InputError(self._ended["message"])
        if not self._claims():
            return Over(2)
        output.silence(False)
        return RankLost(f"{self._lost}; saving took more than {_SAVE_S:.0f} s and was given up")

    # -- for the main thread

    @property
    def over(self) -> bool:
        """Whether the run has ended elsewhere, or a rank is lost."""
        return self._ended is not None or self._lost is not None

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Around an exchange of tensors: if that fails because a rank is gone, raises what `end` raises."""
        if self.over:
            self.end()
        self._waits = True
        try:
            yield
        except RuntimeError as error:
            self._waits = False
            self._find_out(error)
            self.end()
        finally:
            self._waits = False

    def wait_for(self, store: Any, key: str) -> str:
        """The value of a key that the first rank sets, however long that takes. Raises Over if it ends without that."""
        pause = 0.001
        while True:
            gone = 0 in self._left
            self._waits = True
            with suppress(RuntimeError, OSError):  # out of reach, which the monitor notices
                if store.check([key]):
                    found = store.get(key).decode()
                    self._waits = False
                    return found
            self._waits = False
            if self.over:
                self.end()
            if gone:  # nothing was to be done
                raise Over(0)
            time.sleep(pause)
            pause = min(2 * pause, 0.2)

    def _find_out(self, error: Exception) -> None:
        """Wait until it is known who is gone."""
        until = time.monotonic() + _KNOWN_S
        while not self.over and time.monotonic() < until:
            time.sleep(BEAT)
            *_, next_longest, longest = (0.0, 0.0, *sorted(self._silent().values()))
            if longest > 2 * next_longest:  # not only a machine that is busy
                self._judge(_SOON_S)
        self._judge(_SOON_S)
        if not self.over:
            self._lost = f"the connection to another rank broke ({_line(error)})"

    def end(self) -> NoReturn:
        """Raise Over if another rank speaks for all; otherwise, on the one that speaks, RankLost or InputError."""
        with self._speaking:
            if self._outcome is None:
                self._outcome, self._decided_by = self._decide(), threading.get_ident()
        if self._decided_by == threading.get_ident():
            raise self._outcome
        if threading.current_thread() is threading.main_thread():
            time.sleep(2 * _ANSWER_S)  # the monitor says its line, and ends the process
        raise Over(2)

    def _decide(self) -> InputError | Over:
        """Save what there is, and find out who says why the run ends."""
        first = self._rank == 0
        if self._ended is None and not first and not self._apart and self._seen_first():
            self._wait_for_first()
        if self._ended is not None:
            return InputError(self._ended["message"]) if first else Over(self._ended["code"])
        saved = self._saved()
        if not self._claims():
            return Over(2)
        output.silence(False)
        return RankLost(f"{self._lost}{'; ' + saved if saved else ''}")

    def _saved(self) -> str:
        """Save what there is. Returns what was saved, in words."""
        try:
            return "" if self.save is None else self.save()
        except OSError as error:
            return f"nothing could be saved: {error.filename}: {os.strerror(error.errno or 0)}"
        except RuntimeError as error:  # for example of a GPU
            return f"nothing could be saved: {_line(error)}"

    def _seen_first(self) -> bool:
        """Whether the first rank was there a moment ago."""
        return time.monotonic() - self._seen[0][1] < 2 * _SOON_S and 0 not in self._left

    def _wait_for_first(self) -> None:
        until = time.monotonic() + _FIRST_SPEAKS_S
        while self._ended is None and time.monotonic() < until and self._seen_first():
            time.sleep(BEAT)

    def _claims(self) -> bool:
        """Whether this rank is the one that says why all end: one of all, or one of each machine that is cut off."""
        if not self._apart:
            claimed = _within(_ANSWER_S, lambda: self._store.add("speaks", 1) == 1)
            if claimed is not None:
                return claimed
        return os.environ.get("LOCAL_RANK", "0") == "0"

    def leave(self, message: str = "", code: int = 0) -> None:
        """Stop beating: this rank ends. With a message, all others end too."""
        self._leaving.set()
        if not self._apart:
            _within(_ANSWER_S, lambda: self._take_leave(message, code))

    def _take_leave(self, message: str, code: int) -> None:
        if code and self._ended is None:
            self._store.set("ended", json.dumps({"message": message, "code": code}))
            if self._rank:  # the launcher ends all when one has failed: let the first say why before that
                until = time.monotonic() + 10
                while time.monotonic() < until and self._first_stays():
                    time.sleep(BEAT)
                time.sleep(BEAT)
        if code or self._who:  # who comes late must not wait for one that has given up
            self._store.set(f"alive/{self._rank}", "left")

    def _first_stays(self) -> bool:
        return self._store.check(["alive/0"]) and self._store.get("alive/0") != b"left"

    def others_left(self, seconds: float) -> None:
        """Wait until all others have ended, for the process that holds the store."""
        if not self._who:  # some never came, and those that did look several times a second
            time.sleep(_SOON_S)
            return
        until = time.monotonic() + seconds
        while self._left != set(self._seen) and time.monotonic() < until:
            self._exchange()
            time.sleep(BEAT)

    def lost_soon(self) -> bool:
        """Whether a rank proves lost within a few seconds: the launcher stops all others then."""
        if self._who:
            until = time.monotonic() + _SOON_S + 2 * BEAT
            while not self.over and time.monotonic() < until:
                time.sleep(BEAT)
                self._judge(_SOON_S)
        return self.over


def _say(error: Exception) -> None:
    output.note(f"saeforest: error: {' '.join(str(error).split())}")
    sys.stderr.flush()


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:120]


def _within(seconds: float, do: Callable[[], T]) -> T | None:
    """What `do()` returns; None if it fails, or takes longer, when it is left behind in its thread."""
    found: list[T] = []

    def tried() -> None:
        with suppress(RuntimeError, OSError):
            found.append(do())

    thread = threading.Thread(target=tried, daemon=True)
    thread.start()
    thread.join(seconds)
    return found[0] if found else None
