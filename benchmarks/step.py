"""What a training step costs as the dictionary grows: processor time and peak memory of a step.

    python -m benchmarks.step [--widths 24576 98304 393216 1048576] [--steps 5] [--peers] --out FILE

A Tree SAE of four layers in which Adam updates all rows, or the active ones; with `--peers` sparsify's TopK too, in an
environment of its own. Every case runs in a process of its own, one after the other, the small ones first. The first
two steps are not counted: they compile, and allocate the moments. All multiply in bfloat16 where the processor does,
elsewhere in float32. Times are seconds of the processor, all cores together, which other work on the machine changes
less than it changes the clock.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.peers import data, machine
from benchmarks.peers.case import Case
from benchmarks.peers.costs import memory
from benchmarks.peers.environments import EnvironmentFailure, python_of
from benchmarks.peers.plan import BATCH, K, tree_shape
from benchmarks.peers.session import Worker, WorkerFailure

_WARM_UP, _LIMIT = 2, 1800.0
# Bytes that a case may take beyond what it holds between steps, while it is built and in a step.
_SPARE = 3 << 30
TREES = (
    "tree",
    "tree, active rows",
    "tree, active rows, state in bfloat16",
    "tree, active rows, state in 8 bits",
    "tree, active rows, state in 8 bits, weights in bfloat16",
)
_PEER = "eai-sparsify"
# Of all that is resident between steps: weights, gradients and moments, in numbers of a weight's size.
_NUMBERS = dict(zip(TREES, (4.0, 3.0, 2.0, 1.5, 1.0), strict=True))


def case_of(library: str, system: str, width: int, d: int, batch: int) -> Case:
    sizes, k = ((width,), (K,)) if system == "topk" else tree_shape(width)
    dtype = "bfloat16" if machine.native_bf16("cpu") else "float32"
    return Case(library, system, "training_step", "cpu", dtype, d, width, K, batch, sizes, k)


def needed(case: Case) -> int:
    """Bytes that a case holds at least."""
    if case.system not in _NUMBERS:
        return memory(case)
    return int(_NUMBERS[case.system] * 2 * case.width * case.d * 4)


def measured(case: Case, python: Path, file: Path, steps: int, threads: int) -> dict[str, Any]:
    with Worker(case, python, file, threads) as worker:
        worker.steps(_WARM_UP, _LIMIT, forget=True)
        wall, peak = worker.steps(steps, _LIMIT)
        seconds = worker.processor
    low, middle, high = statistics.quantiles(seconds, n=4, method="inclusive")
    return {
        "library": case.library,
        "system": case.system,
        "features": case.width,
        "dtype": case.dtype,
        "processor_ms": round(1e3 * middle, 1),
        "quartiles_ms": [round(1e3 * low, 1), round(1e3 * high, 1)],
        "clock_ms": round(1e3 * statistics.median(wall), 1),
        "peak_mb": round(peak),
        "steps": steps,
        "load": round(os.getloadavg()[0], 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="A training step as the dictionary grows.")
    parser.add_argument("--widths", type=int, nargs="+", default=[24_576, 98_304, 393_216, 1_048_576])
    parser.add_argument("--systems", nargs="+", choices=TREES, default=TREES)
    parser.add_argument("--d", type=int, default=576)
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--peers", action="store_true", help="sparsify's TopK beside it")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    systems = [("saeforest", system) for system in args.systems]
    pythons = {"saeforest": Path(sys.executable)}
    if args.peers:
        try:
            pythons[_PEER] = python_of(_PEER, "cpu")
            systems.append((_PEER, "topk"))
        except EnvironmentFailure as failure:
            print(f"left out: {failure}")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        file = data.write(Path(folder), args.d, args.batch, None)
        for width in args.widths:
            for library, system in systems:
                case = case_of(library, system, width, args.d, args.batch)
                free = machine.free_bytes("cpu")
                if (need := needed(case) + _SPARE) > free:
                    print(f"{width:,} {system}: left out: needs {need / 1e9:.1f} GB of {free / 1e9:.1f}")
                    continue
                try:
                    rows.append(measured(case, pythons[library], file, args.steps, args.threads))
                except WorkerFailure as error:
                    print(f"{width:,} {system}: left out: {error}", flush=True)
                    continue
                print(rows[-1], flush=True)
                args.out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
