"""Files that are damaged, packed, endless or no files: each is one line that names file and line."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from saeforest.text import documents
from text_cases import error_line, read, reading_error, write_jsonl

TEXTS = [f"document {i} " + "é" * 50 for i in range(200)]
PACK: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".zst": zstandard.ZstdCompressor().compress,
}


def packed(path: Path, inner: str, suffix: str) -> Path:
    """A file of texts in a packed form, of two pieces one after the other."""
    lines = [json.dumps({"text": text}) + "\n" for text in TEXTS]
    parts = ["".join(lines[:90]), "".join(lines[90:])]
    if inner == ".csv":
        parts = ["text\n" + "\n".join(TEXTS[:90]), "\n" + "\n".join(TEXTS[90:])]
    if inner == ".json":
        parts = ["[" + ",".join(lines[:90]), "," + ",".join(lines[90:]) + "]"]
    path = path / f"d{inner}{suffix}"
    path.write_bytes(b"".join(PACK[suffix](part.encode()) for part in parts))
    return path


@pytest.mark.parametrize("suffix", PACK)
@pytest.mark.parametrize("inner", [".jsonl", ".csv", ".json"])
def test_packed_files(inner: str, suffix: str, tmp_path: Path):
    path = packed(tmp_path, inner, suffix)
    assert read(path) == TEXTS
    assert read(path.rename(path.with_name(path.name.upper()))) == TEXTS


@pytest.mark.parametrize("suffix", PACK)
@pytest.mark.parametrize("damage", ["cut", "flipped", "other"])
def test_damaged_packed_files(suffix: str, damage: str, tmp_path: Path):
    path = packed(tmp_path, ".jsonl", suffix)
    data = bytearray(path.read_bytes())
    if damage == "cut":
        data = data[:-5]
    elif damage == "flipped":
        data[len(data) // 2] ^= 0x55
    else:
        data = bytearray(b"no such stream at all")
    path.write_bytes(data)
    message = reading_error(path)
    assert message.startswith(f"{path}")
    assert "can't be read" in message or "expected a JSON object" in message


def test_packed_text(tmp_path: Path):
    (tmp_path / "notes.txt.gz").write_bytes(gzip.compress("naïve".encode()))
    assert [d.name for d in documents(str(tmp_path / "notes.txt.gz"))] == ["notes.txt.gz"]
    assert read(tmp_path / "notes.txt.gz") == ["naïve"]
    (tmp_path / "d.parquet.gz").write_bytes(gzip.compress(b"PAR1"))
    assert "expected a .txt" in reading_error(tmp_path / "d.parquet.gz")


def test_no_package_for_zstd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = packed(tmp_path, ".jsonl", ".zst")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    assert "unpacking .zst needs more packages: run `pip install 'saeforest[data]'`" in reading_error(path)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("d.txt", b"a\nb\0c", "d.txt:2: contains a NUL byte"),
        ("d.txt", "text".encode("utf-16"), "d.txt:1: expected UTF-8 text (it looks like UTF-16)"),
        ("d.txt", "text".encode("utf-16-le"), "d.txt:1: contains a NUL byte"),
        ("d.txt", "a\nné".encode("latin-1"), "d.txt:2: expected UTF-8 text"),
        ("d.jsonl", '{"text": "é"}\n'.encode("latin-1"), "d.jsonl:1: expected a JSON object in UTF-8"),
        ("d.jsonl", '{"text": "a"}\n'.encode("utf-16"), "d.jsonl:1: expected a JSON object in UTF-8"),
        ("d.jsonl", b'{"text": "a"}\n{"text": "a\0b"}\n', "d.jsonl:2: expected a JSON object"),
        ("d.csv", b"text\na\nb\0\n", "d.csv:3: contains a NUL byte"),
        ("d.csv", "text\na\né\n".encode("latin-1"), "d.csv:3: expected UTF-8 text"),
        ("d.csv", "text\na\n".encode("utf-16"), "d.csv:1: expected UTF-8 text (it looks like UTF-16)"),
        ("d.json", '[{"text": "é"}]'.encode("latin-1"), "d.json:1: expected UTF-8 text"),
        ("d.jsonl", b'{"text": "a"}\n' + b'{"a":' * 100_000, "d.jsonl:2: the record is nested too deeply"),
        (
            "d.jsonl",
            b'{"text": "a", "b": ' + b"[" * 1_500 + b"]" * 1_500 + b"}",
            "d.jsonl:1: the record is nested too",
        ),
        ("d.json", b"[" * 100_000, "d.json: not valid JSON (nested too deeply)"),
        (
            "d.jsonl",
            b'{"text": "a"}\n{"text": "b", "n": ' + b"9" * 5_000 + b"}",
            "d.jsonl:2: expected a JSON object",
        ),
        (
            "d.json",
            b'[{"text": "b", "n": ' + b"9" * 5_000 + b"}]",
            "d.json: not valid JSON (Exceeds the limit",
        ),
        ("d.parquet", b"PAR1" * 10, "d.parquet: can't be read"),
        ("d.arrow", b"ARROW1" * 10, "d.arrow: can't be read"),
        ("d.arrow", b"", "d.arrow: can't be read"),
    ],
)
def test_every_trouble_is_one_line(name: str, data: bytes, message: str, tmp_path: Path):
    (tmp_path / name).write_bytes(data)
    assert f"{tmp_path}/{message}" in reading_error(tmp_path / name)
    assert f"{tmp_path}/{message}" in reading_error(tmp_path)  # in a folder too


def test_numbers_that_json_does_not_know_are_no_trouble(tmp_path: Path):
    (tmp_path / "d.jsonl").write_text('{"text": "a", "loss": NaN, "n": 1e999, "m": Infinity}\n', "utf-8")
    assert read(tmp_path / "d.jsonl") == ["a"]


def test_long_lines_are_no_trouble(tmp_path: Path):
    text = "word " * 1_000_000
    assert read(write_jsonl(tmp_path / "d.jsonl", [text])) == [text]


@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".csv", ".jsonl.gz"])
def test_pipes_are_refused(suffix: str, tmp_path: Path):
    """Opening one would wait for a writer for ever."""
    os.mkfifo(tmp_path / f"d{suffix}")
    assert "not a regular file; save the text to a file" in reading_error(tmp_path / f"d{suffix}")
    message = reading_error(tmp_path)
    assert "it contains 1 pipe or device" in message


def test_devices_are_refused(tmp_path: Path):
    (tmp_path / "d.txt").symlink_to("/dev/zero")
    assert "not a regular file" in reading_error(tmp_path / "d.txt")


def test_a_file_that_changes_while_it_is_read(tmp_path: Path):
    path = write_jsonl(tmp_path / "d.jsonl", TEXTS)
    found = documents(str(path))
    next(found)
    with path.open("a") as more:
        more.write('{"text": "more"}\n')
    message = error_line(lambda: list(found))
    assert f"{path}: changed while it was being read" in message


@pytest.mark.parametrize("source", ["x" * 5_000, "a\0b", "~nobody-of-this-name/texts", "\x1b[31m"])
def test_names_that_no_file_can_have(source: str):
    assert "no such file or folder" in reading_error(source)
