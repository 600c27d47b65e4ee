"""What the library says to a user is true in Python too: only the command line speaks of its options."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import saeforest

ROOT = Path(saeforest.__file__).parent
FILES = sorted(path for path in ROOT.rglob("*.py") if path.parent != ROOT / "cli")
# A command to type is the command line's own: in backquotes, or from its name on.
COMMANDS = re.compile(r"`[^`]*`|(saeforest|pip) .*")
OPTION = re.compile(r"(?<![\w!-])--[a-z]")  # an HTML comment is none


def texts(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and text of every string that is no docstring, nor a word of a command that `errors.command` makes."""
    left_out = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "command":
            left_out |= {id(part) for part in ast.walk(node)}
        if isinstance(node, ast.JoinedStr):
            left_out |= {id(part) for part in node.values}
    for node in ast.walk(tree):
        if id(node) in left_out:
            continue
        if isinstance(node, ast.JoinedStr):
            yield (
                node.lineno,
                "".join(str(p.value) if isinstance(p, ast.Constant) else "{}" for p in node.values),
            )
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_library_does_not_speak_of_options(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = [f"{path}:{line}: {text}" for line, text in texts(tree) if OPTION.search(COMMANDS.sub("", text))]
    assert found == []


def test_an_option_is_noticed() -> None:
    told = 'raise InputError(f"{n}: give --seeds" + command("eval", "--sae", n) + f"run `saeforest eval {n} --again`")'
    assert [text for _, text in texts(ast.parse(told)) if OPTION.search(COMMANDS.sub("", text))] == [
        "{}: give --seeds"
    ]
