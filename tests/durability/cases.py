"""The commands that take time, on the tiny model, and the folder each works in."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from saeforest import presets
from saeforest.activations import sources, writer
from saeforest.config import MemberConfig, TrainConfig, save_config
from saeforest.explore.measuring import run as index_run
from saeforest.saes import TopKConfig
from saeforest.training import loop
from saeforest.worlds import nulls

MakeConfig = Callable[..., TrainConfig]
CASES = ("train", "train several", "resume", "harvest", "index", "eval", "eval flat", "synthetic", "demo")


@dataclass(frozen=True)
class Case:
    """argv: the command; the same once more finishes it. folder: where, relative to that of `prepare`."""

    argv: list[Any]
    made: Callable[[Path], None]
    again: list[Any] | None = None

    @property
    def once_more(self) -> list[Any]:
        return self.again or self.argv


def small_pieces() -> None:
    """In a child: several shards and blocks, everything that is kept now and then is kept always, and few shuffles."""
    writer.SHARD_ROWS, writer._KEEP_EVERY_S, index_run._KEEP_EVERY_S = 250, 0.0, 0.0
    sources.BLOCK_ROWS, sources.SHARDS_MIXED = 300, 2
    nulls.SHUFFLES = 2


class Cases:
    """Makes the cases in a folder that tests share."""

    def __init__(self, shared: Path, tiny_config: MakeConfig) -> None:
        self._shared = shared
        small = {"tokens": 1024, "epochs": 1, "log_every": 3, "checkpoint_minutes": 1e-9}
        self._config = tiny_config(**small, activations={"store": "memory"})
        topk = tiny_config(**small, sae={}).optim
        save_config(self._config, shared / "one.yaml")
        several = tiny_config(**small, activations={"store": "disk"})
        members = {
            "tree": MemberConfig(several.sae, topk, 0),
            "topk": MemberConfig(TopKConfig(layer_sizes=(32,), k_per_layer=(4,)), topk, 1),
        }
        save_config(replace(several, saes=members), shared / "several.yaml")

    def prepare(self) -> None:
        """In a child, before the command."""
        small_pieces()
        presets.PRESETS["demo"] = self._config

    def case(self, name: str) -> Case:
        one, several = self._shared / "one.yaml", self._shared / "several.yaml"
        match name:
            case "train":
                return Case(["train", "--config", one, "--out", "run"], _nothing)
            case "train several":
                return Case(["train", "--config", several, "--out", "run"], _nothing)
            case "resume":
                return Case(["train", "--resume", "--out", "run"], self._copied("stopped"))
            case "harvest":
                return Case(["harvest", *self._harvest(), "--out", "store"], _nothing)
            case "index":
                return Case(["index", "run", "--tokens", "640"], self._copied("finished"))
            case "eval":
                return Case(["eval", "run", "--tokens", "640"], self._copied("finished"))
            case "eval flat":
                argv = ["eval", "run", "--tokens", "640", "--measures", "coverage", "--sae", "topk"]
                return Case(argv, self._copied("finished several"))
            case "synthetic":
                # Systems with a forest: scores of one that is inferred in three ways take three times as long.
                argv = [
                    "synthetic",
                    "matryoshka",
                    "--systems",
                    "tree,tree-earned",
                    "--seeds",
                    "2",
                    "--steps",
                    "3",
                ]
                return Case([*argv, "--batch-size", "64", "--held-out", "300", "--out", "found"], _nothing)
            case "demo":
                argv = ["demo", "--out", "run", "--tokens", "1024", "--epochs", "1", "--eval-tokens", "640"]
                return Case(argv, _nothing)
        raise ValueError(name)

    def _harvest(self) -> list[Any]:
        c = self._config
        return [
            "--model", c.model, "--site", c.site, "--data", c.data, "--tokens", c.tokens, "--device", "cpu",
            "--text.context", c.text.context, "--text.held-out", c.text.held_out, "--lm.dtype", "float32",
            "--lm.batch-size", c.lm.batch_size,
        ]  # fmt: skip

    def _copied(self, name: str) -> Callable[[Path], None]:
        return lambda folder: shutil.copytree(self._shared / name, folder / "run") and None

    def make_runs(self, run: Callable[..., Any]) -> None:
        """The runs that `index`, `eval` and `resume` start from, made once. `run` is `harness.command`."""
        for name, config in (("finished", "one.yaml"), ("finished several", "several.yaml")):
            (self._shared / f"{name}.at").mkdir()
            ended = run(
                ["train", "--config", self._shared / config, "--out", self._shared / name],
                self._shared / f"{name}.at",
                prepare=self.prepare,
            )
            assert ended.status == 0, ended.err
        (self._shared / "stopped.at").mkdir()

        def stop_after_three() -> None:
            self.prepare()
            real = loop.save_checkpoint

            def save(folder: Path, step: int, *rest: Any) -> None:
                real(folder, step, *rest)
                if step == 3:
                    import os
                    import signal

                    os.kill(os.getpid(), signal.SIGKILL)

            loop.save_checkpoint = save

        ended = run(
            ["train", "--config", self._shared / "one.yaml", "--out", self._shared / "stopped"],
            self._shared / "stopped.at",
            prepare=stop_after_three,
        )
        assert ended.status == -9, ended.err


def _nothing(folder: Path) -> None:
    return
