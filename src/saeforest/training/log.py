"""The run's logs: log.jsonl, one line a logged step or event, and allocations.jsonl, every move of a child."""

from __future__ import annotations

import json
import os
import resource
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import InputError
from ..files import (
    CHECKSUMS,
    atomic_file,
    checksum,
    checksum_of_bytes,
    listed_checksum,
    parse_json,
    read_bytes,
    read_json,
)
from ..output import note
from ..run_folder import RunFolder
from ..saes import Event, Step, Training
from ..saes.files import CFG, WEIGHTS

LOG, ALLOCATIONS = "log.jsonl", "allocations.jsonl"
FINISHED = "finished"


@runtime_checkable
class Log(Protocol):
    """Where the lines of an SAE's training go."""

    def step(self, line: dict[str, Any]) -> None: ...
    def event(self, event: Event) -> None: ...
    def sync(self) -> None: ...
    def finish(self, step: int) -> None: ...


@dataclass
class MemoryLog:
    """The lines that log.jsonl would hold, for a training that writes no files."""

    lines: list[dict[str, Any]] = field(default_factory=list)

    def step(self, line: dict[str, Any]) -> None:
        self.lines.append(line)

    def event(self, event: Event) -> None:
        self.lines.append(event.log)

    def sync(self) -> None:
        pass

    def finish(self, step: int) -> None:
        pass


class RunLog:
    """Appends to the logs of a run folder. On resuming, lines after the checkpoint's step are dropped first.

    Lines that are damaged are set aside, in a file of their own, and a line says so: they are in nobody's way. A line
    that cannot be written (a full disk) waits for the next one; `sync` raises OSError where it still can't be.
    """

    def __init__(self, folder: Path, resume_at: int = 0) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._log, self._allocations = _Lines(folder / LOG), _Lines(folder / ALLOCATIONS)
        for lines in (self._log, self._allocations):
            lines.cut(resume_at)

    def step(self, line: dict[str, Any]) -> None:
        self._log.append(line)

    def event(self, event: Event) -> None:
        self._log.append(event.log)
        if event.moves:
            about = {key: event.log[key] for key in ("step", "layer", "event")}
            self._allocations.append({**about, "moves": event.moves})

    def sync(self) -> None:
        """Everything so far is on the disk. Raises OSError where it is not."""
        self._log.sync()
        self._allocations.sync()

    def finish(self, step: int) -> None:
        """Closes the logs with a line that holds their checksums. Raises OSError where they can't be written."""
        self.sync()
        files = [lines.path for lines in (self._log, self._allocations) if lines.path.exists()]
        checksums = {path.name: checksum(path) for path in files}
        self._log.append({"event": FINISHED, "step": step, CHECKSUMS: checksums})
        self.sync()


class _Lines:
    """A file of JSON lines that is appended to."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._waiting: list[str] = []

    def cut(self, step: int) -> None:
        """Keeps the lines up to a step; none for step 0, at which a run begins."""
        if not self.path.exists():
            return
        kept, damaged = read_lines(self.path)
        lines = [
            json.dumps(line) for line in kept if 0 < step >= line["step"] and line.get("event") != FINISHED
        ]
        with atomic_file(self.path) as temporary:
            temporary.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        if damaged:
            aside = self.path.with_suffix(".damaged.jsonl")
            with aside.open("ab") as file:
                file.writelines(line + b"\n" for line in damaged)
            note(f"{self.path}: {len(damaged)} damaged lines were set aside in {aside.name}")

    def append(self, line: dict[str, Any]) -> None:
        self._waiting.append(json.dumps(line) + "\n")
        try:
            self._write()
        except OSError as error:
            if len(self._waiting) == 1:
                note(
                    f"{self.path}: {os.strerror(error.errno or 0)}; going on, and trying again with the next line"
                )

    def _write(self) -> None:
        with self.path.open("ab") as file:
            end = file.tell()
            try:
                file.write("".join(self._waiting).encode())
                file.flush()
            except OSError:
                with suppress(OSError):  # no half line stays
                    os.truncate(self.path, end)
                raise
        self._waiting.clear()

    def sync(self) -> None:
        if self._waiting:
            self._write()
        if self.path.exists():
            with self.path.open("rb") as file:
                os.fsync(file.fileno())


def read_lines(path: Path) -> tuple[list[dict[str, Any]], list[bytes]]:
    """The lines of a log that are objects with a step, and those that are damaged, each in order.

    A last line without its end is neither: a process was stopped while it wrote that.
    """
    sound: list[dict[str, Any]] = []
    damaged: list[bytes] = []
    *whole, _ = read_bytes(path).split(b"\n")
    for line in whole:
        try:
            data = parse_json(line, str(path))
            step = data["step"]
            if isinstance(step, bool) or not isinstance(step, int) or step < 0:
                raise ValueError
            sound.append(data)
        except (InputError, KeyError, TypeError, ValueError):
            damaged.append(line)
    return sound, damaged


def log_files(folder: Path) -> list[Path]:
    """The logs that a folder holds, or may hold."""
    return [folder / LOG, folder / ALLOCATIONS]


def has_log(folder: Path) -> bool:
    return (folder / LOG).is_file()


def read_log(folder: Path) -> list[dict[str, Any]]:
    """All lines of the log.jsonl in a folder, steps and events, in order. Raises InputError where one is damaged."""
    path = folder / LOG
    lines, damaged = read_lines(path)
    check_log(path)
    if damaged:
        raise InputError(f"{path}: {len(damaged)} of its lines are damaged; restore it from a copy")
    return lines


def check_log(path: Path) -> None:
    """Raises InputError where a finished log, or allocations.jsonl beside it, is not what its closing line says."""
    before, end, last = read_bytes(path).rstrip(b"\n").rpartition(b"\n")
    closing = None
    with suppress(InputError):
        closing = parse_json(last, str(path))
    if not isinstance(closing, dict) or closing.get("event") != FINISHED:
        if is_closed(path.parent):
            raise InputError(
                f"{path}: its closing line is missing or damaged, so it was cut; restore it from a copy"
            )
        return
    digests = {LOG: checksum_of_bytes(before + end)}
    if listed_checksum(closing, ALLOCATIONS) is not None:
        allocations = path.parent / ALLOCATIONS
        digests[ALLOCATIONS] = checksum(allocations) if allocations.exists() else "that of no file"
    for name, found in digests.items():
        if (expected := listed_checksum(closing, name)) is not None and expected != found:
            raise InputError(f"{path.parent / name}: does not match its checksum; restore it from a copy")


def is_closed(folder: Path) -> bool:
    """Whether the logs in `folder` are of an SAE that was finished by a version that closes them with checksums."""
    if (run := RunFolder.around(folder)) is None:
        return False
    try:
        return listed_checksum(read_json(run.sae_beside(folder) / CFG), WEIGHTS) is not None
    except InputError:  # none, or a damaged one
        return False


@torch.no_grad()
def describe_step(training: Training, target: Float[Tensor, "n d_out"], step: Step) -> dict[str, Any]:
    """What a logged step says of the SAE: losses by layer, FVE, L0 and dead features by layer."""
    forest = training.sae.forest
    residual = float((target - step.x_hat).square().sum())
    spread = float((target - target.mean(0)).square().sum())
    fired, dead = step.fired.cpu(), training.dead.cpu()
    layers = [forest.layer == layer for layer in range(len(forest.layer_sizes))]
    return {
        "loss": float(step.loss.detach()),
        **{name: [None if t is None else float(t) for t in terms] for name, terms in step.terms.items()},
        "fve": 1 - residual / spread if spread else None,  # equal activations have nothing to explain
        "l0": [float(fired[layer].sum() / step.n_tokens) for layer in layers],
        "dead": [int(dead[layer].sum()) for layer in layers],
    }


def peak_memory_mb() -> float:
    """The most memory this process has held: of the GPU where one is used, else of the machine."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
