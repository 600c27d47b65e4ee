"""A kill at any file operation of a command, then the same command: it finishes, with the same bits."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import pytest

from .cases import CASES, Cases
from .conftest import Whole
from .harness import command, flaw_once_more, points

SOME = 2


@pytest.mark.parametrize("name", CASES)
def test_a_command_killed_anywhere_and_given_again_finishes(
    name: str, cases: Cases, whole: Whole, tmp_path: Path
) -> None:
    n, expected = whole.of(name)
    case = cases.case(name)
    flaws = []
    for at in points(n, SOME):
        folder = tmp_path / f"at-{at}"
        folder.mkdir()
        case.made(folder)
        killed = command(case.argv, folder, at, prepare=cases.prepare)
        if killed.status != -signal.SIGKILL:
            flaws.append(f"{at}: not killed, but ended with {killed.status}: {killed.err[-300:]}")
            continue
        if flaw := flaw_once_more(case, folder, expected, cases.prepare):
            flaws.append(f"{at}: {flaw}")
        shutil.rmtree(folder)
    assert flaws == [], f"{len(flaws)} of {len(points(n, SOME))} points of {n}"
