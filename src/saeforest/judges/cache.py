"""A judge's answers on disk: an interrupted measurement continues where it was, and no question is asked twice."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from threading import Lock

from ..errors import InputError
from ..files import CHECKSUM, checksum_of_data, parse_json, read_bytes
from ..output import note
from ..schema import Count, Schema, checked
from .judge import Judge

FILE = "judge.jsonl"
_QUESTION = ("judge", "system", "user", "max_tokens")


class Answer(Schema):
    """A line of judge.jsonl: a question and its reply."""

    judge: str
    system: str
    user: str
    max_tokens: Count
    reply: str


class CachedJudge:
    """A judge whose questions and replies are written to `folder/judge.jsonl`, one line each, synced after each line.

    A question that was answered before is not asked again. A damaged line, for instance after a power failure, is
    skipped. folder: None to keep answers only in memory.

    Raises InputError if the file can't be read or written.
    """

    def __init__(self, judge: Judge, folder: Path | None) -> None:
        self.name, self.workers = judge.name, judge.workers
        self._judge = judge
        self._path = None if folder is None else folder / FILE
        self._lock = Lock()
        self._answers: dict[str, Future[str]] = {}
        self._torn = False
        if self._path is not None:
            for key, reply in self._read(self._path):
                self._answers[key] = Future()
                self._answers[key].set_result(reply)

    def ask(self, system: str, user: str, *, max_tokens: int) -> str:
        """The kept reply to this question, else the judge's. Raises what the judge raises."""
        question = (self.name, system, user, max_tokens)
        key = _key(question)
        with self._lock:
            first = key not in self._answers
            answer = self._answers.setdefault(key, Future())
        if not first:
            return answer.result()
        try:
            reply = self._judge.ask(system, user, max_tokens=max_tokens)
            self._keep(question, reply)
        except BaseException as error:
            with self._lock:
                del self._answers[key]
            answer.set_exception(error)
            raise
        answer.set_result(reply)
        return reply

    def _read(self, path: Path) -> Iterator[tuple[str, str]]:
        if not path.exists():
            return
        data = read_bytes(path)
        self._torn = bool(data) and not data.endswith(b"\n")
        damaged = 0
        for kept in read_answers(data, str(path)):
            if kept is None:
                damaged += 1
            else:
                yield _key((kept.judge, kept.system, kept.user, kept.max_tokens)), kept.reply
        if damaged:
            note(f"{path}: skipping {damaged:,} damaged lines; their questions are asked again")

    def _keep(self, question: tuple[str, str, str, int], reply: str) -> None:
        if self._path is None:
            return
        kept = {**dict(zip(_QUESTION, question, strict=True)), "reply": reply}
        line = json.dumps({**kept, CHECKSUM: checksum_of_data(kept)})
        with self._lock:
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                with self._path.open("ab") as file:
                    # An incomplete last line of an earlier run stays a line of its own.
                    file.write(("\n" if self._torn else "").encode() + line.encode() + b"\n")
                    file.flush()
                    os.fsync(file.fileno())
            except OSError as error:
                self._torn = True
                raise InputError(f"{self._path}: can't be written ({error.strerror})") from None
            self._torn = False


def read_answers(data: bytes, where: str) -> Iterator[Answer | None]:
    """The lines of a file of answers; None for each damaged line."""
    for line in data.splitlines():
        try:
            kept = parse_json(line, where)
            expected = kept.pop(CHECKSUM, None) if isinstance(kept, dict) else None
            answer = checked(Answer, kept, where)
        except InputError:
            yield None
        else:
            yield answer if expected in (None, checksum_of_data(kept)) else None


def _key(question: tuple[object, ...]) -> str:
    return hashlib.sha256(json.dumps(question).encode()).hexdigest()
