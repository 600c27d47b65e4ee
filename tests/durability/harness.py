"""Commands in processes of their own, killed, disturbed or told to stop at any of their file operations.

A child is forked, so that nothing has to be imported again; an audit hook in it sees every file that it opens, renames,
makes or removes below its folder, before that happens.
"""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saeforest import cli
from saeforest.activations.plan import is_unfinished
from saeforest.claim import is_lock
from saeforest.files import is_temporary

from .cases import Case

# What a process says of a file before it does anything to it.
_EVENTS = {
    "open",
    "os.rename",
    "os.remove",
    "os.mkdir",
    "os.rmdir",
    "os.truncate",
    "os.chmod",
    "shutil.rmtree",
}
_TIMES = {"seconds", "tokens_per_s", "peak_memory_mb"}
_PATIENCE_S = 120


@dataclass(frozen=True)
class Ended:
    """How a child ended: its exit status, or minus the signal that killed it."""

    status: int
    operations: int
    out: str
    err: str


Act = Callable[[], object]


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fail(code: int) -> Act:
    """Makes the operation fail, as a full or broken disk would."""

    def act() -> None:
        raise OSError(code, os.strerror(code))

    return act


def tell(signum: int) -> Act:
    return lambda: os.kill(os.getpid(), signum)


def command(
    argv: list[Any],
    folder: Path,
    at: int = -1,
    act: Act = kill,
    prepare: Act = lambda: None,
    talk_to: str = "talk",
) -> Ended:
    """Runs a command line in a child whose current folder is `folder`, and does `act` at its file operation `at`.

    talk_to: where its output goes, for commands that run at the same time.
    """
    talk = folder.parent / f"{folder.name}.{talk_to}"
    talk.mkdir(exist_ok=True)
    child = os.fork()
    if child == 0:
        status = 70
        try:
            for name, descriptor in (("out", 1), ("err", 2)):
                file = os.open(talk / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
                os.dup2(file, descriptor)
            sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
            sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
            faulthandler.dump_traceback_later(_PATIENCE_S - 10, file=2)  # where it hangs, if it does
            os.chdir(folder)
            prepare()
            count = _watch(str(folder), at, act)
            status = cli.run([str(arg) for arg in argv])
            (talk / "operations").write_text(str(count()))
        except BaseException:
            import traceback

            traceback.print_exc()
            status = 71
        finally:
            try:
                sys.stdout.flush()
                sys.stderr.flush()
            finally:  # also where a stream is a broken pipe: a child must not go on with the tests
                os._exit(status)
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            raise AssertionError(f"{argv} hangs at operation {at}: {(talk / 'err').read_text()[-2000:]}")
        time.sleep(0.002)
    code = os.waitstatus_to_exitcode(status)
    operations = int((talk / "operations").read_text()) if code in (0, 1) else -1
    return Ended(code, operations, (talk / "out").read_text(), (talk / "err").read_text())


def _watch(folder: str, at: int, act: Act) -> Callable[[], int]:
    seen, acting = 0, False

    def hook(event: str, args: tuple[Any, ...]) -> None:
        nonlocal seen, acting
        if event not in _EVENTS or acting:
            return
        path = args[0]
        if not isinstance(path, str | bytes | os.PathLike):
            return
        if not os.path.join(os.getcwd(), os.fsdecode(path)).startswith(folder):
            return
        seen += 1
        if seen - 1 == at:
            acting = True
            try:
                act()
            finally:
                acting = False

    sys.addaudithook(hook)
    return lambda: seen


def contents(folder: Path) -> dict[str, Any]:
    """What a folder holds, without times: bytes, or what a log or tensor file says."""
    return {
        path.relative_to(folder).as_posix(): _content(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "harvest.json"
    }


def _content(path: Path) -> Any:
    if path.name == "log.jsonl":
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        assert sum(line.get("event") == "finished" for line in lines) == 1
        return [
            {key: value for key, value in line.items() if key not in _TIMES}
            for line in lines
            if line.get("event") not in ("finished", "harvest")
        ]
    return path.read_bytes()


def leftovers(folder: Path) -> list[str]:
    """What a finished command must not leave: temporary files, locks, copies of activations, checkpoints."""
    names = {
        "checkpoints",
        "index.unfinished",
        "demo.json",
    }
    return [
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if is_temporary(path) or is_lock(path) or is_unfinished(path.name) or path.name in names
    ]


def same(one: dict[str, Any], other: dict[str, Any]) -> str:
    """What differs between two contents; empty if nothing does."""
    if one.keys() != other.keys():
        return f"files {sorted(one.keys() ^ other.keys())}"
    differing = [name for name in one if one[name] != other[name]]
    return f"content of {differing}" if differing else ""


def flaw_once_more(case: Case, folder: Path, expected: dict[str, Any], prepare: Act) -> str:
    """What is wrong after the command was given again in a folder where it was disturbed; empty if nothing is."""
    ended = command(case.once_more, folder, prepare=prepare)
    if ended.status != 0:
        return f"then status {ended.status}: {ended.err[-500:]}"
    if left := leftovers(folder):
        return f"left {left}"
    differing = same(contents(folder), expected)
    return f"other {differing}" if differing else ""


def every() -> int:
    """k where every k-th operation is to be tried (SAEFOREST_KILL_POINTS=k, `make durability`), else 0."""
    return int(os.environ.get("SAEFOREST_KILL_POINTS", "0"))


def points(n: int, some: int, shift: int = 0) -> list[int]:
    """Which of `n` operations to try: every k-th, or else `some` that are spread evenly. shift: starts elsewhere."""
    if step := every():
        return list(range(shift % step, n, step))
    # By the golden ratio, so that tests that differ in `shift` or in `n` try different moments.
    return sorted({int(n * ((shift + i + 0.5) * 0.6180339887 % 1)) for i in range(some)})
