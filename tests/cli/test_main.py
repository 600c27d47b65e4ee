"""The frame of all commands: one line for every mistake, exit codes, and what starting costs."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable

import pytest

import saeforest
from saeforest import cli

from .said import Call


def test_without_a_command_the_commands_are_listed(call: Call) -> None:
    said = call()
    assert said.status == 2
    for command in cli.COMMANDS:
        assert re.search(rf"^  {command} ", said.out, re.MULTILINE)
    assert call("--help").status == 0
    assert "Exit codes: 0 done" in said.out
    assert max(map(len, said.out.splitlines())) <= 80
    assert len(said.out.splitlines()) <= 24
    assert call("--version").out == f"{saeforest.__version__}\n"


def test_starting_loads_no_pytorch() -> None:
    """It takes seconds, which help and a typing error should not, where the options do not need it."""
    lines = ["--version", "--help", "verify --help", "show --help-all", "compare", "trian"]
    codes = f"[cli.run(line.split()) for line in {lines}]"
    told = f"import sys; from saeforest import cli; print({codes}, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[0, 0, 0, 0, 2, 2] False"


@pytest.mark.parametrize(
    ("args", "names"),
    [
        (["trian"], "command 'trian': expected one of"),
        (["trian"], "did you mean train?"),
        (["train", "dmo"], "preset 'dmo'"),
        (["train", "dmo"], "did you mean demo?"),
        (["train", "--tokenz", "5"], "--tokenz"),
        (["train", "--tokens", "many"], "--tokens"),
        (["train", "--tokens"], "--tokens"),
        (["train", "--optim.lr", "fast"], "--optim.lr"),
        (["train", "--lm.dtype", "float16"], "--lm.dtype"),
        (["train", "--sae.layer-sizes", "5", "x"], "--sae.layer-sizes"),
        (["train", "--tokens", "0"], "tokens = 0"),
        (["train", "--config"], "--config"),
        (["train", "--config", "/nowhere.yaml"], "/nowhere.yaml: no such file"),
        (["train", "demo", "--config", "x.yaml"], "give one of them"),
        (["train", "--resume", "--out", "nothing"], "nothing: nothing to resume; expected a folder"),
        (["train", "--resume"], "runs/demo: nothing to resume; expected a folder"),
        (["eval"], "RUN"),
        (["eval", "nowhere"], "nowhere"),
        (["eval", "nowhere", "--measures", "speed"], "measure 'speed'"),
        (["eval", "nowhere", "--tokens", "0"], "tokens = 0"),
        (["eval", "nowhere", "--ce-tokens", "-1"], "ce_tokens = -1"),
        (["index", "nowhere"], "nowhere"),
        (["index", "nowhere", "--tokens", "0"], "--tokens 0"),
        (["show"], "RUN"),
        (["show", "nowhere"], "nowhere"),
        (["show", "nowhere", "five"], "nowhere"),
        (["show", "nowhere", "-n", "0"], "families"),
        (["harvest"], "--out"),
        (["demo", "--tokens", "-5"], "--tokens -5"),
        (["demo", "--tokens", "x"], "--tokens"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_one_line_that_names_it(args: list[str], names: str, fails: Callable[..., str]) -> None:
    assert names in fails(*args)
