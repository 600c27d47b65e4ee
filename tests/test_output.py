"""What is printed: shown and never obeyed, and never in the way of the work."""

from __future__ import annotations

import errno
import io
import os
import subprocess
import sys

import pytest
from rich.table import Table

from saeforest import cli
from saeforest.output import note, printable, results, say, status, steady

HOSTILE = "x\x1b[31mred\x1b[0m\r\n\t\x07[bold]b[/] \u202edlrow\x9b:smile: [/red]\x7f\u2028z"
SHOWN = "x␛[31mred␛[0m↵⇥␇[bold]b[/] �dlrow�:smile: [/red]�↵z"


def test_printable_leaves_no_control_characters() -> None:
    assert printable(HOSTILE) == SHOWN


def test_lines_are_shown_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    say(HOSTILE)
    note(HOSTILE)
    assert capsys.readouterr() == (SHOWN + "\n", SHOWN + "\n")


def test_a_line_has_an_end(capsys: pytest.CaptureFixture[str]) -> None:
    note("x" * 100_000)
    said = capsys.readouterr().err
    assert len(said) < 4_100
    assert said.endswith("… (100,000 characters)\n")


def test_tables_obey_no_markup_and_no_escape(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table(title="[/x] \x1b[2J")
    table.add_column("[link=http://x]name\x1b[0m")
    table.add_row("[bold]value[/] \x1b]0;title\x07")
    results().print(table)
    results().print("[/red] :smile: \x1b[31m")
    status.print("[/red]")
    out, err = capsys.readouterr()
    assert "\x1b" not in out
    assert all(
        part in out for part in ("[/x] ␛[2J", "name␛[0m", "[bold]value[/] ␛]0;title␇", "[/red] :smile:")
    )
    assert err == "[/red]\n"


def test_results_in_a_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(raw, encoding="latin-1"))
    console = results()
    assert (console.width, console.is_terminal) == (100, False)
    console.print("↵")
    console.file.flush()
    assert raw.getvalue() == b"?\n"


class Broken(io.StringIO):
    """A stream that fails as a full disk or a closed pipe does."""

    def __init__(self, error: int) -> None:
        super().__init__()
        self.error = error

    def write(self, s: str) -> int:
        raise OSError(self.error, os.strerror(self.error))


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EPIPE, errno.EIO])
@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_output_that_cannot_be_written_is_dropped(
    monkeypatch: pytest.MonkeyPatch, stream: str, error: int
) -> None:
    monkeypatch.setattr(sys, stream, Broken(error))
    with steady() as lost:
        say("a result")
        note("a note")
        results().print("a table")
        assert lost
    with steady() as lost:
        assert not lost


def test_streams_that_were_never_open_lose_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    with steady() as lost:
        say("a result")
        note("a note")
        results().print("a table")
    assert not lost
    assert cli.run(["--version"]) == 0


def test_a_result_that_was_lost_makes_the_status_1(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", Broken(errno.EPIPE))
    assert cli.run(["--version"]) == 1
    assert cli.run(["no-such-command"]) == 2


@pytest.mark.parametrize(("redirect", "expected"), [(">/dev/full", 1), (">&-", 0), ("2>/dev/full", 0)])
def test_the_status_of_the_process(redirect: str, expected: int) -> None:
    command = f"{sys.executable} -m saeforest --version {redirect}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode == expected
    assert "Exception" not in done.stderr
