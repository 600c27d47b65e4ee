"""Files: whole or absent, bounded, and checked."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from saeforest.errors import InputError
from saeforest.files import (
    CHECKSUM,
    atomic_file,
    atomic_folder,
    checksum,
    is_temporary,
    parse_json,
    read_json,
    read_tensors,
    read_yaml,
    remove_leftovers,
    write_json,
    write_tensors,
)

#: Each list holds the one before it ten times.
BOMB = "".join(f"{b}: &{b} [{','.join(['*' + a] * 10)}]\n" for a, b in pairwise("abcdefghij"))
KILLED = """
import os, signal, sys
from pathlib import Path
from saeforest import files
folder = Path(sys.argv[1])
def die(*args): os.kill(os.getpid(), signal.SIGKILL)
if sys.argv[2] == "file":
    with files.atomic_file(folder / "a.json") as path:
        path.write_text("half")
        die()
if sys.argv[2] == "folder":
    with files.atomic_folder(folder / "sae") as path:
        (path / "half").write_text("half")
        die()
if sys.argv[2] == "replaced":
    real = files.Path.replace
    files.Path.replace = lambda a, b: die() if a.name.startswith(".saeforest-") else real(a, b)
    with files.atomic_folder(folder / "sae") as path:
        (path / "new").write_text("new")
"""


def killed_while_writing(folder: Path, what: str) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, folder, what], check=False)
    assert done.returncode == -signal.SIGKILL
    assert any(map(is_temporary, folder.iterdir()))


@pytest.mark.parametrize("what", ["file", "folder"])
def test_what_a_killed_process_left_is_removed(tmp_path: Path, what: str) -> None:
    killed_while_writing(tmp_path, what)
    assert len(remove_leftovers(tmp_path)) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_taken_away_before_it_is_locked_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, real = [], tempfile.mkdtemp

    def taken_away_once(**where: Any) -> str:
        made.append(real(**where))
        if len(made) == 1:
            assert remove_leftovers(tmp_path) == [Path(made[0])]
        return made[-1]

    monkeypatch.setattr(tempfile, "mkdtemp", taken_away_once)
    with atomic_file(tmp_path / "a") as file:
        file.write_text("whole")
    assert (tmp_path / "a").read_text() == "whole"
    assert len(made) == 2


def test_what_was_being_replaced_goes_back_to_its_place(tmp_path: Path) -> None:
    (tmp_path / "sae").mkdir()
    (tmp_path / "sae" / "old").write_text("old")
    killed_while_writing(tmp_path, "replaced")
    assert not (tmp_path / "sae").exists()
    remove_leftovers(tmp_path)
    assert [p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*")] == ["sae", "sae/old"]


def test_what_is_being_written_stays(tmp_path: Path) -> None:
    with atomic_file(tmp_path / "a") as file, atomic_folder(tmp_path / "b") as folder:
        file.write_text("a")
        (folder / "c").write_text("c")
        assert remove_leftovers(tmp_path) == []
    assert (tmp_path / "a").read_text() == "a"
    assert (tmp_path / "b" / "c").read_text() == "c"


def test_a_name_as_long_as_the_file_system_takes(tmp_path: Path) -> None:
    write_json(tmp_path / ("x" * 255), {})
    assert len(list(tmp_path.iterdir())) == 1


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with atomic_file(tmp_path / "a") as file:
        file.write_text("a")
        assert remove_leftovers(tmp_path) == []  # who can tell?
    assert (tmp_path / "a").read_text() == "a"


def test_an_error_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space") as error:
        write_json(tmp_path / "a.json", {})
    assert error.value.filename == str(tmp_path / "a.json")
    assert list(tmp_path.iterdir()) == []


def read_or_refused(read: Callable[[Path], Any], path: Path) -> Any:
    """What was read; None where a line that names the file refuses it."""
    try:
        return read(path)
    except InputError as error:
        if str(path) in str(error) and len(str(error)) < 1000:
            return None
        raise


# JSON


@pytest.mark.parametrize("data", [{"a": 1.5, "b": [1, (2, 3)], "é": None}, {}, [1, 2], "text", 3])
def test_json_comes_back(tmp_path: Path, data: Any) -> None:
    write_json(tmp_path / "a.json", data)
    assert read_json(tmp_path / "a.json") == json.loads(json.dumps(data))


def test_every_flipped_bit_of_json_is_noticed_or_does_not_matter(tmp_path: Path) -> None:
    path, data = tmp_path / "a.json", {"value": 0.5871, "tokens": 4096, "names": ["fve", "l0"]}
    write_json(path, data)
    right = path.read_bytes()
    for bit in range(8 * len(right)):
        wrong = bytearray(right)
        wrong[bit // 8] ^= 1 << bit % 8
        path.write_bytes(wrong)
        found = read_or_refused(read_json, path)
        # Its own checksum may lose its name, and white space is no content.
        assert found is None or {key: found[key] for key in data} == data


def test_edited_json_says_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    data = json.loads(path.read_text())
    path.write_text(json.dumps({**data, "a": 2}))
    with pytest.raises(InputError, match="edited on purpose, delete that key"):
        read_json(path)
    del data[CHECKSUM]
    path.write_text(json.dumps({**data, "a": 2}))
    assert read_json(path) == {"a": 2}


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, "[" * 200 + "]" * 200, '{"a":' * 900 + "1" + "}" * 900, "1" * 5000, "-" + "9" * 40, "1e999", "NaN",
     "-Infinity", "{", '"\\ud8"', "\ufeff\ufeff{}"],
)  # fmt: skip
def test_json_beyond_reason_is_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=r"a\.json") as error:
        read_json(path)
    assert len(str(error.value)) < 400
    with pytest.raises(InputError, match=r"b.jsonl:7"):
        parse_json(text, "b.jsonl:7")


@pytest.mark.parametrize(
    "text",
    ["2020-99-99", "!!int abc", "!!bool 3", "!!float x", "!!python/object:os.system {}", "[" * 5000, "{a: " * 200,
     "a: " + "1" * 5000, "\x00", "a: b: c", "? [1]\n: 2", "!!timestamp x", "*nobody",
     "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + BOMB],
)  # fmt: skip
def test_yaml_beyond_reason_is_one_line_or_plain(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(text, encoding="utf-8")
    json.dumps(read_or_refused(read_yaml, path))


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "a.json").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(InputError, match=r"1,099,511,627,776 bytes; expected at most"):
        read_json(tmp_path / "a.json")


# Tensors


def test_every_flipped_bit_of_tensors_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    expected = write_tensors(path, {"a": torch.arange(3.0)})
    assert expected == checksum(path)
    right = path.read_bytes()
    for bit in range(8 * len(right)):
        wrong = bytearray(right)
        wrong[bit // 8] ^= 1 << bit % 8
        path.write_bytes(wrong)
        with pytest.raises(InputError, match=r"a.safetensors: damaged.*; do this"):
            read_tensors(path, expected, "do this")
    path.unlink()
    with pytest.raises(InputError, match="no such file; do this"):
        read_tensors(path, expected, "do this")
