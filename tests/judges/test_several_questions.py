"""Asking several questions at once."""

from __future__ import annotations

import threading
import time

import pytest

from judge_cases import Fake
from saeforest.errors import InputError
from saeforest.judges import (
    Question,
    ask_all,
    prompt,
)

# ---- several questions


class Slow:
    """Answers in the reverse order, all at once."""

    name, workers = "slow", 3

    def __init__(self) -> None:
        self.together = threading.Barrier(3)

    def ask(self, system: str, user: str, *, max_tokens: int) -> str:
        self.together.wait(timeout=20)
        time.sleep(0.02 * (3 - int(user) % 3))
        return f"reply to {user}"


def test_questions_are_asked_at_once_and_replies_keep_their_order() -> None:
    questions = [Question("", str(i), 1) for i in range(6)]
    assert ask_all(Slow(), questions, "ask") == [f"reply to {i}" for i in range(6)]


@pytest.mark.parametrize("workers", [1, 4])
def test_an_error_ends_the_asking(workers: int) -> None:
    def reply(system: str, user: str) -> str:
        if user == "2":
            raise InputError("no more")
        time.sleep(0.01)
        return user

    judge = Fake(reply)
    judge.workers = workers
    with pytest.raises(InputError, match="no more"):
        ask_all(judge, [Question("", str(i), 1) for i in range(200)], "ask")
    assert len(judge.asked) < 150


def test_no_questions() -> None:
    assert ask_all(Fake(lambda s, u: u), [], "ask") == []


@pytest.mark.parametrize("name", ["explain", "detect", "related"])
def test_prompts_are_whole(name: str) -> None:
    text = prompt(name, n=14, example="3, 5, 8, 9")
    assert len(text) > 300
    assert "$" not in text
    assert ("3, 5, 8, 9" in text) == (name == "detect")
