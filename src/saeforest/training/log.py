"""The run's logs: log.jsonl, one line a logged step or event, and allocations.jsonl, every move of a child."""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..files import atomic_file
from ..saes import SAE, Step
from ..saes.base import Event

LOG, ALLOCATIONS = "log.jsonl", "allocations.jsonl"


class RunLog:
    """Appends to the logs of a run folder. On resuming, lines after the checkpoint's step are dropped first."""

    def __init__(self, folder: Path, resume_at: int = 0) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._log, self._allocations = folder / LOG, folder / ALLOCATIONS
        for path in (self._log, self._allocations):
            if path.exists():
                # A line without its end is one that a crash cut short.
                lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
                whole = [line for line in lines if line.endswith("\n")]
                kept = [line for line in whole if json.loads(line)["step"] <= resume_at]
                with atomic_file(path) as temporary:
                    temporary.write_text("".join(kept), encoding="utf-8")

    def step(self, line: dict[str, Any]) -> None:
        _append(self._log, line)

    def event(self, event: Event) -> None:
        _append(self._log, event.log)
        if event.moves:
            about = {key: event.log[key] for key in ("step", "layer", "event")}
            _append(self._allocations, {**about, "moves": event.moves})


def _append(path: Path, line: dict[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as f:
        f.write(json.dumps(line) + "\n")


def log_folder(run: Path, name: str) -> Path:
    """Where the logs of one of a run's SAEs are: in the run's folder itself if it is the only one."""
    return run / "logs" / name if name else run


def read_log(folder: Path) -> list[dict[str, Any]]:
    """All lines of the log.jsonl in a folder, steps and events, in order."""
    return [json.loads(line) for line in (folder / LOG).read_text(encoding="utf-8").splitlines()]


@torch.no_grad()
def describe_step(sae: SAE, x: Float[Tensor, "n d_in"], step: Step) -> dict[str, Any]:
    """What a logged step says of the SAE: losses by layer, FVE, L0 and dead features by layer."""
    forest, threshold = sae.forest, sae.config.activation_threshold
    residual = float((x - step.x_hat).square().sum())
    spread = float((x - x.mean(0)).square().sum())
    fired = step.code.fired(sae.d_sae, threshold).cpu()
    layers = range(len(forest.layer_sizes))
    return {
        "loss": float(step.loss.detach()),
        **step.terms,
        "fve": 1 - residual / spread if spread else None,  # equal activations have nothing to explain
        "l0": [float(fired[forest.layer == layer].sum() / len(x)) for layer in layers],
        "dead": [int(sae.dead.cpu()[forest.layer == layer].sum()) for layer in layers],
    }


def peak_memory_mb() -> float:
    """The most memory this process has held: of the GPU where one is used, else of the machine."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
