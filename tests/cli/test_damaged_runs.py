"""Commands on runs that are damaged: one line that names the file."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from edits import edit_run_config, forget_checksums
from llama_cases import save_llama

from .said import FINISHED, Call

COMMANDS = [["show"], ["show", "3"], ["eval"], ["index"]]


def on(command: list[str], run: Path) -> list[Any]:
    return [command[0], run, *command[1:]]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_damaged_weights_name_their_file(command: list[str], a_run: Path, fails: Callable[..., str]) -> None:
    file = a_run / "sae" / "sae_weights.safetensors"
    file.write_bytes(file.read_bytes()[:-7])
    assert str(file) in fails(*on(command, a_run))
    assert {p.name for p in a_run.iterdir()} == FINISHED


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_weights_with_a_nan_name_their_file(
    command: list[str], a_run: Path, fails: Callable[..., str]
) -> None:
    file = a_run / "sae" / "sae_weights.safetensors"
    weights = load_file(file)
    weights["W_dec"][3, 3] = float("nan")
    save_file(weights, file)
    assert "does not match its checksum" in fails(*on(command, a_run))
    forget_checksums(file.parent)
    assert "tensor 'W_dec' holds NaN" in fails(*on(command, a_run))


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
@pytest.mark.parametrize("missing", ["config.yaml", "sae", "sae/cfg.json"])
def test_a_run_without_a_part_of_it(
    missing: str, command: list[str], a_run: Path, fails: Callable[..., str]
) -> None:
    path = a_run / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert str(a_run) in fails(*on(command, a_run))


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_an_sae_of_another_width_than_the_site(
    command: list[str], a_run: Path, tmp_path: Path, fails: Callable[..., str]
) -> None:
    """config.yaml was edited to another model."""
    other = save_llama(tmp_path / "wide", width=24)
    edit_run_config(a_run, model=str(other))
    said = fails(*on(command, a_run))
    assert "has width 24, but the SAE's is 16" in said
    assert {p.name for p in a_run.iterdir()} == FINISHED


def test_a_model_that_is_gone(a_run: Path, fails: Callable[..., str]) -> None:
    edit_run_config(a_run, model="/gone/model")
    assert "/gone/model" in fails("eval", a_run)


def test_too_little_held_out_text(a_run: Path, fails: Callable[..., str]) -> None:
    assert "at least one window of 32 tokens" in fails("eval", a_run, "--tokens", "5")


def test_an_index_of_another_sae_is_told(a_run: Path, finished_run: Path, call: Call) -> None:
    assert call("index", a_run, "--tokens", "640").status == 0
    file = a_run / "sae" / "sae_weights.safetensors"
    weights = load_file(file)
    weights["W_dec"] = weights["W_dec"].roll(1, 0).contiguous()
    save_file(weights, file)
    said = call("show", a_run)
    assert said.status == 2
    assert "index" in said.err
    assert len(said.err.splitlines()) == 1
