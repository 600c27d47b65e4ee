"""A run in memory that is killed again and again while the language model reads: no second pass."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from saeforest.activations import ActivationReader

from .cases import Cases
from .conftest import Whole
from .harness import command, contents, leftovers, same


def test_twenty_kills_while_reading_cost_no_second_pass(cases: Cases, whole: Whole, tmp_path: Path) -> None:
    _, expected = whole.of("train")
    case, folder, counted = cases.case("train"), tmp_path / "run", tmp_path / "windows"
    folder.mkdir()

    def killed_after_two_batches() -> None:
        cases.prepare()
        begin, calls = ActivationReader._begin, iter(range(10**6))

        def count(self: ActivationReader, tokens: object, windows: object) -> object:
            with counted.open("a") as file:
                file.write(f"{len(windows)}\n")  # pyright: ignore[reportArgumentType]
            # The reading is one batch ahead; the norms are read once, by the first process.
            if next(calls) == 2:
                time.sleep(0.3)  # as long as a disk may take for what was handed to it before
                os.kill(os.getpid(), signal.SIGKILL)
            return begin(self, tokens, windows)  # pyright: ignore[reportArgumentType]

        ActivationReader._begin = count  # pyright: ignore[reportAttributeAccessIssue]

    kills = 0
    while (ended := command(case.argv, folder, prepare=killed_after_two_batches)).status != 0:
        assert ended.status == -signal.SIGKILL, ended.err
        kills += 1
        assert kills < 40
    assert kills >= 2
    assert same(contents(folder), expected) == ""
    assert leftovers(folder) == []
    read = sum(map(int, counted.read_text().split()))
    # Per kill: the batch for the norms, the one that was under way, and the one that was not kept yet.
    assert read <= 32 + (kills + 1) * 3 * 8
