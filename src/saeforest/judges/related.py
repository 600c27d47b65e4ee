"""The question whether two units are related as a concept and a special case of it, and the test of those who answer.

A judge must first pass a test on pairs of units that are obviously related, or obviously not. The 20 related pairs are
a general unit and a special case of it, such as the days of the week and Monday; each unrelated pair is a general unit
with the special case of another. Their passages were written for this purpose (obvious.txt), and the questions have the
same form as those about features.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import NamedTuple

from .judge import Judge, Question, ask_all, prompt

_REPLY_TOKENS = 24
_REPLY = re.compile(r"HaveRelationship:[ \t]*(Yes|No)[ \t]*\r?\n[ \t]*Confidence:[ \t]*(High|Medium|Low)")
_UNIT = re.compile(r"^\[(.+)\]\n((?:[^\[#\n].*\n?|\n)*)", re.MULTILINE)
# The special case in an unrelated pair is that of the unit so many places on. No two such units are related.
_SHIFT = 7


class Answer(NamedTuple):
    """A judge's answer: whether two units are related, and its confidence (High, Medium or Low)."""

    related: bool
    confidence: str

    @property
    def score(self) -> int:
        """From 3 for a confident Yes to -3 for a confident No."""
        sure = ("Low", "Medium", "High").index(self.confidence) + 1
        return sure if self.related else -sure


class Unit(NamedTuple):
    """A concept: its name, and passages in which its tokens stand between << and >>."""

    name: str
    passages: list[str]


class Trial(NamedTuple):
    """A question of the test: two units, and whether they are related."""

    general: Unit
    special: Unit
    related: bool


def related_question(a: Sequence[str], b: Sequence[str]) -> Question:
    """The question whether unit A and unit B are related, from passages of each."""
    passages = ("\n".join(f"{i}. {text}" for i, text in enumerate(texts, 1)) for texts in (a, b))
    return Question(
        prompt("related"),
        "Passages of unit A:\n{}\n\nPassages of unit B:\n{}".format(*passages),
        _REPLY_TOKENS,
    )


def parse_answer(reply: str) -> Answer | None:
    """Parse the two lines of a reply; None for a reply of any other form."""
    match = _REPLY.fullmatch(reply.strip())
    return match and Answer(match[1] == "Yes", match[2])


def ask_related(
    judge: Judge, pairs: Sequence[tuple[Sequence[str], Sequence[str]]], description: str
) -> list[Answer | None]:
    """The judge's answers about pairs of units, each given by its passages. Raises what the judge raises."""
    questions = [related_question(a, b) for a, b in pairs]
    return [parse_answer(reply) for reply in ask_all(judge, questions, description)]


@cache
def obvious_trials() -> tuple[Trial, ...]:
    """The test: for each general unit a related pair, then an unrelated one."""
    text = (files("saeforest.judges") / "obvious.txt").read_text(encoding="utf-8")
    units = [
        Unit(name, [line for line in passages.splitlines() if line]) for name, passages in _UNIT.findall(text)
    ]
    general, special = units[::2], units[1::2]
    return tuple(
        Trial(general[i], special[i if related else (i + _SHIFT) % len(general)], related)
        for i in range(len(general))
        for related in (True, False)
    )


def take_test(judge: Judge) -> list[Answer | None]:
    """The judge's answers to `obvious_trials`. Raises what the judge raises."""
    pairs = [(trial.general.passages, trial.special.passages) for trial in obvious_trials()]
    return ask_related(judge, pairs, "test the judge")
