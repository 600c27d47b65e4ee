"""What only a GPU can show: whether the Triton kernels are right there, every system trains as on a CPU, and how fast.

    benchmarks/gpu.sh OUT.json WHEELS

Three parts, each in a process of its own, and one file, which is written anew after each of them: a part that fails or
takes too long costs only itself.

    kernels   tests/triton_cases.py: the Triton kernels against the plain ones
    systems   the golden runs (tests/golden) on this machine's device, against the values of the CPU: the loss of the
              first step to a thousandth, the mean of later losses and FVE to a tenth
    peers     a training step of saeforest, and of those peers that have an environment here, at two sizes

Without a GPU the kernels are interpreted, everything else runs on the CPU, and the steps are small ones: all of it, to
see that it runs, with an hour's time. --quick is a part of that.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import torch
from tests.golden.runs import HERE, RUNS, make_runs, make_world
from tests.golden.values import differences, values_of

from saeforest.errors import InputError
from saeforest.files import write_json

from .peers import environments, machine, plan

ROOT = Path(__file__).resolve().parents[1]
_WIDTHS = ("6144", "24576")
_MINUTES = {"cuda": 8.0, "cpu": 60.0}
_QUICK_KERNELS, _QUICK_RUNS = "adam or gather", ("tree",)

Left = Callable[[], float]
"""Seconds that are left of the whole."""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="what was found, as .json")
    parser.add_argument(
        "--minutes",
        type=float,
        metavar="N",
        help="time for all parts together; by default 8 on a GPU, 60 elsewhere",
    )
    parser.add_argument("--parts", nargs="+", choices=tuple(PARTS), default=list(PARTS), metavar="PART")
    parser.add_argument("--quick", action="store_true", help="a part of everything, to see that it runs")
    options = parser.parse_args(arguments)
    start = time.monotonic()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    minutes = options.minutes or _MINUTES[device]
    found: dict[str, Any] = {"machine": machine.measured(device).describe(), "quick": options.quick}
    for name in options.parts:
        before = time.monotonic()
        try:
            part = PARTS[name](device, options.quick, lambda: 60 * minutes - (time.monotonic() - start))
        except subprocess.TimeoutExpired:
            part = {"error": "took longer than was left"}
        except (RuntimeError, OSError, InputError, KeyError, ValueError) as error:
            part = {"error": str(error)[-4000:]}
        found[name] = {**part, "seconds": round(time.monotonic() - before, 1)}
        write_json(options.out, found, signed=False)
        print(f"{name}: {part.get('error') or part['summary']}", flush=True)
    return int(any("error" in found[name] or found[name]["failed"] for name in options.parts))


def kernels(device: str, quick: bool, left: Left) -> dict[str, Any]:
    """The cases that failed, with what they said."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [
            "-m",
            "pytest",
            "-q",
            "-c",
            os.devnull,
            "--rootdir",
            ".",
            "--noconftest",
            "-p",
            "no:cacheprovider",
        ]
        chosen = ["-k", _QUICK_KERNELS] if quick else []
        said = _python([*command, f"--junitxml={report}", *chosen, "tests/triton_cases.py"], device, left)
        if not report.exists():
            raise RuntimeError(said)
        cases = list(ElementTree.parse(report).getroot().iter("testcase"))
    wrong = {}
    for case in cases:
        flaws = [child for child in case if child.tag in ("failure", "error")]
        if flaws:
            wrong[case.attrib["name"]] = (flaws[0].text or "")[-2000:]
    how = "compiled" if device == "cuda" else "interpreted"
    summary = f"{len(cases) - len(wrong)} of {len(cases)} cases right, {how}"
    return {"summary": summary, "failed": len(wrong) + (not cases), "cases": len(cases), "wrong": wrong}


def systems(device: str, quick: bool, left: Left) -> dict[str, Any]:
    """For every golden run the numbers of both, and what differs."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        world = Path(name) / "world"
        world.mkdir()
        make_world(world, left())
        for run in _QUICK_RUNS if quick else RUNS:
            folder = Path(name) / run
            folder.mkdir()
            make_runs([run], world, folder, device=device, fixed=False, seconds=left())
            for sae in RUNS[run]:
                golden = json.loads((HERE / f"{sae}.json").read_text(encoding="utf-8"))
                values = values_of(folder / run, sae, world)
                found[sae] = {
                    "here": values["numbers"],
                    "golden": golden["numbers"],
                    "differs": differences(golden, values, exact=False),
                }
    failed = [sae for sae, of in found.items() if of["differs"]]
    summary = f"{len(found) - len(failed)} of {len(found)} systems train as on the CPU"
    return {"summary": summary, "failed": len(failed), "saes": found}


def peers(device: str, quick: bool, left: Left) -> dict[str, Any]:
    """The rows of `python -m benchmarks.peers`."""
    suffix = "" if device == "cpu" else f"-{device}"
    here = [
        name
        for name in environments.RECIPES
        if (environments.FOLDER / f"{name}{suffix}" / "made.txt").is_file()
    ]
    libraries = [name for name in plan.SYSTEMS if name == "saeforest" or (name in here and not quick)]
    size = (
        ["--d", "16", "--widths", "256", "512", "--batch", "64"]
        if quick or device == "cpu"
        else ["--d", "576", "--widths", *_WIDTHS]
    )
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "peers.json"
        command = [
            "-m",
            "benchmarks.peers",
            "--out",
            str(rows),
            "--device",
            device,
            "--libraries",
            *libraries,
        ]
        rounds = ["--tasks", "training_step", "--rounds", "2" if quick else "5"]
        said = _python([*command, *size, *rounds], device, left)
        if not rows.exists():
            raise RuntimeError(said)
        found = json.loads(rows.read_text(encoding="utf-8"))
    return {"summary": f"{len(found)} cases of {', '.join(libraries)}", "failed": 0, "rows": found}


PARTS: dict[str, Callable[[str, bool, Left], dict[str, Any]]] = {
    "kernels": kernels,
    "systems": systems,
    "peers": peers,
}


def _python(arguments: list[str], device: str, left: Left) -> str:
    interpreted = {} if device == "cuda" else {"TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=os.environ | interpreted,
        capture_output=True,
        text=True,
        check=False,
        timeout=max(left(), 1.0),
    )
    return done.stdout + done.stderr


if __name__ == "__main__":
    sys.exit(main())
