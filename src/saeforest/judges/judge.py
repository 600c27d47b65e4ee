"""The interface of a judge: a language model that answers questions, as reproducibly as possible."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from importlib.resources import files
from string import Template
from typing import NamedTuple, Protocol, runtime_checkable

from ..progress import progress


@runtime_checkable
class Judge(Protocol):
    """Answers questions, from several threads at once if `workers` is more than 1."""

    @property
    def name(self) -> str:
        """A name that identifies this judge in records and among kept answers."""
        ...

    @property
    def workers(self) -> int:
        """Number of questions that may be asked at the same time."""
        ...

    def ask(self, system: str, user: str, *, max_tokens: int) -> str:
        """The reply, of at most `max_tokens` tokens. Raises InputError if there is none."""
        ...


class Question(NamedTuple):
    """A question for a judge: system prompt, user prompt, and the maximum length of the reply in tokens."""

    system: str
    user: str
    max_tokens: int


def ask_all(judge: Judge, questions: Sequence[Question], description: str) -> list[str]:
    """Ask all questions. Returns the replies in their order.

    Raises what the judge raises, after requests in progress have ended.
    """
    with progress(description, len(questions), "questions") as advance:
        if judge.workers == 1:
            replies: list[str] = []
            for system, user, max_tokens in questions:
                replies.append(judge.ask(system, user, max_tokens=max_tokens))
                advance(1)
            return replies
        with ThreadPoolExecutor(judge.workers) as pool:
            asked = [pool.submit(judge.ask, q.system, q.user, max_tokens=q.max_tokens) for q in questions]
            try:
                for done in as_completed(asked):
                    done.result()
                    advance(1)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
            return [done.result() for done in asked]


def prompt(name: str, **fields: object) -> str:
    """The text of `prompts/NAME.txt` with its `$fields` filled in."""
    text = (files("saeforest.judges") / "prompts" / f"{name}.txt").read_text(encoding="utf-8")
    return Template(text).substitute(fields).strip()
