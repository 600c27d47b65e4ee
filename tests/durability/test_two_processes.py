"""Two processes on one folder: the second is refused and touches nothing."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from saeforest.training import loop

from .cases import Cases
from .conftest import Whole
from .harness import command, contents, same


@pytest.mark.parametrize("name", ["train", "resume", "harvest", "index", "synthetic", "demo"])
def test_a_second_process_is_refused_and_touches_nothing(
    name: str, cases: Cases, whole: Whole, tmp_path: Path
) -> None:
    n, expected = whole.of(name)
    case, folder = cases.case(name), tmp_path / "run"
    folder.mkdir()
    case.made(folder)
    waiting, go_on = tmp_path / "waiting", tmp_path / "go-on"

    def wait() -> None:
        waiting.touch()
        while not go_on.exists():
            time.sleep(0.01)

    first = os.fork()
    if first == 0:
        ended = command(case.argv, folder, n // 2, wait, prepare=cases.prepare)
        os._exit(ended.status)
    try:
        for _ in range(6000):
            if waiting.exists():
                break
            time.sleep(0.01)
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
