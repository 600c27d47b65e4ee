"""Runs that tests of ranks train, and what they compare."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from saeforest.config import TrainConfig
from saeforest.run_folder import RunFolder
from saeforest.training.log import read_log
from training.test_several import SYSTEMS
from training_cases import TIMES

#: How often a rank is killed, in worlds of at most how many; `make ranks` tries more.
KILLS, RANKS = (
    int(os.environ.get(f"SAEFOREST_RANK{name}", default)) for name, default in (("_KILLS", 1), ("S", 2))
)
# What takes more processor time than `make test` has.
thorough = pytest.mark.skipif(KILLS == 1, reason="`make ranks` runs it")


def assert_same(out: Path, alone: Path, config: TrainConfig) -> None:
    for name in config.members():
        for file in ("sae_weights.safetensors", "cfg.json"):
            ours, theirs = (RunFolder(run).sae(name) / file for run in (out, alone))
            assert ours.read_bytes() == theirs.read_bytes(), name
        ours, theirs = (
            [
                {k: v for k, v in line.items() if k not in TIMES}
                for line in read_log(RunFolder(run).logs(name))
                if line.get("event") != "finished"
            ]
            for run in (out, alone)
        )
        assert ours == theirs
        ours, theirs = (RunFolder(run).logs(name) / "allocations.jsonl" for run in (out, alone))
        assert ours.exists() == theirs.exists()
        assert not ours.exists() or ours.read_text() == theirs.read_text()


def small(base: TrainConfig, epochs: int) -> TrainConfig:
    """A run of many quick steps, with a checkpoint after about each tenth of a second."""
    sae = replace(SYSTEMS["topk"], layer_sizes=(32,))
    return replace(base, sae=sae, epochs=epochs, checkpoint_minutes=0.002, log_every=2)


def steps_in(log: Path) -> int:
    return log.read_text().count('"fve"') if log.exists() else 0


def wait_for_steps(log: Path, n: int, seconds: float = 120) -> bool:
    """Wait until a log has so many steps. Whether it has: a busy machine may not come that far."""
    until = time.monotonic() + seconds
    while steps_in(log) < n and time.monotonic() < until:
        time.sleep(0.01)
    return steps_in(log) >= n
