"""The progress line: never longer than the terminal, whatever its width, the text and the signs in it."""

from __future__ import annotations

import io
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from contextlib import suppress
from fcntl import ioctl

import pytest
from rich.cells import cell_len
from rich.console import Console

from saeforest import progress as module
from saeforest.progress import progress

LONG = "train \u6a21\u578b-" + "very/long/path/" * 12
CASES = [
    ("train demo", "FVE 0.812, L0 32.0"),
    (LONG, "note " * 40),
    ("\u6a21" * 60, "\u578b" * 60),
    ("x", ""),
]


def lines_at(width: int, description: str, note: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a terminal of a width is shown, each state of the line."""
    out = io.StringIO()
    console = Console(
        file=out, force_terminal=True, width=width, height=24, color_system=None, legacy_windows=False
    )
    monkeypatch.setattr(module, "status", console)
    with progress(description, 4_000_000) as advance:
        advance(1_234_567, note)
        advance(2_000_000, note)
    return [line for line in map(plain, re.split(r"[\r\n]", out.getvalue())) if line]


def plain(text: str) -> str:
    """The text without what moves the cursor and sets colors."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


@pytest.mark.parametrize(("description", "note"), CASES, ids=["usual", "long", "wide signs", "short"])
def test_no_line_is_longer_than_the_terminal(
    description: str, note: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for width in (*range(5, 60), 79, 80, 81, 100, 133, 200):
        lines = lines_at(width, description, note, monkeypatch)
        assert lines
        assert max(map(cell_len, lines)) <= width, (width, lines)
        assert "%" in lines[-1], (width, lines)


def test_a_usual_terminal_has_room_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    (*_, last) = lines_at(100, *CASES[0], monkeypatch)
    assert last.startswith("train demo ")
    assert " 81% " in last
    assert "tokens/s" in last
    assert "FVE 0.812, L0 32.0" in last
    (*_, last) = lines_at(44, *CASES[0], monkeypatch)
    assert last.startswith("train demo ")
    assert "FVE" not in last


def test_a_note_that_is_cut_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    (*_, last) = lines_at(120, "train", "note " * 40, monkeypatch)
    assert last.rstrip().endswith("\u2026")


def test_elsewhere_a_line_at_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    with progress(LONG, 10, "batches") as advance:
        advance(10)
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert "done: 10 batches in" in err


def in_a_terminal(code: str, *widths: int) -> str:
    """What Python writes to a pseudo-terminal of the first width, which changes to the others while it runs."""
    ours, theirs = pty.openpty()
    ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, widths[0], 0, 0))
    environment = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES", "NO_COLOR")}
    child = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**environment, "TERM": "xterm"},
    )
    found = b""
    for width in widths[1:]:
        while b"%" not in found:  # it is running
            found += os.read(ours, 65536)
        ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
    os.close(theirs)
    with suppress(OSError):  # which says that nobody writes any more
        while part := os.read(ours, 65536):
            found += part
    os.close(ours)
    assert child.wait(60) == 0
    return found.decode()


def test_a_terminal_that_is_resized() -> None:
    code = f"""
import time
from saeforest.progress import progress
with progress({LONG!r}, 20) as advance:
    for _ in range(20):
        advance(1, "note " * 40)
        time.sleep(0.1)
"""
    text = in_a_terminal(code, 120, 40)
    widths = [cell_len(line) for line in map(plain, re.split(r"[\r\n]", text)) if line]
    assert 40 < widths[0] <= 120
    assert max(widths) <= 120
    assert 0 < widths[-1] <= 40


def test_the_first_step_does_not_count_for_the_rate(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr("saeforest.progress.time.monotonic", lambda: now)
    with progress("train", total=1_000) as advance:
        now += 60  # compilation
        advance(100)
        now += 20
        advance(100)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].split() == ["train", "10%"]
    assert lines[1].split() == ["train", "20%", "5", "tokens/s", "2:40", "left"]
    assert lines[2].endswith("200 tokens in 1:20 (2 tokens/s)")
