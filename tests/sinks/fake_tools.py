"""The packages of the sinks, faked at their own names: only what saeforest calls of them, kept for tests to look at.

`make sinks` runs the real ones.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest


@dataclass
class FakeRun:
    """A remote run: what was logged, in order, and how often it was opened and ended."""

    about: dict[str, Any]
    logged: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    opened: int = 0
    ends: list[Any] = field(default_factory=list)


class Tools:
    """All runs by tool and id. on: called with a tool and "open", "log" or "close" when it is asked for; may raise."""

    def __init__(self) -> None:
        self.runs: dict[str, dict[str, FakeRun]] = {}
        self.on: Callable[[str, str], object] = lambda tool, what: None

    def opened(self, tool: str, key: str, **about: Any) -> FakeRun:
        self.on(tool, "open")
        run = self.runs.setdefault(tool, {}).setdefault(key, FakeRun(about))
        run.opened += 1
        return run

    def log(self, tool: str, run: FakeRun, step: int, values: dict[str, float]) -> None:
        self.on(tool, "log")
        run.logged.append((step, values))

    def install(self, patch: pytest.MonkeyPatch) -> None:
        """Puts the fakes where an import finds them."""
        tools = self

        class Handle:
            """A run of wandb or trackio."""

            def __init__(self, tool: str, run: FakeRun) -> None:
                self.tool, self.run = tool, run

            def log(self, values: dict[str, float], step: int) -> None:
                tools.log(self.tool, self.run, step, values)

            def finish(self, exit_code: int | None = None) -> None:
                tools.on(self.tool, "close")
                self.run.ends.append(exit_code)

        def wandb_init(**about: Any) -> Handle:
            assert about["resume"] == "allow"
            assert about["reinit"] == "create_new"
            return Handle("wandb", tools.opened("wandb", about["id"], **about))

        def trackio_init(**about: Any) -> Handle:
            assert about["resume"] == "allow"
            print("* this tool speaks on the standard output")
            return Handle("trackio", tools.opened("trackio", about["name"], **about))

        class MlflowClient:
            def get_experiment_by_name(self, name: str) -> Any:
                return None

            def create_experiment(self, name: str) -> str:
                return name

            def create_run(self, experiment: str, run_name: str, tags: dict[str, str]) -> Any:
                id = f"id-{len(tools.runs.get('mlflow', {}))}"
                tools.opened("mlflow", id, name=run_name, group=tags["group"], params={})
                return SimpleNamespace(info=SimpleNamespace(run_id=id))

            def update_run(self, id: str, status: str) -> None:
                assert status == "RUNNING"
                assert id in tools.runs["mlflow"]
                tools.opened("mlflow", id)

            def log_batch(self, id: str, metrics: Any = (), params: Any = ()) -> None:
                assert len(params) <= 100
                run = tools.runs["mlflow"][id]
                run.about["params"] |= dict(params)
                if metrics:
                    (step,) = {step for _, _, _, step in metrics}
                    tools.log("mlflow", run, step, {key: value for key, value, _, _ in metrics})

            def set_terminated(self, id: str, status: str) -> None:
                tools.runs["mlflow"][id].ends.append(status)

        class SummaryWriter:
            """Several scalars of a step count as one line, as those of the other tools do."""

            def __init__(self, folder: str) -> None:
                self.run = tools.opened("tensorboard", folder)
                Path(folder).mkdir(parents=True, exist_ok=True)
                self.waiting: dict[str, float] = {}
                self.at = 0

            def add_text(self, tag: str, text: str, step: int) -> None:
                self.run.about[tag] = json.loads(text.removeprefix("```json\n").removesuffix("\n```"))

            def add_scalar(self, tag: str, value: float, step: int) -> None:
                self.waiting[tag], self.at = value, step

            def flush(self) -> None:
                tools.log("tensorboard", self.run, self.at, self.waiting)
                self.waiting = {}

            def close(self) -> None:
                self.run.ends.append(None)

        fakes = {
            "wandb": {"init": wandb_init},
            "trackio": {"init": trackio_init},
            "mlflow": {"MlflowClient": MlflowClient},
            "mlflow.entities": {"Metric": lambda *of: of, "Param": lambda *of: of},
            "tensorboard": {},
            "torch.utils.tensorboard": {"SummaryWriter": SummaryWriter},
        }
        for name, members in fakes.items():
            module = ModuleType(name)
            module.__dict__.update(members, __spec__=ModuleSpec(name, None))
            patch.setitem(sys.modules, name, module)
        for name in ("tensorboard_files", "trackio_run", "wandb_run", "mlflow_run"):
            patch.delitem(sys.modules, f"saeforest.sinks.{name}", raising=False)
