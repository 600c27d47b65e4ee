"""A judge's answers are kept on disk, and no question is asked twice."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from judge_cases import Fake
from saeforest.errors import InputError
from saeforest.judges import (
    CachedJudge,
    Judge,
    Question,
    ask_all,
)

# ---- kept answers


def test_answers_are_kept(tmp_path: Path) -> None:
    def counting() -> Fake:
        return Fake(lambda s, u: f"{s}/{u}é\n\u2028")

    first = counting()
    judge = CachedJudge(first, tmp_path / "new" / "folder")
    assert isinstance(judge, Judge)
    assert judge.ask("s", "u", max_tokens=3) == judge.ask("s", "u", max_tokens=3) == "s/ué\n\u2028"
    assert judge.ask("s", "u", max_tokens=4) == "s/ué\n\u2028"
    assert judge.ask("s", "v", max_tokens=3) == "s/vé\n\u2028"
    assert judge.ask("su", "", max_tokens=3) == "su/é\n\u2028"
    assert len(first.asked) == 4
    lines = (tmp_path / "new" / "folder" / "judge.jsonl").read_bytes().splitlines()
    assert [json.loads(line)["user"] for line in lines] == ["u", "u", "v", ""]
    assert {**json.loads(lines[0]), "checksum": ...} == {
        "judge": "fake", "system": "s", "user": "u", "max_tokens": 3, "reply": "s/ué\n\u2028",
        "checksum": ...,
    }  # fmt: skip

    second = counting()
    again = CachedJudge(second, tmp_path / "new" / "folder")
    assert again.ask("s", "v", max_tokens=3) == "s/vé\n\u2028"
    assert second.asked == []
    second.name = "another"
    other = CachedJudge(second, tmp_path / "new" / "folder")
    other.ask("s", "v", max_tokens=3)
    assert len(second.asked) == 1


@pytest.mark.parametrize("cut", [1, 2, 20, 40])
def test_a_line_that_was_being_written(tmp_path: Path, cut: int) -> None:
    judge = CachedJudge(Fake(lambda s, u: u), tmp_path)
    for user in "abc":
        judge.ask("", user, max_tokens=1)
    file = tmp_path / "judge.jsonl"
    file.write_bytes(file.read_bytes()[:-cut])

    def rest() -> tuple[list[str], list[str]]:
        fake = Fake(lambda s, u: u)
        judge = CachedJudge(fake, tmp_path)
        replies = [judge.ask("", user, max_tokens=1) for user in "abcd"]
        return replies, [user for _, user, _ in fake.asked]

    # Without its line end alone, the line is whole.
    assert rest() == (list("abcd"), ["d"] if cut == 1 else ["c", "d"])
    assert rest() == (list("abcd"), [])


@pytest.mark.parametrize(
    "line", [b"\xff\xfe", b"[]", b"3", b"null", b"{}", b'{"judge": "fake"}', b"", b"\x00" * 50]
)
def test_damaged_lines_are_passed_over(tmp_path: Path, line: bytes) -> None:
    CachedJudge(Fake(lambda s, u: u), tmp_path).ask("", "a", max_tokens=1)
    file = tmp_path / "judge.jsonl"
    file.write_bytes(line + b"\n" + file.read_bytes())
    fake = Fake(lambda s, u: u)
    assert CachedJudge(fake, tmp_path).ask("", "a", max_tokens=1) == "a"
    assert fake.asked == []


def test_a_flipped_bit_in_an_answer_is_noticed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    CachedJudge(Fake(lambda s, u: "5"), tmp_path).ask("", "a", max_tokens=1)
    file = tmp_path / "judge.jsonl"
    file.write_bytes(file.read_bytes().replace(b'"reply": "5"', b'"reply": "4"'))
    fake = Fake(lambda s, u: "5")
    assert CachedJudge(fake, tmp_path).ask("", "a", max_tokens=1) == "5"
    assert len(fake.asked) == 1
    assert "judge.jsonl: skipping 1 damaged lines; their questions are asked again" in capsys.readouterr().err
    # One of the time before answers had a checksum.
    file.write_text(
        json.dumps({"judge": "fake", "system": "", "user": "b", "max_tokens": 1, "reply": "6"}) + "\n"
    )
    assert CachedJudge(Fake(lambda s, u: "5"), tmp_path).ask("", "b", max_tokens=1) == "6"


def test_the_same_question_from_several_threads_is_asked_once(tmp_path: Path) -> None:
    def reply(system: str, user: str) -> str:
        time.sleep(0.05)
        return user

    fake = Fake(reply)
    fake.workers = 8
    questions = [Question("", str(i % 4), 1) for i in range(40)]
    assert ask_all(CachedJudge(fake, tmp_path), questions, "ask") == [q.user for q in questions]
    assert sorted(user for _, user, _ in fake.asked) == list("0123")
    lines = (tmp_path / "judge.jsonl").read_bytes().splitlines()
    assert sorted(json.loads(line)["user"] for line in lines) == list("0123")


def test_an_error_is_not_kept(tmp_path: Path) -> None:
    replies: Iterator[Callable[[], str]] = iter([lambda: 1 / 0, lambda: "fine"])  # pyright: ignore[reportAssignmentType]
    judge = CachedJudge(Fake(lambda s, u: next(replies)()), tmp_path)
    with pytest.raises(ZeroDivisionError):
        judge.ask("", "", max_tokens=1)
    assert judge.ask("", "", max_tokens=1) == "fine"


def test_without_a_folder_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    fake = Fake(lambda s, u: u)
    judge = CachedJudge(fake, None)
    assert judge.ask("", "a", max_tokens=1) == judge.ask("", "a", max_tokens=1) == "a"
    assert len(fake.asked) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "judge.jsonl").mkdir()
    with pytest.raises(InputError, match=r"judge.jsonl: can(not|'t) be read"):
        CachedJudge(Fake(lambda s, u: u), tmp_path)
    with pytest.raises(InputError, match=r"judge.jsonl: can't be written"):
        CachedJudge(Fake(lambda s, u: u), tmp_path / "file").ask("", "", max_tokens=1)
