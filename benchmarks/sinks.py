"""The sinks with the tools themselves, each in an environment of its own: `saeforest train --log NAME`, for real.

.venv/bin/python -m benchmarks.sinks [NAME ...]

A small run is stopped, and goes on in another process. Then the tool's own files are read: there must be one run, with
every line of log.jsonl once. Environments are made in .venv-peers, once; that needs the network. Everything stays on
this machine: Weights & Biases writes its files offline. Exits with 1 if anything is not as expected.
"""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
#: What pip installs for each sink.
PACKAGES = {
    "tensorboard": "tensorboard==2.21.0",
    "trackio": "trackio==0.43.0",
    "wandb": "wandb==0.31.0",
    "mlflow": "mlflow==3.17.2",
}
#: The series that is compared. Loss and L0 are in every line of a step.
_SERIES = ("loss", "l0/total")
Series = dict[str, list[tuple[int, float]]]


def main(names: list[str]) -> int:
    """Checks these sinks, or all."""
    bad = 0
    for name in names or PACKAGES:
        try:
            said, ok = _checked(name), True
        except (subprocess.CalledProcessError, AssertionError) as error:
            output = getattr(error, "stderr", "") or str(error)
            said, ok = output.strip().splitlines()[-1] if output.strip() else repr(error), False
        print(f"{PACKAGES[name]:22} {'as expected' if ok else 'NOT AS EXPECTED'}: {said}", flush=True)
        bad += not ok
    return int(bad > 0)


def _checked(name: str) -> str:
    python = _environment(name)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        own = {
            "WANDB_MODE": "offline",
            "TRACKIO_DIR": str(folder / "trackio"),
            "PYTHONPATH": f"{ROOT}/src:{ROOT}",
        }
        for part in ("stop", "go on", "read"):
            done = subprocess.run(
                [str(python), "-m", "benchmarks.sinks", "--inside", name, part],
                cwd=folder,
                env={**os.environ, **own},
                capture_output=True,
                text=True,
                check=True,
            )
        return done.stdout.strip().splitlines()[-1]


def _environment(name: str) -> Path:
    """The interpreter of a tool's environment, which sees ours behind its own packages."""
    folder = ROOT / ".venv-peers" / f"sink-{name}"
    python, stamp = folder / "bin" / "python", folder / "made.txt"
    if not (stamp.is_file() and stamp.read_text() == PACKAGES[name]):
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        install = [str(python), "-m", "pip", "install", "--quiet", PACKAGES[name]]
        subprocess.run(install, check=True, capture_output=True, text=True)
        ours = next(path for path in sys.path if path.endswith("site-packages"))
        (next(folder.glob("lib/python*/site-packages")) / "zz-saeforest.pth").write_text(ours)
        stamp.write_text(PACKAGES[name])
    return python


# In the tool's environment


def inside(name: str, part: str) -> None:
    """One process: training that is stopped, training that goes on, or reading what the tool has."""
    if part != "read":
        _train(name, stop=part == "stop")
        return
    log = [json.loads(line) for line in Path("run/log.jsonl").read_text().splitlines()]
    steps = [line for line in log if "event" not in line]
    expected: Series = {
        "loss": [(line["step"], line["loss"]) for line in steps],
        "l0/total": [(line["step"], sum(line["l0"])) for line in steps],
    }
    found = _READERS[name]()
    for series in _SERIES:
        assert len(found[series]) == len(expected[series]), (
            f"{series}: {found[series]}, not {expected[series]}"
        )
        for (step, value), (wanted_step, wanted) in zip(found[series], expected[series], strict=True):
            assert step == wanted_step
            assert abs(value - wanted) <= 1e-6 * abs(wanted), f"{series} at {step}: {value}, not {wanted}"
    print(f"one run, stopped and resumed, with all {len(steps)} logged steps")


def _train(name: str, *, stop: bool) -> None:
    import torch

    import saeforest
    from saeforest.stopping import Interrupted
    from saeforest.training import loop

    step = loop.Trainee.step

    def stopping(self: loop.Trainee, *batch: Any) -> Any:
        done = step(self, *batch)
        if stop and self.training.done == 33:
            signal.raise_signal(signal.SIGINT)
        return done

    loop.Trainee.step = stopping  # pyright: ignore[reportAttributeAccessIssue]
    x = torch.randn(4_000, 16, generator=torch.Generator().manual_seed(0))
    sizes = {"layer_sizes": (8, 24), "k_per_layer": (2, 2), "steps": 60, "batch_size": 64, "log_every": 5}
    try:
        saeforest.train(x, "tree", out="run", log=name if stop else (), **sizes)
        assert not stop
    except Interrupted:
        assert stop


def _tensorboard() -> Series:
    from tensorboard.backend.event_processing.event_accumulator import (  # pyright: ignore[reportMissingImports]
        EventAccumulator,
    )

    there = EventAccumulator("run/sinks/tensorboard")
    there.Reload()
    return {name: [(event.step, event.value) for event in there.Scalars(name)] for name in _SERIES}


def _trackio() -> Series:
    import trackio  # pyright: ignore[reportMissingImports]
    from trackio.sqlite_storage import SQLiteStorage  # pyright: ignore[reportMissingImports]

    (run,) = trackio.Api().runs("saeforest")
    logs = SQLiteStorage.get_logs("saeforest", run.name)
    return {name: [(log["step"], log[name]) for log in logs if name in log] for name in _SERIES}


def _mlflow() -> Series:
    from mlflow import MlflowClient  # pyright: ignore[reportMissingImports]

    client = MlflowClient()
    experiment = client.get_experiment_by_name("saeforest")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    return {
        name: [(metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, name)]
        for name in _SERIES
    }


def _wandb() -> Series:
    """Both offline files, in the order in which `wandb sync` sends them, must be of one run."""
    from wandb.proto import wandb_internal_pb2  # pyright: ignore[reportMissingImports]

    found: Series = {name: [] for name in _SERIES}
    ids: set[str] = set()
    for file in sorted(Path("run/sinks/wandb").glob("offline-run-*/*.wandb")):
        for data in _records(file.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            if record.run.run_id:
                ids.add(record.run.run_id)
            line = {
                item.key or "/".join(item.nested_key): json.loads(item.value_json)
                for item in record.history.item
            }
            for name in _SERIES:
                if name in line:
                    found[name].append((record.history.step.num or line["_step"], line[name]))
    assert len(ids) == 1, ids
    return found


def _records(data: bytes) -> Iterator[bytes]:
    """The records of a file in LevelDB's log format behind a header of 7 bytes."""
    block, whole, place = 32_768, b"", 7
    while place < len(data):
        if block - place % block < 7:  # no header fits: the rest of the block is empty
            place += block - place % block
            continue
        _, size, kind = struct.unpack_from("<IHB", data, place)
        place += 7
        whole += data[place : place + size]
        place += size
        if kind in (1, 4):  # whole, or the last part
            yield whole
            whole = b""


_READERS: dict[str, Callable[[], Series]] = {
    "tensorboard": _tensorboard,
    "trackio": _trackio,
    "wandb": _wandb,
    "mlflow": _mlflow,
}


if __name__ == "__main__":
    if sys.argv[1:2] == ["--inside"]:
        inside(*sys.argv[2:])
    else:
        sys.exit(main(sys.argv[1:]))
