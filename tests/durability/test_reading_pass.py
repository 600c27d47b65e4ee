"""A run in memory that is killed again and again while the language model reads: no second pass."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from saeforest.activations import ActivationReader

from .cases import Cases
from .harness import command, contents, every, leftovers, same


def test_kills_while_reading_cost_no_second_pass(cases: Cases, tmp_path: Path) -> None:
    """One window at a time, and every process is killed when it has kept one more."""
    windows = 22 if every() else 10
    argv = [*cases.case("train").argv, "--lm.batch-size", "1", "--tokens", str(32 * windows)]
    whole, folder, counted = tmp_path / "whole", tmp_path / "run", tmp_path / "windows"
    whole.mkdir()
    folder.mkdir()
    assert command(argv, whole, prepare=cases.prepare).status == 0

    def killed_at_the_third_window() -> None:
        cases.prepare()
        begin, calls = ActivationReader._begin, iter(range(10**6))

        def count(self: ActivationReader, tokens: object, windows: object) -> object:
            with counted.open("a") as file:
                file.write(f"{len(windows)}\n")  # pyright: ignore[reportArgumentType]
            if next(calls) == 2:  # the reading is one window ahead of what is kept
                time.sleep(0.2)  # as long as a disk may take for what was handed to it before
                os.kill(os.getpid(), signal.SIGKILL)
            return begin(self, tokens, windows)  # pyright: ignore[reportArgumentType]

        ActivationReader._begin = count  # pyright: ignore[reportAttributeAccessIssue]

    kills = 0
    while (ended := command(argv, folder, prepare=killed_at_the_third_window)).status != 0:
        assert ended.status == -signal.SIGKILL, ended.err
        kills += 1
        assert kills <= windows, "it does not get on"
    assert kills >= windows - 2
    assert same(contents(folder), contents(whole)) == ""
    assert leftovers(folder) == []
    # Every window once, and with each kill the one under way, the one ahead, and the one whose norms are looked at.
    assert sum(map(int, counted.read_text().split())) <= windows + 3 * kills
