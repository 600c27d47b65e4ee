"""The code that the guide prints for datatrove, on a stand-in for datatrove; `make engines` runs the tool itself."""

from __future__ import annotations

import ast
import sys
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.engines import SMALLER, printed_step  # noqa: E402

from llama_cases import MakeConfig  # noqa: E402
from saeforest.training.harvest import run_harvest  # noqa: E402


class PipelineStep:
    """As datatrove's: a generator of documents that knows which task runs it."""

    name: str

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Any:
        raise NotImplementedError


@dataclass
class Executor:
    """Runs the tasks one after another."""

    pipeline: list[PipelineStep]
    tasks: int
    time: str
    partition: str

    def run(self) -> None:
        for rank in range(self.tasks):
            for step in self.pipeline:
                assert list(step.run(iter(()), rank, self.tasks)) == []


def test_the_printed_step_harvests(
    tiny_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, members in {
        "datatrove": {},
        "datatrove.executor": {"SlurmPipelineExecutor": Executor},
        "datatrove.pipeline": {},
        "datatrove.pipeline.base": {"PipelineStep": PipelineStep},
    }.items():
        module = ModuleType(name)
        module.__spec__ = ModuleSpec(name, None)
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr("saeforest.activations.writer.SHARD_ROWS", 500)
    config = tiny_config(tokens=3072)
    done = run_harvest(config, tmp_path / "plain")
    assert done is not None
    assert len(done.store.manifest["shards"]) > 2
    code = printed_step(
        {
            '"Qwen/Qwen3-0.6B"': repr(config.model),
            '"blocks.14.hook_resid_post"': repr(config.site),
            '"my_texts/"': repr(config.data),
            "tokens=500_000_000": "tokens=3072",
            '"s3://bucket/acts"': repr(str(tmp_path / "many")),
            "tasks=64": "tasks=3",
        }
    )
    # The rest of what a test's configuration has, such as its short windows.
    code = code.replace("\n\nclass Harvest", "\nconfig = replaced(config)\n\nclass Harvest", 1)
    exec(compile(code, "step.py", "exec"), {"__name__": "__main__", "replaced": lambda printed: config})
    for path in (tmp_path / "plain").iterdir():
        if path.suffix in (".safetensors", ".json") and path.name != "harvest.json":
            assert (tmp_path / "many" / path.name).read_bytes() == path.read_bytes(), path.name


def test_a_page_that_prints_another_step_is_an_error() -> None:
    ast.parse(printed_step(SMALLER))  # what the benchmark changes is there, and stays code
    with pytest.raises(ValueError, match="'tasks=7' is 0 times in the step of datatrove"):
        printed_step({"tasks=7": ""})
