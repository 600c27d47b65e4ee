"""Data sets of the Hub as documents."""

from __future__ import annotations

import sys
from pathlib import Path

import datasets
import pytest

from saeforest.text import Document, documents
from text_cases import (
    reading_error,
)


@pytest.mark.parametrize(("source", "config"), [("org/name", None), ("org/name:en.1", "en.1")])
def test_hub_data_set_is_streamed(source: str, config: str | None, monkeypatch: pytest.MonkeyPatch):
    asked = []

    def load_dataset(
        name: str, config: str | None = None, *, split: str, streaming: bool, revision: str | None = None
    ):
        asked.append((name, config, split, streaming, revision))
        return iter([{"text": "one", "id": 1}, {"text": ""}, {"text": "three"}])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    found = list(documents(source))
    assert found == [Document("one", f"{source}:1"), Document("three", f"{source}:3")]
    assert asked == [("org/name", config, "train", True, None)]


def test_hub_errors_are_one_line(monkeypatch: pytest.MonkeyPatch):
    def load_dataset(*_: object, **__: object):
        raise FileNotFoundError("Dataset 'org/name' doesn't exist\nmore")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert "text source 'org/name'" in (message := reading_error("org/name"))
    assert "doesn't exist" in message


def test_hub_data_set_without_the_column(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: iter([{"note": "x"}]))
    assert (
        'org/name:1: expected the text under "text", "content", "document" or "body", found note'
        in reading_error("org/name")
    )


@pytest.mark.parametrize(("module", "source"), [("datasets", "org/name"), ("pyarrow", "{}/a.parquet")])
def test_missing_extra_is_named(module: str, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "a.parquet").touch()
    monkeypatch.setitem(sys.modules, module, None)
    assert "pip install 'saeforest[data]'" in reading_error(source.format(tmp_path))
