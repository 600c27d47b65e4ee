"""A disk that fails at any file operation: a line, nothing half-written, and the same command finishes later."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest

from .cases import CASES, Cases
from .conftest import Whole
from .harness import command, contents, fail, flaw_once_more, leftovers, points, same

SOME = 1
# A folder that cannot be opened for its removal, say, is nobody's loss: the work is done.
_FINE = (0, 2)


@pytest.mark.parametrize("error", ["ENOSPC", "EIO"])
@pytest.mark.parametrize("name", CASES)
def test_a_command_on_a_failing_disk_says_so_and_can_be_given_again(
    name: str, error: str, cases: Cases, whole: Whole, tmp_path: Path
) -> None:
    n, expected = whole.of(name)
    case, flaws = cases.case(name), []
    code = getattr(errno, error)
    for at in points(n, SOME, code):
        folder = tmp_path / f"at-{at}"
        folder.mkdir()
        case.made(folder)
        failed = command(case.argv, folder, at, fail(code), prepare=cases.prepare)
        if failed.status not in _FINE or "Traceback" in failed.err:
            flaws.append(f"{at}: status {failed.status}: {failed.err[-700:]}")
        elif failed.status == 2 and len(_errors(failed.err)) != 1:
            flaws.append(f"{at}: no line, or several: {failed.err[-500:]}")
        elif flaw := flaw_once_more(case, folder, expected, cases.prepare):
            flaws.append(f"{at}: {flaw}")
        shutil.rmtree(folder)
    assert flaws == [], f"{len(flaws)} of {len(points(n, SOME, code))} points of {n}"


def _errors(said: str) -> list[str]:
    return [line for line in said.splitlines() if line.startswith("saeforest: error: ")]


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_training_whose_output_nobody_can_take_ends_well(
    stream: str, cases: Cases, whole: Whole, tmp_path: Path
) -> None:
    """A pipe without a reader, from the first line on: the training ends, and its status says what was lost."""
    _, expected = whole.of("train")
    case, folder = cases.case("train"), tmp_path / "run"
    folder.mkdir()

    def closed() -> None:
        read, write = os.pipe()
        os.close(read)
        os.dup2(write, {"stdout": 1, "stderr": 2}[stream])
        os.close(write)
        cases.prepare()

    ended = command(case.argv, folder, prepare=closed)
    assert ended.status == 1
    assert same(contents(folder), expected) == ""
    assert leftovers(folder) == []
