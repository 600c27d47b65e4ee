"""Workers, and measuring several of them in turns."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import tempfile
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .case import Case
from .environments import ROOT

KEYS = ("library", "version", "system", "task", "device", "dtype", "d", "width", "k", "batch")
KEYS += ("tokens_per_s", "spread", "peak_mb")
#: Seconds a step: below, a turn has several; above, a case gets fewer rounds; above, none.
FAST, SLOW, TOO_SLOW = 1.0, 60.0, 180.0
STEPS_A_TURN, SLOW_ROUNDS = 5, 2
_BUILD_LIMIT, _WARM_UP_LIMIT = 900.0, 3 * TOO_SLOW

Say = Callable[[str], None]


class WorkerFailure(Exception):
    """A worker broke down; the message is one line."""


class Worker:
    """A process that has one case ready. Ends with the `with` block."""

    def __init__(self, case: Case, python: Path, activations: Path, threads: int) -> None:
        self.case = case
        self.processor: list[float] = []
        """Seconds of the latest steps, of all cores together."""
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        # Waiting threads sleep, so that the worker whose turn it is has all cores. In a session of its own, so that
        # Ctrl-C reaches the parent alone, which then ends the workers.
        self._process = subprocess.Popen(
            [str(python), "-m", "benchmarks.peers.worker"],
            cwd=ROOT,
            env=os.environ | {"OMP_WAIT_POLICY": "PASSIVE", "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            encoding="utf-8",
            start_new_session=True,
        )
        request = {"case": asdict(case), "activations": str(activations), "threads": threads}
        try:
            self.version: str = self._ask(request, _BUILD_LIMIT)["version"]
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def steps(self, n: int, limit: float, *, forget: bool = False) -> tuple[list[float], float]:
        """Seconds of `n` steps, and the peak memory so far, in MB; to `forget` begins a new peak."""
        answer = self._ask({"steps": n, "forget": forget}, limit)
        self.processor = answer["processor"]
        return answer["seconds"], answer["peak_mb"]

    def _ask(self, request: dict[str, Any], limit: float) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        timer = threading.Timer(limit, self._process.kill)
        timer.start()
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except OSError:  # it is gone
            line = ""
        finally:
            late = not timer.is_alive()
            timer.cancel()
        if not line:
            raise WorkerFailure(f"no answer in {limit:.0f} s" if late else self._last_words())
        answer = json.loads(line)
        if "error" in answer:
            raise WorkerFailure(answer["error"])
        return answer

    def _last_words(self) -> str:
        code = self._process.wait()
        self._errors.seek(0)
        lines = [line.strip() for line in self._errors if line.strip()]
        return f"ended with code {code}: {lines[-1] if lines else 'no message'}"

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()
        self._errors.close()


@dataclass
class Measured:
    """What came of one case."""

    case: Case
    version: str
    seconds: list[float] = field(default_factory=list)
    peak_mb: float = 0.0

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """The interquartile range of the steps, as a share of their median."""
        low, _, high = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return (high - low) / self.median

    def row(self) -> dict[str, Any]:
        result = {
            "version": self.version,
            "tokens_per_s": round(self.case.batch / self.median, 1),
            "spread": round(self.spread, 4),
            "peak_mb": round(self.peak_mb, 1),
        }
        values = asdict(self.case) | result
        return {key: values[key] for key in KEYS}


def measure(
    cases: Sequence[Case], start: Callable[[Case], Worker], rounds: int, say: Say = print
) -> list[Measured]:
    """All cases at once, taking turns; those that fail or take too long are left out, with a line.

    `start` gives a worker or raises WorkerFailure.
    """
    with ExitStack() as stack:
        running: list[tuple[Worker, Measured, int, int]] = []  # with steps a turn, and rounds
        for case in cases:
            try:
                worker = stack.enter_context(start(case))
                first = worker.steps(1, _WARM_UP_LIMIT)[0][0]
                second = first
                if first <= TOO_SLOW:
                    second = worker.steps(1, _WARM_UP_LIMIT, forget=True)[0][0]
            except WorkerFailure as error:
                say(f"{case.name}: left out: {error}")
                continue
            if second > TOO_SLOW:
                say(f"{case.name}: left out: {second:.0f} s a step, more than {TOO_SLOW:.0f}")
                worker.close()
                continue
            own_rounds = min(rounds, SLOW_ROUNDS) if second > SLOW else rounds
            n = STEPS_A_TURN if second < FAST else 1
            running.append((worker, Measured(case, worker.version), n, own_rounds))
        for turn in range(rounds):
            for entry in list(running):
                worker, result, n, own_rounds = entry
                if turn >= own_rounds:
                    continue
                try:
                    seconds, result.peak_mb = worker.steps(n, limit=_BUILD_LIMIT)
                except WorkerFailure as error:
                    say(f"{result.case.name}: left out: {error}")
                    running.remove(entry)
                    continue
                result.seconds += seconds
    return [result for _, result, _, _ in running]
