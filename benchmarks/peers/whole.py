"""Whole runs: every library trains on the same activations by its own loop, with its own auxiliary loss.

    .venv/bin/python -m benchmarks.peers.whole STORE --width 6144 --steps 200 --batch 2048 --out runs/whole.json

One after another, each from its first step to its last; what is explained of 8,192 other activations is measured a few
times on the way, while the clocks rest. Activations are scaled to a mean norm of sqrt(d), in the order in which
saeforest would read the store. Learning rates are each library's own unless given; they rise in the first twentieth of
`--steps` and then stay, and a feature is dead after a fifth of these without firing, since libraries' defaults exceed
such a run.

`--longer` gives saeforest more steps than the others, on further activations, so that what it explains after the time
that another library took is known. For each other library it is then said when saeforest had explained as much as that
library did at its end, on a straight line between two measurements, as a share of that library's time.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from saeforest.activations.reader import concatenated
from saeforest.activations.sources import open_store
from saeforest.errors import InputError

from . import machine
from .case import Case
from .environments import ROOT, EnvironmentFailure, python_of
from .plan import K, tree_shape

#: What is trained, and in which type it multiplies where the processor has bfloat16; elsewhere in float32.
RUNS = (
    ("saeforest", "tree", "bfloat16"),
    ("saeforest", "topk", "bfloat16"),
    ("saeforest", "topk, activations as they are", "bfloat16"),
    ("eai-sparsify", "topk", "bfloat16"),
    ("sae-lens", "topk", "bfloat16"),
    ("dictionary-learning", "topk", "float32"),
    ("overcomplete", "topk", "float32"),
)
_OTHERS = 8_192
_WARMUP, _DEAD = 20, 5


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Whole runs of several libraries on the same activations.")
    parser.add_argument("store", type=Path, help="of `saeforest harvest`")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE")
    parser.add_argument("--libraries", nargs="+", choices=sorted({run[0] for run in RUNS}), metavar="NAME")
    parser.add_argument("--systems", nargs="+", choices=sorted({run[1] for run in RUNS}), metavar="NAME")
    for name, default in (("width", 6_144), ("steps", 200), ("batch", 2_048), ("looks", 4), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--lr", type=float, help="learning rate of all; by default each library's own")
    parser.add_argument(
        "--longer", type=float, default=1.0, help="saeforest's steps, as a multiple of the others'"
    )
    options = parser.parse_args(arguments)
    wanted = options.libraries, options.systems
    runs = [
        run for run in RUNS if all(of is None or name in of for name, of in zip(run, wanted, strict=False))
    ]
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        d = write(options.store, Path(folder), steps_of("saeforest", options) * options.batch)
        for library, system, preferred in runs:
            dtype = preferred if machine.native_bf16("cpu") else "float32"
            sizes, k = tree_shape(options.width) if system == "tree" else ((options.width,), (K,))
            case = Case(library, system, "run", "cpu", dtype, d, options.width, K, options.batch, sizes, k)
            try:
                done = trained(case, Path(folder), options)
            except (EnvironmentFailure, RuntimeError) as failure:
                print(f"{case.name}: left out: {failure}", flush=True)
                continue
            steps = steps_of(library, options)
            rows.append({**asdict(case), **done, "steps": steps, "lr": options.lr})
            last = done["looks"][-1]
            print(
                f"{case.name}: FVE {last['fve']:.4f} after {last['clock_s']:.0f} s, {last['processor_s']:.0f} s of "
                f"the processor ({steps * options.batch / last['processor_s']:,.0f} tokens/s of it)",
                flush=True,
            )
            about = {"cpu": machine.cpu_name(), "threads": options.threads, "store": options.store.name}
            found = {"about": about, "runs": rows, "reached": reached(rows)}
            options.out.write_text(json.dumps(found, indent=1) + "\n")
    for entry in reached(rows):
        print(json.dumps(entry))
    return 0 if len(rows) == len(runs) else 1


def steps_of(library: str, options: argparse.Namespace) -> int:
    return round(options.steps * options.longer) if library == "saeforest" else options.steps


def reached(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """When each run of saeforest had explained what another library did at its end, as shares of that one's times."""
    ours = [row for row in rows if row["library"] == "saeforest"]
    found: list[dict[str, Any]] = []
    for peer in (row for row in rows if row["library"] != "saeforest"):
        last = peer["looks"][-1]
        for own in ours:
            at = {name: time_of(own["looks"], last["fve"], name) for name in ("processor_s", "clock_s")}
            shares = {name: None if s is None else round(s / last[name], 3) for name, s in at.items()}
            found.append({"fve": last["fve"], "of": peer["library"], "by": own["system"], **shares})
    return found


def time_of(looks: Sequence[dict[str, Any]], fve: float, name: str) -> float | None:
    """The time at which a run first explains so much, on a straight line between two looks; None if it never does."""
    before: dict[str, Any] | None = None
    for look in looks:
        if look["fve"] >= fve:
            if before is None:
                return look[name]
            share = (fve - before["fve"]) / (look["fve"] - before["fve"])
            return before[name] + share * (look[name] - before[name])
        before = look
    return None


def write(store: Path, folder: Path, n: int) -> int:
    """The activations to train on and those to measure on, as files of float32. Returns their width."""
    opened = open_store(store)
    blocks, there = [], 0
    for index in range(opened.n_blocks):
        if there < n + _OTHERS:
            blocks.append(opened.block(0, index))
            there += len(blocks[-1])
    if there < n + _OTHERS:
        raise InputError(f"{store}: {there:,} activations, but {n + _OTHERS:,} are needed; give fewer steps")
    x = concatenated(blocks).x[: n + _OTHERS].float()
    x *= x.shape[1] ** 0.5 / x.norm(dim=1).mean()
    np.save(folder / "rows.npy", x[:n].numpy())
    np.save(folder / "others.npy", x[n:].numpy())
    return x.shape[1]


def trained(case: Case, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """What the worker of this case says. Raises RuntimeError if it breaks down."""
    request = {
        "case": asdict(case),
        "rows": str(folder / "rows.npy"),
        "others": str(folder / "others.npy"),
        "looks": options.looks,
        "steps": steps_of(case.library, options),
        "warmup": options.steps // _WARMUP,
        "dead_steps": options.steps // _DEAD,
        "threads": options.threads,
        "lr": options.lr,
    }
    done = subprocess.run(
        [str(python_of(case.library, "cpu")), "-m", "benchmarks.peers.whole_worker"],
        cwd=ROOT,
        env=os.environ | {"OMP_WAIT_POLICY": "PASSIVE"},
        input=json.dumps(request) + "\n",
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or [f"code {done.returncode}"])[-1])
    return json.loads(done.stdout)


if __name__ == "__main__":
    torch.set_num_threads(1)
    try:
        sys.exit(main())
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
