from __future__ import annotations

from contextlib import chdir
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from saeforest import cli
from saeforest.config import TrainConfig, to_dict
from saeforest.lm import load_lm
from saeforest.lm.parity import parity

from .cases import Cases, MakeConfig
from .harness import command, contents, leftovers


class Whole:
    """Every command undisturbed: how many file operations it takes, and what it leaves."""

    def __init__(self, cases: Cases, folder: Path) -> None:
        self._cases, self._folder = cases, folder
        self._found: dict[str, tuple[int, dict[str, Any]]] = {}

    def of(self, name: str) -> tuple[int, dict[str, Any]]:
        if name not in self._found:
            case, folder = self._cases.case(name), self._folder / name.replace(" ", "-")
            folder.mkdir()
            case.made(folder)
            ended = command(case.argv, folder, prepare=self._cases.prepare)
            assert ended.status == 0, ended.err
            assert leftovers(folder) == []
            self._found[name] = ended.operations, contents(folder)
        return self._found[name]


def warm_up(model: Path) -> None:
    """Imports here what every child would have to import for itself: most of its time."""
    commands = [f"cli.{name}" for name in cli.COMMANDS]
    for name in ("demo", "explore", "kernels.compiled.loops", "cli.eval_arguments", "worlds.run", *commands):
        import_module(f"saeforest.{name}")
    import_module("torch._dynamo")
    parity(load_lm(str(model)))
    to_dict(TrainConfig())


def run_here(cases: Cases, folder: Path) -> None:
    """Runs commands in this process: what else they load and compile once, kernels for one, is then there too."""
    for name in ("train several", "harvest", "index", "eval", "synthetic"):
        case, at = cases.case(name), folder / name.replace(" ", "-")
        at.mkdir()
        case.made(at)
        with chdir(at):
            assert cli.run([str(arg) for arg in case.argv]) == 0


@pytest.fixture(scope="session")
def cases(tiny_model: Path, tiny_config: MakeConfig, tmp_path_factory: pytest.TempPathFactory) -> Cases:
    warm_up(tiny_model)
    made = Cases(tmp_path_factory.mktemp("cases"), tiny_config)
    made.make_runs(command)
    run_here(made, tmp_path_factory.mktemp("here"))
    return made


@pytest.fixture(scope="session")
def whole(cases: Cases, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    return Whole(cases, tmp_path_factory.mktemp("whole"))
