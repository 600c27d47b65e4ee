"""Multiple-choice questions, in the layout of WMDP and MMLU."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from saeforest.errors import InputError
from saeforest.schema import shown
from saeforest.text.hub import hub_name, hub_rows
from saeforest.text.opening import opened
from saeforest.text.readers import parse_record

#: Number of choices of a question.
CHOICES = 4


class Question(NamedTuple):
    """A question with four choices, the number of the right one, and its subject: "biology"."""

    question: str
    choices: tuple[str, ...]
    answer: int
    subject: str


def read_questions(sources: str) -> list[Question]:
    """The questions of one or several sources, with commas between them.

    A source is a .jsonl file with a "question", its "choices" (four strings), the number of the right one as its
    "answer" (from 0) and, if known, its "subject" on each line; or a data set of the Hub with such columns, of which
    the split "test" is read: `"cais/wmdp:wmdp-bio"`, `"cais/mmlu:high_school_geography"`.

    Raises InputError if a source does not exist, is empty or can't be read.
    """
    found: list[Question] = []
    for source in (part.strip() for part in sources.split(",")):
        path = Path(os.path.expanduser(source))
        place = hub_name(source)
        if source and path.is_file():
            rows, usual = _file(path), path.stem
        elif place is not None:
            rows = hub_rows(f"questions '{source}'", source, place, "test")
            usual = "biology" if place.subset == "wmdp-bio" else place.subset or place.name.split("/")[1]
        else:
            raise InputError(
                f"questions '{source}': no such file; give a .jsonl file with question, choices and answer, or a data "
                "set of the Hub (cais/wmdp:wmdp-bio)"
            )
        mine = [_question(row, usual.replace("_", " "), where) for row, where in rows]
        if not mine:
            raise InputError(f"questions '{source}': expected at least one question, found none")
        found += mine
    return found


def _file(path: Path) -> Iterator[tuple[Mapping[str, Any], str]]:
    with opened(path) as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                where = f"{path}:{number}"
                yield parse_record(line, where), where


def _question(row: Mapping[str, Any], usual: str, where: str) -> Question:
    text, choices, answer = (row.get(name) for name in ("question", "choices", "answer"))
    if not isinstance(text, str) or not text.strip():
        raise InputError(f'{where}: expected a string under "question", found {shown(text)}')
    if (
        not isinstance(choices, list)
        or len(choices) != CHOICES
        or not all(isinstance(c, str) for c in choices)
    ):
        raise InputError(f'{where}: expected {CHOICES} strings under "choices", found {shown(choices)}')
    if not isinstance(answer, int) or isinstance(answer, bool) or not 0 <= answer < CHOICES:
        raise InputError(
            f'{where}: expected a number from 0 to {CHOICES - 1} under "answer", found {shown(answer)}'
        )
    subject = row.get("subject") or usual
    return Question(text, tuple(choices), answer, str(subject).replace("_", " "))
