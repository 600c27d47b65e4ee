"""Local files as documents."""

from __future__ import annotations

from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from saeforest.text import Document, documents
from text_cases import (
    error_line,
    reading_error,
    write_jsonl,
)


def test_txt_is_one_document(tmp_path: Path):
    path = tmp_path / "notes.txt"
    path.write_text("\ufeffnaïve 東京 🦊\nline two", encoding="utf-8")
    assert list(documents(str(path))) == [Document("naïve 東京 🦊\nline two", "notes.txt")]


def test_jsonl_gives_a_document_a_line(tmp_path: Path):
    path = tmp_path / "data.jsonl"
    path.write_text('{"id": 1, "text": "one"}\n\n{"text": " \\n"}\n{"text": null}\n{"text": "fünf"}', "utf-8")
    assert list(documents(str(path))) == [Document("one", "data.jsonl:1"), Document("fünf", "data.jsonl:5")]


def test_jsonl_without_text_reads_another_customary_field(tmp_path: Path):
    path = tmp_path / "data.jsonl"
    path.write_text('{"id": 1, "body": "one"}\n{"body": "two", "note": "no"}\n', "utf-8")
    assert [document.text for document in documents(str(path))] == ["one", "two"]


def test_half_a_surrogate_pair_becomes_encodable(tmp_path: Path):
    path = tmp_path / "data.jsonl"
    path.write_text('{"text": "a\\ud83d b\\ud83e\\udd8a"}', "utf-8")
    assert [document.text for document in documents(str(path))] == ["a\ufffd b🦊"]


def test_parquet_reads_the_text_column(tmp_path: Path):
    path = tmp_path / "data.parquet"
    table = pyarrow.table({"id": [1, 2, 3], "text": ["one", None, "thrée"]})
    pyarrow.parquet.write_table(table, path)
    assert list(documents(str(path))) == [
        Document("one", "data.parquet:1"),
        Document("thrée", "data.parquet:3"),
    ]


def test_folder_is_read_sorted_by_path(tmp_path: Path):
    (tmp_path / "b").mkdir()
    (tmp_path / ".hidden").mkdir()
    for name in ("b/z.TXT", "c.txt", "a.txt", ".hidden/h.txt", "image.png"):
        (tmp_path / name).write_text(name)
    write_jsonl(tmp_path / "b" / "a.jsonl", ["one", "two"])
    names = [document.name for document in documents(str(tmp_path))]
    assert names == ["a.txt", "b/a.jsonl:1", "b/a.jsonl:2", "b/z.TXT", "c.txt"]


def test_home_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "notes.txt").write_text("home")
    assert [document.text for document in documents("~/notes.txt")] == ["home"]


def test_a_local_folder_wins_over_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "name").mkdir(parents=True)
    (tmp_path / "org" / "name" / "a.txt").write_text("local")
    assert [document.text for document in documents("org/name")] == ["local"]


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.txt", b"fine\nbad \xff byte", "a.txt:2: expected UTF-8"),
        ("a.jsonl", b'{"text": "x"}\n{"text": ', "a.jsonl:2: expected a JSON object"),
        ("a.jsonl", b'{"text": "\xff"}\n', "a.jsonl:1: expected a JSON object in UTF-8"),
        ("a.jsonl", b"[1, 2]\n", "a.jsonl:1: expected a JSON object, got a list"),
        (
            "a.jsonl",
            b'{"text": "x"}\n{"body": "y"}\n',
            'a.jsonl:2: expected the text under "text" as in the earlier records, found body',
        ),
        (
            "a.jsonl",
            b'{"id": "x", "note": "y"}\n',
            'a.jsonl:1: expected the text under "text", "content", "document" or "body", found id, note',
        ),
        ("a.jsonl", b'{"text": "x"}\n{"text": 3}\n', 'a.jsonl:2: expected a string under "text", got an int'),
        ("a.parquet", b"PAR1 not really", "a.parquet: can't be read"),
        (
            "a.xlsx",
            b"text\nhello\n",
            "a.xlsx: expected a .txt, .jsonl, .ndjson, .json, .csv, .tsv, .parquet or .arrow",
        ),
        (
            "activations.pt",
            b"PK",
            "or a folder of such files; saeforest.train(x) in Python trains on a tensor",
        ),
    ],
)
def test_bad_file_is_named(tmp_path: Path, name: str, content: bytes, expected: str):
    (tmp_path / name).write_bytes(content)
    assert expected in reading_error(tmp_path / name)


def test_parquet_without_the_column(tmp_path: Path):
    pyarrow.parquet.write_table(pyarrow.table({"note": ["x"], "n": [1]}), tmp_path / "a.parquet")
    message = reading_error(tmp_path / "a.parquet")
    assert (
        'a.parquet: expected the text under "text", "content", "document" or "body", found note, n' in message
    )


def test_empty_folder(tmp_path: Path):
    (tmp_path / "image.png").write_bytes(b"")
    message = reading_error(tmp_path)
    assert "or .arrow file with text; it contains 1 .png" in message


def test_unreadable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "a.txt"
    path.write_text("x")

    def refuse(self: Path, mode: str) -> object:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    assert "a.txt: can't be read" in reading_error(path)


@pytest.mark.parametrize(
    "source",
    ["./org/name", "/org/name", "~/org/name", "org/name.txt", "org/name.JSONL", "wikitext", "a/b/c", ""],
)
def test_missing_paths_are_not_tried_on_the_hub(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: pytest.fail("asked the Hub"))
    assert f"text source '{source}': no such file or folder" in error_line(lambda: documents(source))
