"""What the tests of training and of resuming share: how runs are compared, and disturbed in a step."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from saeforest.saes import Event, Step, Training
from saeforest.training.log import read_log

STEPS = 46
TIMES = ("tokens_per_s", "seconds", "peak_memory_mb")
FINISHED = {"config.yaml", "model.json", "log.jsonl", "allocations.jsonl", "sae"}


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "sae" / "sae_weights.safetensors")


def timeless(run: Path) -> list[dict[str, Any]]:
    lines = [line for line in read_log(run) if line.get("event") != "finished"]
    return [{k: v for k, v in line.items() if k not in TIMES} for line in lines]


def allocations(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "allocations.jsonl").read_text().splitlines()]


def assert_same_run(a: Path, b: Path) -> None:
    ours, theirs = weights(a), weights(b)
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name
    assert timeless(a) == timeless(b)
    assert allocations(a) == allocations(b)
    assert (a / "sae" / "cfg.json").read_text() == (b / "sae" / "cfg.json").read_text()


def at_step(monkeypatch: pytest.MonkeyPatch, wanted: int, act: Any) -> None:
    """`act()` in step `wanted`, after the optimizer, before its checkpoint."""
    after_step = Training.after_step

    def acting(self: Training, step: Step, number: int) -> list[Event]:
        events = after_step(self, step, number)
        if number == wanted:
            act()
        return events

    monkeypatch.setattr(Training, "after_step", acting)


def ctrl_c() -> None:
    signal.raise_signal(signal.SIGINT)


class Crash(Exception):
    pass


def crash() -> None:
    raise Crash
