"""Texts with two labels: those of the package, files good and bad, and data sets of the Hub."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from saeforest.errors import InputError
from saeforest.text.two_labels import doubly_labeled


def test_biographies_are_different_and_name_neither_label() -> None:
    found = doubly_labeled("built-in:biographies")
    assert {*Counter((text.label, second) for text, second in found).values()} == {200}
    assert len({text.text for text, _ in found}) == len(found) == 3200
    for text, second in found:
        words = set(text.text.lower().replace(".", " ").replace(",", " ").split())
        assert text.label not in words
        assert second not in words
        assert bool({"he", "his", "him"} & words) == (second == "male")
        assert bool({"she", "her"} & words) == (second == "female")
    assert found == doubly_labeled("built-in:biographies")


def test_files_of_three_layouts(tmp_path: Path) -> None:
    records: dict[str, list[dict[str, Any]]] = {
        "mine": [
            {"text": "one", "label": "a", "second_label": 2},
            {"text": " ", "label": "a", "second_label": 1},
        ],
        "bios": [{"hard_text": "she works", "profession": 13, "gender": 1}],
        "reviews": [{"text": "broken", "category": 30, "rating": 1.0}],
    }
    found = {}
    for name, rows in records.items():
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        found[name] = [(text.text, text.label, second) for text, second in doubly_labeled(str(path))]
    assert found == {
        "mine": [("one", "a", "2")],
        "bios": [("she works", "nurse", "female")],
        "reviews": [("broken", "Software", "1")],
    }
    path = tmp_path / "bios.csv"
    path.write_text("profession,hard_text,gender\n21,he reads,0\n", encoding="utf-8")
    [(text, second)] = doubly_labeled(str(path))
    assert (text.text, text.label, text.name, second) == ("he reads", "professor", f"{path}:2", "male")


def test_a_data_set_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked: list[Any] = []

    def load_dataset(*args: object, **options: object) -> Any:
        asked.append((args, options))
        return iter([{"hard_text": "he flies", "profession": 9, "gender": 0}])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    [(text, second)] = doubly_labeled("LabHC/bias_in_bios")
    assert (text.label, second) == ("filmmaker", "male")
    assert asked == [(("LabHC/bias_in_bios", None), {"split": "train", "streaming": True})]

    def unreachable(*_: object, **__: object) -> Any:
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(
        InputError, match=r"'LabHC/bias_in_bios': not a local file, and split 'train' .*no network"
    ):
        doubly_labeled("LabHC/bias_in_bios")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            '{"text": "x", "label": "a"}',
            r'a\.jsonl:1: expected columns "text", "label" and "second_label", found',
        ),
        (
            '{"text": 3, "label": "a", "second_label": "b"}',
            r'a\.jsonl:1: expected a string under "text", found 3',
        ),
        ('{"text": "x", "label": [], "second_label": "b"}', r'expected a string or an integer under "label"'),
        ('{"text": "x", "label": "", "second_label": "b"}', r'under "label", found nothing'),
        (
            '{"hard_text": "x", "profession": 28, "gender": 0}',
            r'a number below 28 under "profession", found 28',
        ),
        ("", "expected at least one text, found none"),
    ],
)
def test_bad_files(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=message):
        doubly_labeled(str(path))


def test_no_such_source(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no such file; give a \.jsonl or \.csv file"):
        doubly_labeled("nowhere")
    path = tmp_path / "a.txt"
    path.write_text("x", encoding="utf-8")
    with pytest.raises(InputError, match=r"expected a \.jsonl or \.csv file"):
        doubly_labeled(str(path))
