"""Times saeforest beside its peers, each in an environment of its own, and writes rows, a table and a plot.

.venv/bin/python -m benchmarks.peers --quick --out runs/peers.json
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NoReturn

import torch

from saeforest.errors import InputError

from . import data, machine, plan, report
from .case import Case
from .costs import least_seconds, memory
from .environments import EnvironmentFailure, python_of
from .session import TOO_SLOW, Measured, Worker, measure

_SHARE_OF_MEMORY = 0.8
_LEAST_ROUNDS, _ROUNDS = 2, 5

print_now = partial(print, flush=True)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; --help lists the options")


def parser() -> argparse.ArgumentParser:
    p = _Parser(prog="python -m benchmarks.peers", description=__doc__.splitlines()[0] if __doc__ else None)
    p.add_argument("--out", type=Path, required=True, metavar="FILE", help="rows, as .json; others beside it")
    p.add_argument("--quick", action="store_true", help="one size, top-k SAEs and our tree: minutes")
    p.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    p.add_argument("--activations", type=Path, metavar="FOLDER", help="of `saeforest harvest`, for its width")
    p.add_argument("--libraries", nargs="+", choices=tuple(plan.SYSTEMS), metavar="NAME")
    p.add_argument("--tasks", nargs="+", choices=plan.TASKS, metavar="TASK")
    p.add_argument("--d", nargs="+", type=int, metavar="N", help="widths of activations")
    p.add_argument("--widths", nargs="+", type=int, metavar="N", help="numbers of features")
    p.add_argument("--batch", type=int, metavar="N", help="activations in a step")
    p.add_argument("--rounds", type=int, default=_ROUNDS, metavar="N", help="turns of every case")
    return p


def main(arguments: Sequence[str] | None = None) -> int:
    try:
        return run(parser().parse_args(arguments))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; finished groups are saved", file=sys.stderr)
        return 130


def run(options: argparse.Namespace) -> int:
    check(options)
    groups = plan.planned(
        options.device,
        quick=options.quick,
        native_bf16=machine.native_bf16(options.device),
        widths=options.widths,
        ds=options.d,
        tasks=options.tasks,
        libraries=options.libraries,
        batch=options.batch,
    )
    store = data.opened(options.activations)
    if not report.can_plot():
        print_now("no plot: matplotlib is not installed")
    libraries = {case.library for group in groups for case in group}
    pythons = environments(libraries, options.device)
    limits = machine.measured(options.device)
    sources: dict[str, str] = {}
    results: list[Measured] = []
    with tempfile.TemporaryDirectory() as folder:
        for group in groups:
            wanted = [case for case in group if case.library in pythons and worth_starting(case, limits)]
            wanted.sort(key=memory)  # the fastest, which need least, stay together if not all fit
            if not wanted:
                continue
            print_now(f"{wanted[0].group}")
            free = int(_SHARE_OF_MEMORY * machine.free_bytes(options.device))
            parts, too_large = plan.fitting(wanted, [memory(case) for case in wanted], free)
            for case in too_large:
                print_now(
                    f"{case.name}: left out: needs about {memory(case) / 1e9:.1f} GB, there are {free / 1e9:.1f}"
                )
            if len(parts) > 1:
                print_now(f"not all fit into memory at once: {len(parts)} parts, one after the other")
            d, batch = wanted[0].d, wanted[0].batch
            harvested = store is not None and store.d_in == d
            sources[str(d)] = options.activations.name if harvested else "synthetic"
            file = data.write(Path(folder), d, batch, store)
            for part in parts:
                start = partial(_start, pythons=pythons, file=file, threads=limits.threads)
                done = measure(part, start, options.rounds, print_now)
                results += done
                for result in done:
                    print_now(
                        f"{result.case.name}: {result.row()['tokens_per_s']:,.0f} tokens/s, "
                        f"{len(result.seconds)} steps, spread {result.spread:.1%}"
                    )
                if done:
                    report.write(options.out, results, limits, {"activations": sources})
    asked = "saeforest" in libraries
    return (
        0 if any(result.case.library == "saeforest" for result in results) or (results and not asked) else 1
    )


def check(options: argparse.Namespace) -> None:
    """Raises InputError for options that cannot be."""
    if options.out.suffix != ".json":
        raise InputError(f"--out {options.out}: expected a name that ends in .json")
    if options.out.is_dir() or any(p.is_file() for p in options.out.absolute().parents):
        raise InputError(f"--out {options.out}: cannot be written; choose another")
    smallest = {"widths": 256, "d": 8, "batch": 1, "rounds": _LEAST_ROUNDS}
    for name, least in smallest.items():
        values = getattr(options, name)
        for value in values if isinstance(values, list) else [values]:
            if value is not None and value < least:
                raise InputError(f"--{name} {value}: expected {least} or more")
    if options.device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: this machine has no CUDA device; use --device cpu")


def environments(libraries: set[str], device: str) -> dict[str, Path]:
    """The interpreter of each library that can be had; a line for the others."""
    pythons: dict[str, Path] = {}
    for library in sorted(libraries):
        try:
            pythons[library] = python_of(library, device, print_now)
        except EnvironmentFailure as failure:
            print_now(f"left out: {failure}")
    return pythons


def worth_starting(case: Case, limits: machine.Machine) -> bool:
    least = least_seconds(case, limits.flops_per_s[case.dtype], limits.bytes_per_s)
    if least > TOO_SLOW:
        print_now(
            f"{case.name}, {case.group}: left out: {least:.0f} s a step or more, the limit is {TOO_SLOW:.0f}"
        )
    return least <= TOO_SLOW


def _start(case: Case, *, pythons: dict[str, Path], file: Path, threads: int) -> Worker:
    return Worker(case, pythons[case.library], file, threads)


if __name__ == "__main__":
    # So that a termination ends the workers too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    sys.exit(main())
