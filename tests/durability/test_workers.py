"""Workers of a harvest that run at the same time, and are killed: the store has the bits of one process."""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path
from typing import Any

import pytest

from saeforest.activations import writer
from saeforest.claim import claimed

from .cases import Cases
from .harness import command, contents, every, leftovers, same

WORKERS = 2


def _worker(cases: Cases, folder: Path, index: int, at: int = -1) -> int:
    """The process of a worker that kills itself at its file operation `at`."""
    argv: list[Any] = [*cases.case("harvest").argv, "--worker", index, "--of", WORKERS]
    if (process := os.fork()) == 0:
        # Each has a folder of its own for what it says.
        status = 70
        try:
            status = command(
                argv, folder, at, prepare=lambda: _prepare(cases), talk_to=f"talk-{index}"
            ).status
        finally:
            os._exit(-status if status < 0 else status)
    return process


def _prepare(cases: Cases) -> None:
    cases.prepare()
    writer.SHARD_ROWS = 120


def _ended(process: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


@pytest.fixture(scope="module")
def alone(cases: Cases, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("alone")
    ended = command(cases.case("harvest").argv, folder, prepare=lambda: _prepare(cases))
    assert ended.status == 0, ended.err
    return ended.operations, contents(folder)


@pytest.mark.parametrize("seed", range(20 if every() else 1))
def test_workers_killed_at_random_moments_and_started_again_finish(
    seed: int, cases: Cases, alone: tuple[int, dict[str, Any]], tmp_path: Path
) -> None:
    n, expected = alone
    assert sum("shard-" in name for name in expected) >= 4
    moments = random.Random(seed)
    folder = tmp_path / "at"
    folder.mkdir()
    for _ in range(2):
        started = [_worker(cases, folder, i, moments.randrange(n // WORKERS)) for i in range(WORKERS)]
        assert {_ended(process) for process in started} <= {0, signal.SIGKILL}
    started = [_worker(cases, folder, i) for i in range(WORKERS)]
    assert [_ended(process) for process in started] == [0] * WORKERS
    assert same(contents(folder), expected) == ""
    assert leftovers(folder) == []


def test_two_workers_at_once_finish_by_themselves(
    cases: Cases, alone: tuple[int, dict[str, Any]], tmp_path: Path
) -> None:
    folder = tmp_path / "at"
    folder.mkdir()
    started = [_worker(cases, folder, i) for i in range(WORKERS)]
    assert [_ended(process) for process in started] == [0] * WORKERS
    assert same(contents(folder), alone[1]) == ""
    assert leftovers(folder) == []


def test_the_same_worker_twice_is_refused(cases: Cases, tmp_path: Path) -> None:
    argv = [*cases.case("harvest").argv, "--worker", 1, "--of", 2]
    with claimed(tmp_path / "run" / "store", "worker-1-of-2"):
        refused = command(argv, tmp_path / "run", prepare=cases.prepare)
    assert refused.status == 2
    assert "in use by process" in refused.err
