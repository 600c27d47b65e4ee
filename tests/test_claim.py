"""Who works in a folder."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from saeforest.claim import claimed, remove_unheld
from saeforest.errors import InputError

HOLDER = """
import sys, time
from pathlib import Path
from saeforest.claim import claimed
with claimed(Path(sys.argv[1])):
    print("in", flush=True)
    time.sleep(60)
"""


def test_one_process_at_a_time(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    command = [sys.executable, "-c", HOLDER, folder]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "in\n"
        refused = pytest.raises(InputError, match=rf"run: in use by process {holder.pid} on .*; wait")
        with refused, claimed(folder):
            pass
        holder.kill()
    with claimed(folder):  # the lock died with its process
        pass
    assert list(folder.iterdir()) == []


def test_also_within_one_process(tmp_path: Path) -> None:
    with (
        claimed(tmp_path),
        pytest.raises(InputError, match=f"in use by process {os.getpid()}"),
        claimed(tmp_path),
    ):
        pass
    with claimed(tmp_path):
        pass


def test_locks_of_ended_processes_are_removed(tmp_path: Path) -> None:
    (tmp_path / ".lock-forest-topk").write_text("process 1 on another (saeforest eval)")
    (tmp_path / "other").touch()
    with claimed(tmp_path, "eval"):
        remove_unheld(tmp_path)
        assert {path.name for path in tmp_path.iterdir()} == {".lock-eval", "other"}


def test_a_folder_that_goes_away(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with claimed(folder):
        (folder / ".lock").unlink()
        folder.rmdir()
    assert not folder.exists()


def test_a_file_system_without_locks_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*args: Any) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with claimed(tmp_path):
        pass
    assert "has no locks; make sure that no other process writes there" in capsys.readouterr().err
