"""Signals that ask to stop, at any file operation: what was kept is said, and the same command goes on from there."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import pytest

from .cases import CASES, Cases
from .conftest import Whole
from .harness import command, contents, every, flaw_once_more, points, same, tell

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
SOME = 1
# Every signal with every command where all moments are tried; else each command gets one of them in turn.
TRIED = [
    (name, signum)
    for i, name in enumerate(CASES)
    for j, signum in enumerate(SIGNALS)
    if every() or i % 4 == j
]


@pytest.mark.parametrize(("name", "signum"), TRIED, ids=str)
def test_a_command_told_to_stop_can_be_given_again(
    name: str, signum: signal.Signals, cases: Cases, whole: Whole, tmp_path: Path
) -> None:
    n, expected = whole.of(name)
    case, flaws = cases.case(name), []
    for at in points(n, SOME, signum):
        folder = tmp_path / f"at-{at}"
        folder.mkdir()
        case.made(folder)
        stopped = command(case.argv, folder, at, tell(signum), prepare=cases.prepare)
        # Where nothing is left but the last lines, it may end as if it had not been told.
        if stopped.status not in (0, 128 + signum) or "Traceback" in stopped.err:
            flaws.append(f"{at}: status {stopped.status}: {stopped.err[-700:]}")
        if flaw := flaw_once_more(case, folder, expected, cases.prepare):
            flaws.append(f"{at}: {flaw}")
        shutil.rmtree(folder)
    assert flaws == [], f"{len(flaws)} of {len(points(n, SOME, signum))} points of {n}"


def test_signals_that_were_ignored_stay_ignored(cases: Cases, whole: Whole, tmp_path: Path) -> None:
    """As `nohup` has it: the session ends, the training does not."""
    n, expected = whole.of("train")
    case, folder = cases.case("train"), tmp_path / "run"
    folder.mkdir()

    def nohup() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        cases.prepare()

    ended = command(case.argv, folder, n // 2, tell(signal.SIGHUP), prepare=nohup)
    assert ended.status == 0
    assert same(contents(folder), expected) == ""
