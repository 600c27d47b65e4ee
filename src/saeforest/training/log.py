"""The logs of a run: log.jsonl has a line for each logged step or event, allocations.jsonl every move of a child."""

from __future__ import annotations

import json
import os
import resource
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

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
from ..structure.forest import ROOT

LOG, ALLOCATIONS = "log.jsonl", "allocations.jsonl"
FINISHED = "finished"


@runtime_checkable
class Log(Protocol):
    """A log of the training of one SAE."""

    def step(self, line: dict[str, Any]) -> None:
        """Add the line of a step."""
        ...

    def event(self, event: Event) -> None:
        """Add an event."""
        ...

    def sync(self) -> None:
        """Make sure that everything so far is saved."""
        ...

    def finish(self, step: int) -> None:
        """Close the log at the end of training, after step `step`."""
        ...


@dataclass
class MemoryLog:
    """A log that keeps the lines of log.jsonl in memory, for training without files."""

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
    """Appends to the logs in a folder of the run. On resuming, lines after the checkpoint's step are deleted first.

    Damaged lines are moved to a file of their own, and a note says so. A line that cannot be written, because the disk
    is full, is written with the next one; `sync` raises OSError if that is still impossible.
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
            # A promotion moves features of several layers.
            about = {key: event.log[key] for key in ("step", "layer", "event") if key in event.log}
            self._allocations.append({**about, "moves": event.moves})

    def sync(self) -> None:
        """Write everything so far to disk. Raises OSError if that is impossible."""
        self._log.sync()
        self._allocations.sync()

    def finish(self, step: int) -> None:
        """Close the logs with a line that holds their checksums. Raises OSError if they cannot be written."""
        self.sync()
        files = [lines.path for lines in (self._log, self._allocations) if lines.path.exists()]
        checksums = {path.name: checksum(path) for path in files}
        self._log.append({"event": FINISHED, "step": step, CHECKSUMS: checksums})
        self.sync()


class _Lines:
    """A file of JSON lines, to which lines are appended."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._waiting: list[str] = []

    def cut(self, step: int) -> None:
        """Keep only the lines up to a step. For step 0, the start of a run, none are kept."""
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
                    f"{self.path}: {os.strerror(error.errno or 0)}; training continues, and the next line tries again"
                )

    def _write(self) -> None:
        with self.path.open("ab") as file:
            end = file.tell()
            try:
                file.write("".join(self._waiting).encode())
                file.flush()
            except OSError:
                with suppress(OSError):  # leave no half line behind
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
    """The intact lines of a log (objects with a step), and the damaged ones, each in order.

    A last line without a newline is neither, since the process was stopped while writing it.
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
    """The paths of the logs in a folder, whether or not they exist."""
    return [folder / LOG, folder / ALLOCATIONS]


def has_log(folder: Path) -> bool:
    """Whether a folder has a log.jsonl."""
    return (folder / LOG).is_file()


def read_log(folder: Path) -> list[dict[str, Any]]:
    """All lines of the log.jsonl in a folder, steps and events, in order. Raises InputError if one is damaged."""
    path = folder / LOG
    lines, damaged = read_lines(path)
    check_log(path)
    if damaged:
        raise InputError(f"{path}: {len(damaged)} lines are damaged; restore it from a copy")
    return lines


class Moves(NamedTuple):
    """A line of allocations.jsonl: features that got another parent after a step, each with the old and the new one."""

    step: int
    event: str
    moves: list[tuple[int, int, int]]


def read_moves(folder: Path, d_sae: int) -> list[Moves]:
    """All lines of the allocations.jsonl in a folder, in order; none if there is no such file.

    Raises InputError if one is damaged, or names features that an SAE with `d_sae` features doesn't have.
    """
    path = folder / ALLOCATIONS
    if not path.is_file():
        return []
    lines, damaged = read_lines(path)
    found = []
    for line in lines:
        event, moves = line.get("event"), line.get("moves")
        if (
            not isinstance(event, str)
            or not isinstance(moves, list)
            or not all(_is_move(m, d_sae) for m in moves)
        ):
            damaged.append(b"")
            continue
        found.append(Moves(line["step"], event, [(feature, old, new) for feature, old, new in moves]))
    if damaged:
        raise InputError(
            f"{path}: {len(damaged)} lines are damaged or of an SAE with other features than 0 to {d_sae - 1}; "
            "restore it from a copy"
        )
    return found


def _is_move(move: object, d_sae: int) -> bool:
    return (
        isinstance(move, list)
        and len(move) == 3
        and all(type(x) is int and ROOT <= x < d_sae for x in move)
        and move[0] != ROOT
    )


def check_log(path: Path) -> None:
    """Raise InputError if a finished log, or the allocations.jsonl beside it, does not match its closing line."""
    before, end, last = read_bytes(path).rstrip(b"\n").rpartition(b"\n")
    closing = None
    with suppress(InputError):
        closing = parse_json(last, str(path))
    if not isinstance(closing, dict) or closing.get("event") != FINISHED:
        if is_closed(path.parent):
            raise InputError(
                f"{path}: the closing line is missing or damaged, so the file was cut; restore it from a copy"
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
    """Whether the logs in `folder` belong to a finished SAE, and must therefore have a closing line.

    SAEs without checksums were saved by older versions, which wrote no closing line.
    """
    if (run := RunFolder.around(folder)) is None:
        return False
    try:
        return listed_checksum(read_json(run.sae_beside(folder) / CFG), WEIGHTS) is not None
    except InputError:  # there is no SAE, or it is damaged
        return False


@torch.no_grad()
def describe_step(training: Training, target: Float[Tensor, "n d_out"], step: Step) -> dict[str, Any]:
    """The line of a logged step: losses by layer, FVE, and by layer L0 and the number of dead features."""
    forest = training.sae.forest
    residual = float((target - step.x_hat).square().sum())
    spread = float((target - target.mean(0)).square().sum())
    fired, dead = step.fired.cpu(), training.dead.cpu()
    layers = [forest.layer == layer for layer in range(len(forest.layer_sizes))]
    return {
        "loss": float(step.loss.detach()),
        **{name: [None if t is None else float(t) for t in terms] for name, terms in step.terms.items()},
        "fve": 1 - residual / spread if spread else None,  # undefined if all activations are equal
        "l0": [float(fired[layer].sum() / step.n_tokens) for layer in layers],
        "dead": [int(dead[layer].sum()) for layer in layers],
    }


def peak_memory_mb() -> float:
    """The peak memory of this process in MiB: on the GPU if it uses one, otherwise in RAM."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
