"""Runs in the environment of one library: builds a case, then does steps when asked to and sleeps otherwise.

Requests and answers are lines of JSON on stdin and stdout. Whatever else is printed goes to stderr.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import resource
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .case import Case

Work = Callable[[Tensor], object]


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print, even from C, is not an answer

    def answer(message: dict[str, Any]) -> None:
        answers.write(json.dumps(message) + "\n")
        answers.flush()

    try:
        serve((json.loads(line) for line in sys.stdin), answer)
    except Exception as error:
        # Where there are no words, the line that failed.
        words = str(error).strip() or traceback.extract_tb(error.__traceback__)[-1].line or ""
        answer({"error": f"{type(error).__name__}: {words.splitlines()[0]}"})
        raise


def serve(requests: Iterator[dict[str, Any]], answer: Callable[[dict[str, Any]], None]) -> None:
    """The first request gives the case, the others ask for steps."""
    request = next(requests, None)
    if request is None:
        return
    case, path = Case.from_json(request["case"]), Path(request["activations"])
    torch.set_num_threads(request["threads"])
    torch.manual_seed(0)
    work: Work = driver(case.library).prepare(case)
    answer({"version": importlib.metadata.version(case.library)})
    n_done = 0
    for request in requests:
        taken = [step(case, work, batch_of(path, n_done + i, case)) for i in range(request["steps"])]
        n_done += len(taken)
        seconds, processor = ([each[i] for each in taken] for i in (0, 1))
        answer({"seconds": seconds, "processor": processor, "peak_mb": peak_mb(case.device)})
        if request["forget"]:
            forget_peak(case.device)


def driver(library: str) -> Any:
    return importlib.import_module(f"{__package__}.drivers.run_{library.replace('-', '_')}")


def batch_of(path: Path, index: int, case: Case) -> Tensor:
    # Opened anew every time: pages of a file that stays mapped would count as the library's memory.
    rows = np.load(path, mmap_mode="r")
    start = index % (len(rows) // case.batch) * case.batch
    return torch.from_numpy(np.array(rows[start : start + case.batch])).to(case.device)


def step(case: Case, work: Work, x: Tensor) -> tuple[float, float]:
    """The seconds of one step on the clock, and those of all cores together."""
    synchronize(case.device)
    start, used = time.perf_counter(), time.process_time()
    work(x)
    synchronize(case.device)
    return time.perf_counter() - start, time.process_time() - used


def synchronize(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def peak_mb(device: str) -> float:
    """The most memory held since `forget_peak`."""
    if device != "cpu":
        return torch.cuda.max_memory_allocated() / 2**20
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return int(status.partition("VmHWM:")[2].split()[0]) / 2**10
    except (OSError, ValueError, IndexError):  # not Linux: since the process began
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def forget_peak(device: str) -> None:
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        return
    # Elsewhere than on Linux, or where it is not allowed, what building took counts as well.
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


if __name__ == "__main__":
    main()
