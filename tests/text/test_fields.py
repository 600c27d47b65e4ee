"""Which field of a record is its text: by name, the same for a whole file, in every kind of file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import datasets
import pyarrow
import pyarrow.ipc
import pyarrow.parquet
import pytest

from saeforest.text import Reading
from text_cases import error_line, read, reading_error, write_records

Write = Callable[[Path, list[dict]], Path]


def as_json(path: Path, records: list[dict]) -> Path:
    path.write_text(json.dumps(records, indent=1), "utf-8")
    return path


def as_csv(path: Path, records: list[dict]) -> Path:
    def quoted(value: object) -> str:
        return f'"{value}"'.replace("None", "")

    lines = [",".join(map(quoted, records[0])), *(",".join(map(quoted, r.values())) for r in records)]
    path.write_text("\n".join(lines), "utf-8")
    return path


def as_parquet(path: Path, records: list[dict]) -> Path:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), path)
    return path


def as_arrow(path: Path, records: list[dict]) -> Path:
    table = pyarrow.Table.from_pylist(records)
    new = pyarrow.ipc.new_stream if len(records) % 2 else pyarrow.ipc.new_file
    with new(path, table.schema) as writer:
        writer.write_table(table)
    return path


KINDS: dict[str, Write] = {
    ".jsonl": write_records,
    ".json": as_json,
    ".csv": as_csv,
    ".parquet": as_parquet,
    ".arrow": as_arrow,
}


@pytest.fixture(params=KINDS)
def write(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[list[dict]], Path]:
    return lambda records: KINDS[request.param](tmp_path / f"d{request.param}", records)


def records_of(*names: str, n: int = 3) -> list[dict]:
    return [{name: f"{name} {i}" for name in names} for i in range(n)]


@pytest.mark.parametrize("n", [2, 3])
@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("id", "text", "content"), "text"),
        (("id", "content"), "content"),
        (("document", "id"), "document"),
        (("title", "body"), "body"),
        (("messages", "text"), "text"),
    ],
)
def test_the_customary_names_in_their_order(
    write: Callable[[list[dict]], Path], names: tuple[str, ...], expected: str, n: int
):
    assert read(write(records_of(*names, n=n))) == [f"{expected} {i}" for i in range(n)]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("id",), 'expected the text under "text", "content", "document" or "body", found id'),
        (("url", "Text"), "found url, Text; set text.column to the field that holds the text"),
        (
            ("id", "content", "body"),
            'the text may be under "content" or "body"; set text.column to one of them',
        ),
        (
            ("id", "conversations"),
            'holds a chat under "conversations", not plain text; set text.chat to true',
        ),
        (("messages", "source"), 'holds a chat under "messages", not plain text; set text.chat to true'),
    ],
)
def test_nothing_is_guessed(write: Callable[[list[dict]], Path], names: tuple[str, ...], message: str):
    path = write(records_of(*names))
    assert message in (said := reading_error(path))
    assert said.startswith(str(path))


def test_a_column_by_name(write: Callable[[list[dict]], Path]):
    path = write(records_of("text", "Text", "note"))
    for name in ("Text", "note"):
        assert read(path, reading=Reading(name)) == [f"{name} {i}" for i in range(3)]
    message = reading_error(path, reading=Reading("txet"))
    assert 'text.column = txet: expected the text under "txet", found text, Text, note' in message


def test_no_text_in_any_record(write: Callable[[list[dict]], Path]):
    path = write([{"id": i, "text": None} for i in range(3)])
    assert '"text" is empty in all of its 3 records' in reading_error(path)
    assert read(write([{"id": 0, "text": None}, {"id": 1, "text": "one"}])) == ["one"]


@pytest.mark.parametrize("value", [{"value": "x"}, ["x"], 3, True, [{"role": "user", "content": "x"}]])
@pytest.mark.parametrize("kind", [".jsonl", ".json", ".parquet", ".arrow"])
def test_what_is_no_string(kind: str, value: object, tmp_path: Path):
    path = KINDS[kind](tmp_path / f"d{kind}", [{"text": value}])
    assert f"{path}" in (message := reading_error(path))
    assert 'expected a string under "text", got a' in message
    assert ("text.chat" in message) is (isinstance(value, list) and isinstance(value[0], dict))


# Records that are not like those before


@pytest.mark.parametrize(
    ("records", "message"),
    [
        (
            [{"text": "a"}, {"body": "b"}],
            'd.jsonl:2: expected the text under "text" as in the earlier records',
        ),
        ([{"content": "a"}, {"text": "b"}], 'd.jsonl:2: expected the text under "content"'),
        (
            [{"content": "a"}, {"content": "b", "text": "c"}],
            "d.jsonl:2: the earlier records have their text under",
        ),
        ([{"content": "a"}, {"content": "b", "body": "c"}], 'this one also has "body"; set text.column'),
        ([{"text": None, "source": "web"}, {"source": "web"}], "d.jsonl:2: expected the text"),
        ([{"source": "web"}, {"text": "a"}], "d.jsonl:1: expected the text"),
        ([{"id": "x", "url": "https://a"}, {"text": "a"}], "d.jsonl:1: expected the text"),
        ([{"input_ids": [1, 2], "set": "pile"}], "found input_ids, set"),
    ],
)
def test_records_that_differ(tmp_path: Path, records: list[dict], message: str):
    assert message in reading_error(write_records(tmp_path / "d.jsonl", records))


def test_other_fields_may_come_and_go(tmp_path: Path):
    records = [{"text": "a"}, {"text": "b", "body": "c", "content": "d"}, {"id": 1, "text": "e"}]
    assert read(write_records(tmp_path / "d.jsonl", records)) == ["a", "b", "e"]


def test_lines_of_json_in_a_json_file(tmp_path: Path):
    write_records(tmp_path / "d.json", records_of("text"))
    assert read(tmp_path / "d.json") == ["text 0", "text 1", "text 2"]
    (tmp_path / "one.json").write_text('\ufeff{\n  "text": "a document"\n}', "utf-8")
    assert read(tmp_path / "one.json") == ["a document"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('["a", "b"]', 'd.json, record 1: expected a JSON object with a "text", got a str'),
        ('[{"text": "a"},\n {"text": }]', "d.json:2: not valid JSON"),
        ('{"text": ["a", "b"]}', 'd.json:1: expected a string under "text", got a list'),
        ('{"text": "a"}\n{"text": \n', "d.json:2: expected a JSON object"),
        ("3", 'd.json, record 1: expected a JSON object with a "text", got a int'),
    ],
)
def test_json_that_holds_no_records(tmp_path: Path, content: str, message: str):
    (tmp_path / "d.json").write_text(content, "utf-8")
    assert message in reading_error(tmp_path / "d.json")


# Tables


def test_csv_with_quotes_line_ends_and_a_mark_of_its_bytes(tmp_path: Path):
    text = '\ufeffid,text\r\n1,"two\nlines, and ""quotes"""\r\n\r\n2,plain\r\n'
    (tmp_path / "d.csv").write_bytes(text.encode())
    assert read(tmp_path / "d.csv") == ['two\nlines, and "quotes"', "plain"]
    (tmp_path / "d.tsv").write_text('id\ttext\n1\ta, b\n2\t"c\td"\n', "utf-8")
    assert read(tmp_path / "d.tsv") == ["a, b", "c\td"]
    (tmp_path / "old.csv").write_bytes(b"id,text\r1,one\r2,two\r")
    assert read(tmp_path / "old.csv") == ["one", "two"]
    (tmp_path / "long.csv").write_text(f"text\n{'x' * 300_000}\n", "utf-8")  # beyond csv's own limit
    assert len(read(tmp_path / "long.csv")[0]) == 300_000


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("id,text\n1,a\n2,b,c\n", "d.csv:3: expected 2 fields as in the first line, found 3"),
        ("id,text\n1\n", "d.csv:2: expected 2 fields as in the first line, found 1"),
        ("text,id,text\na,1,b\n", 'd.csv:1: two columns are named "text"'),
        ('text\n"a\nb', "d.csv:3: not valid CSV"),
        ("a plain line\n", "d.csv:1: expected the text under"),
        ("", "d.csv:1: expected the text under"),
        ("text\n", None),
        ("id,id,text\n1,2,a\n", None),
    ],
)
def test_csv_that_is_not_one_table(tmp_path: Path, content: str, message: str | None):
    (tmp_path / "d.csv").write_text(content, "utf-8")
    if message is None:
        read(tmp_path / "d.csv")
    else:
        assert message in reading_error(tmp_path / "d.csv")


def test_parquet_with_two_columns_of_one_name(tmp_path: Path):
    table = pyarrow.table([["a"], ["b"]], names=["text", "text"])
    pyarrow.parquet.write_table(table, tmp_path / "d.parquet")
    assert 'two columns are named "text"' in reading_error(tmp_path / "d.parquet")


def test_arrow_strings_of_every_kind(tmp_path: Path):
    for i, kind in enumerate(
        (pyarrow.large_string(), pyarrow.string_view(), pyarrow.dictionary(pyarrow.int32(), pyarrow.string()))
    ):
        column = pyarrow.array(["a", None, "b"], pyarrow.string()).cast(kind)
        table = pyarrow.table({"text": column})
        with pyarrow.ipc.new_stream(tmp_path / f"{i}.arrow", table.schema) as writer:
            writer.write_table(table)
        assert read(tmp_path / f"{i}.arrow") == ["a", "b"]


# The Hub


def hub(monkeypatch: pytest.MonkeyPatch, records: list[dict]) -> None:
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: iter(records))


def test_the_same_rules_on_the_hub(monkeypatch: pytest.MonkeyPatch):
    hub(monkeypatch, records_of("content", "id"))
    assert read("org/name") == ["content 0", "content 1", "content 2"]
    assert read("org/name", reading=Reading("id")) == ["id 0", "id 1", "id 2"]
    hub(monkeypatch, records_of("content", "body"))
    assert 'org/name:1: the text may be under "content" or "body"' in reading_error("org/name")
    hub(monkeypatch, [{"text": None}, {"text": None}])
    assert '"text" is empty in all of its 2 records' in error_line(lambda: read("org/name"))
