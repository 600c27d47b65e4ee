"""Multiple-choice questions: files good and bad, and data sets of the Hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from saeforest.errors import InputError
from saeforest.text.questions import Question, read_questions

GOOD = {"question": "1 + 1?", "choices": ["1", "2", "3", "4"], "answer": 1}


def test_files_and_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    path = tmp_path / "easy_sums.jsonl"
    path.write_text(
        json.dumps(GOOD) + "\n\n" + json.dumps(GOOD | {"subject": "adding"}) + "\n", encoding="utf-8"
    )
    mine = [Question("1 + 1?", ("1", "2", "3", "4"), 1, subject) for subject in ("easy sums", "adding")]
    assert read_questions(str(path)) == mine
    asked: list[Any] = []

    def load_dataset(*args: object, **options: object) -> Any:
        asked.append((args, options["split"]))
        return iter([GOOD])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    found = read_questions(f"{path}, cais/wmdp:wmdp-bio,cais/mmlu:human_aging")
    assert found[:2] == mine
    assert [question.subject for question in found[2:]] == ["biology", "human aging"]
    assert asked == [(("cais/wmdp", "wmdp-bio"), "test"), (("cais/mmlu", "human_aging"), "test")]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"question": ""}, 'expected a string under "question"'),
        ({"choices": ["1"]}, 'expected 4 strings under "choices"'),
        ({"answer": 4}, 'expected a number from 0 to 3 under "answer", found 4'),
        ({"answer": "B"}, 'under "answer", found'),
    ],
)
def test_bad_files(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text(json.dumps(GOOD | change), encoding="utf-8")
    with pytest.raises(InputError, match=message):
        read_questions(str(path))


def test_no_questions(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text("\n")
    with pytest.raises(InputError, match="expected at least one question, found none"):
        read_questions(str(path))
    with pytest.raises(InputError, match=r"no such file; give a \.jsonl file"):
        read_questions("nowhere")
