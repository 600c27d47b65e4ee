"""Output that nobody takes from any of its writes on: the work is done, and the status says what was lost."""

from __future__ import annotations

import errno
import io
import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from .cases import CASES, Cases
from .conftest import Whole
from .harness import Act, command, contents, every, leftovers, points, same

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer as Buffer

STREAMS = {"stdout": 1, "stderr": 2}
# All kinds of failure on both streams where every moment is tried; else each command gets one of them.
KINDS = [(stream, error) for stream in STREAMS for error in ("EPIPE", "ENOSPC")]
TRIED = [
    (name, *kind)
    for i, name in enumerate(CASES)
    for j, kind in enumerate(KINDS)
    if every() or i % len(KINDS) == j
]


class Broken(io.RawIOBase):
    """A stream that takes `at` writes and none after them; `count` is a file with the number that were tried."""

    def __init__(self, descriptor: int, at: int, code: int, count: Path) -> None:
        self._descriptor, self._at, self._code, self._count, self._seen = descriptor, at, code, count, 0

    def writable(self) -> bool:
        return True

    def write(self, data: Buffer, /) -> int:
        self._seen += 1
        self._count.write_text(str(self._seen))
        if self._seen > self._at:
            raise OSError(self._code, os.strerror(self._code))
        return os.write(self._descriptor, data)


def breaking(stream: str, at: int, code: int, count: Path, prepare: Act) -> Act:
    def act() -> None:
        prepare()
        raw = Broken(STREAMS[stream], at, code, count)
        setattr(
            sys, stream, io.TextIOWrapper(io.BufferedWriter(raw), write_through=True, line_buffering=True)
        )

    return act


@pytest.mark.parametrize(("name", "stream", "error"), TRIED)
def test_output_that_fails_at_any_write_costs_nothing_but_itself(
    name: str, stream: str, error: str, cases: Cases, whole: Whole, tmp_path: Path
) -> None:
    _, expected = whole.of(name)
    case, code, flaws, count = cases.case(name), getattr(errno, error), [], tmp_path / "count"

    def one(at: int, status: int) -> None:
        folder = tmp_path / f"at-{at}"
        folder.mkdir()
        case.made(folder)
        count.write_text("0")
        ended = command(case.argv, folder, prepare=breaking(stream, at, code, count, cases.prepare))
        if ended.status != status or "Traceback" in ended.err:
            flaws.append(f"{at}: status {ended.status}: {ended.err[-500:]}")
        elif differing := same(contents(folder), expected):
            flaws.append(f"{at}: other {differing}")
        elif left := leftovers(folder):
            flaws.append(f"{at}: left {left}")
        shutil.rmtree(folder)

    one(1 << 30, 0)
    n = int(count.read_text())
    tried = points(n, 1, code) if n else []  # `index` writes nothing to stdout
    for at in tried:
        one(at, 1)
    assert flaws == [], f"{len(flaws)} of {len(tried)} writes of {n}"
