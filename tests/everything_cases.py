"""One of each file that saeforest writes, from tiny runs: what tests of damage start from."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from saeforest import cli
from saeforest.config import MemberConfig, TrainConfig
from saeforest.files import write_json
from saeforest.judges.cache import CachedJudge
from saeforest.saes import TopKConfig
from saeforest.training import Interrupted, loop, run_training
from saeforest.worlds import GENERATORS
from saeforest.worlds.config import SyntheticConfig
from saeforest.worlds.run import compare as compare_systems

#: `make_once(name, fill)`: the folder of that name, which `fill` fills for all tests and workers.
MakeOnce = Callable[[str, Callable[[Path], object]], Path]

WIDTH, STOPPED_AT = 16, 20
CHECKPOINT = f"stopped/checkpoints/step-{STOPPED_AT:08}"


class Fives:
    """A judge that gives everything five."""

    name, workers = "fives", 1

    def ask(self, system: str, user: str, *, max_tokens: int) -> str:
        return "5"


def make_everything(folder: Path, config: TrainConfig) -> None:
    """Fills a folder: run (a tree), two (a tree and a flat SAE, measured and indexed), stopped, store, results."""
    run_training(config, folder / "run")
    flat = TopKConfig((48,), (5,), dead_after_tokens=512)
    members = {"tree": MemberConfig(config.sae, config.optim), "topk": MemberConfig(flat, config.optim)}
    run_training(replace(config, saes=members), folder / "two")
    two = str(folder / "two")
    done([
        "eval", two, "--measures", "reconstruction,coverage,dead", "--tokens", "1600", "--infer-tokens", "2000",
        "--infer.method", "coverage", "--infer.min-score", "0.5", "--infer.min-count", "2",
    ])  # fmt: skip
    done(["index", two, "--sae", "tree", "--tokens", "1600"])
    for user in "abc":
        CachedJudge(Fives(), folder / "two" / "eval" / "tree").ask("a system", user, max_tokens=1)
    done(["compare", two, "--out", str(folder / "report")])
    make_stopped(folder / "stopped", config)
    done([
        "harvest", "--model", config.model, "--site", config.site, "--data", config.data, "--tokens", "1024",
        "--text.context", "32", "--text.held-out", "0.2", "--device", "cpu", "--out", str(folder / "store"),
    ])  # fmt: skip
    tiny = SyntheticConfig(steps=3, batch_size=64, size=0.2, held_out=500)
    name = next(iter(GENERATORS))
    found = compare_systems(lambda seed: GENERATORS[name](seed=seed), range(1), ["topk"], tiny)
    (folder / "results").mkdir()
    write_json(folder / "results" / "recovery.json", found, signed=False)


def done(argv: list[str]) -> None:
    assert cli.run(argv) == 0


def make_stopped(out: Path, config: TrainConfig) -> None:
    """A run that was stopped after some steps, with a checkpoint."""
    with pytest.MonkeyPatch.context() as patch:
        step: Callable[..., Any] = loop.Trainee.step

        def stopping(self: loop.Trainee, *batch: Any) -> Any:
            found = step(self, *batch)
            if self.training.done == STOPPED_AT:
                signal.raise_signal(signal.SIGINT)
            return found

        patch.setattr(loop.Trainee, "step", stopping)
        with pytest.raises(Interrupted):
            run_training(config, out)


def copied(everything: Path, part: str, to: Path) -> Path:
    """A copy of a part of it, to be damaged."""
    return Path(shutil.copytree(everything / part, to / part, dirs_exist_ok=True))
