"""The completion scripts: valid in their shells, and completing what each of them is asked for."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from saeforest import cli
from saeforest.presets import PRESETS

from .said import Call

SHELLS = ("bash", "zsh", "fish", "tcsh")


@pytest.fixture
def bash(call: Call, tmp_path: Path) -> Path:
    said = call("--print-completion", "bash")
    assert (said.status, said.err) == (0, "")
    script = tmp_path / "completion.bash"
    script.write_text(said.out)
    return script


def completed(script: Path, *words: str) -> list[str]:
    """What bash offers for the last of the words."""
    told = 'source "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _saeforest; printf "%s\\n" "${COMPREPLY[@]}"'
    done = subprocess.run(
        ["bash", "-c", told, "bash", str(script), "saeforest", *words],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    return done.stdout.split()


def test_bash_completes_commands_options_and_values(bash: Path) -> None:
    assert subprocess.run(["bash", "-n", str(bash)], check=False).returncode == 0
    assert set(cli.COMMANDS) <= set(completed(bash, ""))
    assert completed(bash, "ev") == ["eval"]
    assert completed(bash, "train", "--dry") == ["--dry-run"]
    assert completed(bash, "eval", "run", "--judge.mo") == ["--judge.model"]
    assert completed(bash, "train", "--lm.dtype", "") == ["auto", "float32", "bfloat16"]
    assert completed(bash, "train", "--lm.dtype", "=", "b") == ["bfloat16"]
    assert completed(bash, "train", "demo-") == [name for name in PRESETS if name.startswith("demo-")]
    assert completed(bash, "eval", "run", "--measures", "fas") == ["fast"]
    assert completed(bash, "--print-completion", "z") == ["zsh"]
    # Files are bash's own part, where nothing is offered.
    assert completed(bash, "show", "ru") == completed(bash, "train", "--out", "ru") == []


@pytest.mark.parametrize("shell", SHELLS[1:3])
def test_the_scripts_of_other_shells_are_valid(shell: str, call: Call, tmp_path: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    (tmp_path / "script").write_text(call("--print-completion", shell).out)
    assert subprocess.run([shell, "-n", str(tmp_path / "script")], check=False).returncode == 0


@pytest.mark.parametrize("shell", SHELLS)
def test_every_script_knows_every_command(shell: str, call: Call) -> None:
    said = call(f"--print-completion={shell}")
    assert said.status == 0
    for part in (*cli.COMMANDS, "layer-sizes", "bfloat16"):
        assert part in said.out


def test_an_unknown_shell(call: Call) -> None:
    for args in (["--print-completion", "ksh"], ["--print-completion"], ["--print-completion", "bash", "x"]):
        said = call(*args)
        assert (said.status, said.out) == (2, "")
        assert said.err.startswith("saeforest: error: ")
        assert len(said.err.splitlines()) == 1
