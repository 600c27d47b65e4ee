"""Labeled texts: from the packaged corpus, from a user's files good and bad."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from saeforest.config import TrainConfig
from saeforest.errors import InputError
from saeforest.text import labeled as labeled_module
from saeforest.text.corpora import documents
from saeforest.text.labeled import LabeledText, labeled
from saeforest.training.settle import settle_machine


def write(path: Path, content: str | bytes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def lines(*records: Any) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def test_jsonl(tmp_path: Path) -> None:
    content = lines(
        {"text": "one", "label": " a "}, {"label": 3, "text": "two\nlines"}, {"text": " ", "label": "b"}
    )
    path = write(
        tmp_path / "data.jsonl", content + "\n" + lines({"text": "last", "label": True, "more": [1]})
    )
    assert labeled(path) == [
        ("one", "a", "data.jsonl:1"),
        ("two\nlines", "3", "data.jsonl:2"),
        ("last", "True", "data.jsonl:5"),
    ]


def test_csv(tmp_path: Path) -> None:
    content = '\ufefflabel,id,text\nsport,1,"He said ""run"",\nand ran."\nart,2,café\nart,3,\n'
    path = write(tmp_path / "data.CSV", content)
    assert labeled(path) == [
        ('He said "run",\nand ran.', "sport", "data.CSV:3"),
        ("café", "art", "data.CSV:4"),
    ]


def test_folder(tmp_path: Path) -> None:
    write(tmp_path / "cats" / "1.txt", "\ufeffpurr")
    write(tmp_path / "cats" / "2.TXT", "meow")
    write(tmp_path / "dogs" / "1.txt", "woof")
    for ignored in ("loose.txt", "dogs/notes.md", "dogs/.hidden.txt", ".git/1.txt", "dogs/deep/1.txt"):
        write(tmp_path / ignored, "no")
    assert labeled(str(tmp_path)) == [
        ("purr", "cats", "cats/1.txt"),
        ("meow", "cats", "cats/2.TXT"),
        ("woof", "dogs", "dogs/1.txt"),
    ]


def test_packaged_topics(monkeypatch: pytest.MonkeyPatch) -> None:
    class Wiki:
        def read(self) -> dict[str, Any]:
            return {
                "1": {"title": "Euler", "extract": "He was", "topic": "People"},
                "2": {"title": "X", "extract": "is", "topic": "Uncategorized"},
            }

    monkeypatch.setattr(labeled_module, "WIKI", Wiki())
    assert labeled("packaged:topics") == [LabeledText("Euler\n\nHe was", "People", "wiki: Euler")]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"text": "x"', r"a\.jsonl:1: expected a JSON object"),
        (
            "a.jsonl",
            lines({"text": "x", "label": "a"}, ["x"]),
            r"a\.jsonl:2: expected a JSON object, got a list",
        ),
        (
            "a.jsonl",
            lines({"body": "x", "label": "a"}),
            r'a\.jsonl:1: expected the text under "text", found body',
        ),
        ("a.jsonl", lines({"text": 3, "label": "a"}), r'a\.jsonl:1: expected a string under "text"'),
        (
            "a.jsonl",
            lines({"text": "x"}),
            r'a\.jsonl:1: expected a string or .* under "label", found nothing',
        ),
        ("a.jsonl", lines({"text": "x", "label": [1]}), r'a\.jsonl:1: .* under "label", found \[1\]'),
        ("a.jsonl", lines({"text": "x", "label": "  "}), r'a\.jsonl:1: .* under "label"'),
        ("a.jsonl", "\n", r"a\.jsonl': expected at least one text, found none"),
        ("a.jsonl", b'{"text": "\xff"}', r"a\.jsonl:1: expected a JSON object in UTF-8"),
        ("a.csv", "", r'a\.csv:1: expected one column "text" and one "label", found nothing'),
        (
            "a.csv",
            "text,topic\nx,y\n",
            r'a\.csv:1: expected one column "text" and one "label", found text, topic',
        ),
        ("a.csv", "text,label\nx\n", r"a\.csv:2: expected 2 fields as in the first line, found 1"),
        ("a.csv", 'text,label\nx,y\n"x"z,y\n', r"a\.csv:3: not valid CSV"),
        ("a.csv", b"text,label\nx,\xff\n", r"a\.csv:2: expected UTF-8 text"),
        ("a.txt", "x", r"a\.txt: expected a \.jsonl or \.csv file, or a folder"),
        ("folder/a.txt", "x", r"folder': expected at least one text, found none"),
        ("folder/b/a.txt", b"\xff", r"a\.txt:1: expected UTF-8 text"),
    ],
)
def test_bad_files(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    write(tmp_path / name, content)
    with pytest.raises(InputError, match=message) as error:
        labeled(str(tmp_path / Path(name).parts[0]))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("source", ["", "nowhere.jsonl", "packaged", "packaged:wiki"])
def test_no_such_source(source: str) -> None:
    with pytest.raises(InputError, match=f"labeled texts '{source}': no such file or folder"):
        labeled(source)


def test_a_home_that_nobody_has() -> None:
    source = "~nobody-of-this-name/labels.csv"
    with pytest.raises(InputError, match="no such file or folder"):
        labeled(source)
    with pytest.raises(InputError, match="no such file or folder"):
        documents(source)
    assert settle_machine(TrainConfig(data=source, device="cpu")).data == source
