"""Runs command lines in an empty folder."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llama_cases import MakeConfig
from saeforest import cli
from saeforest.config import save_config

from .said import Call, Said


@pytest.fixture
def call(capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Call:
    """Runs a command line in an empty folder, as a pipe would see it."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    def run(*args: Any) -> Said:
        capfd.readouterr()
        status = cli.run([str(a) for a in args])
        out, err = capfd.readouterr()
        return Said(status, out, err)

    return run


@pytest.fixture
def fails(call: Call) -> Callable[..., str]:
    """Runs a command line that must fail with one line, which it returns, and write nothing."""

    def run(*args: Any) -> str:
        said = call(*args)
        assert said.status == 2, said
        lines = [line for line in said.err.splitlines() if not _is_news(line)]
        assert len(lines) == 1, said.err
        assert lines[0].startswith("saeforest: error: ")
        assert len(lines[0]) < 700
        assert said.out == ""
        assert list(Path.cwd().iterdir()) == []
        return lines[0].removeprefix("saeforest: error: ")

    return run


def _is_news(line: str) -> bool:
    progress = " done: " in line and line.startswith(("tokenize", "harvest", "train", "index", "measure"))
    told = ": reading " in line or "predicts a plain English text badly" in line
    return progress or told or line.endswith("has no index yet; making it, once")


@pytest.fixture
def config_file(tiny_config: MakeConfig, tmp_path: Path) -> Path:
    save_config(tiny_config(), tmp_path / "tiny.yaml")
    return tmp_path / "tiny.yaml"


@pytest.fixture
def a_run(finished_run: Path, tmp_path: Path) -> Path:
    """A copy of a finished run, to be changed."""
    return Path(shutil.copytree(finished_run, tmp_path / "a_run"))
