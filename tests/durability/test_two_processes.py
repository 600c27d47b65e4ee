"""Two processes on one folder: the second is refused and touches nothing."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from saeforest.training import loop

from .cases import Case, Cases
from .conftest import Whole
from .harness import command, contents, leftovers, same


def _started(case: Case, folder: Path, at: int, waiting: Path, go_on: Path, cases: Cases) -> int:
    """The id of a process that runs a command and, at its operation `at`, waits until `go_on` is there."""

    def wait() -> None:
        waiting.touch()
        while not go_on.exists():
            time.sleep(0.01)

    if (process := os.fork()) == 0:
        ended = command(case.argv, folder, at, wait, prepare=cases.prepare)
        os._exit(ended.status)
    for _ in range(6000):
        if waiting.exists():
            break
        time.sleep(0.01)
    return process


@pytest.mark.parametrize(
    "name", ["train", "resume", "harvest", "index", "eval", "eval flat", "synthetic", "demo"]
)
def test_a_second_process_is_refused_and_touches_nothing(
    name: str, cases: Cases, whole: Whole, tmp_path: Path
) -> None:
    n, expected = whole.of(name)
    case, folder = cases.case(name), tmp_path / "run"
    folder.mkdir()
    case.made(folder)
    waiting, go_on = tmp_path / "waiting", tmp_path / "go-on"
    first = _started(case, folder, n // 2, waiting, go_on, cases)
    try:
        before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
        (tmp_path / "elsewhere").mkdir()
        second = command(
            [_absolute(folder, arg) for arg in case.argv], tmp_path / "elsewhere", prepare=cases.prepare
        )
        assert second.status == 2, second.err
        assert "in use by process" in second.err
        assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before
    finally:
        go_on.touch()
        _, status = os.waitpid(first, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert same(contents(folder), expected) == ""


def _absolute(folder: Path, arg: object) -> object:
    return folder / str(arg) if arg in ("run", "store", "found") else arg


def test_the_claim_dies_with_its_process(cases: Cases, whole: Whole, tmp_path: Path) -> None:
    _, expected = whole.of("train")
    case, folder = cases.case("train"), tmp_path / "run"
    folder.mkdir()

    def killed_in_training() -> None:
        cases.prepare()
        loop.describe_step = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # pyright: ignore[reportAttributeAccessIssue]

    assert command(case.argv, folder, prepare=killed_in_training).status == -signal.SIGKILL
    assert (folder / "run" / ".lock").exists()
    assert command(case.argv, folder, prepare=cases.prepare).status == 0
    assert same(contents(folder), expected) == ""


def test_one_run_is_measured_and_indexed_at_the_same_time(cases: Cases, whole: Whole, tmp_path: Path) -> None:
    """They write different parts of it, and both leave what they leave alone."""
    (n, evaluated), (_, indexed) = whole.of("eval"), whole.of("index")
    case, folder = cases.case("eval"), tmp_path / "run"
    folder.mkdir()
    case.made(folder)
    waiting, go_on = tmp_path / "waiting", tmp_path / "go-on"
    first = _started(case, folder, n // 2, waiting, go_on, cases)
    try:
        second = command(cases.case("index").argv, folder, prepare=cases.prepare)
        assert second.status == 0, second.err
    finally:
        go_on.touch()
        _, status = os.waitpid(first, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert same(contents(folder), evaluated | indexed) == ""
    assert leftovers(folder) == []
