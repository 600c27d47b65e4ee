"""Every text in the source that a person reads: docstrings, help of options, comments and error messages."""

from __future__ import annotations

import ast
import io
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Kind = Literal["docstring", "help", "comment", "error"]


@dataclass(frozen=True)
class Text:
    """One text: where it stands, what it belongs to, and its words on one line; a value in a message is `{}`."""

    path: Path
    line: int
    kind: Kind
    name: str
    words: str


def texts(path: Path) -> list[Text]:
    """The texts of a source file, in the order of their lines."""
    source = path.read_text(encoding="utf-8")
    found = [*_of_node(path, ast.parse(source), ""), *_comments(path, source)]
    return sorted(found, key=lambda text: text.line)


def _of_node(path: Path, node: ast.AST, name: str) -> Iterator[Text]:
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        words = ast.get_docstring(node)
        if words is not None:
            yield Text(path, node.body[0].lineno, "docstring", name or "module", " ".join(words.split()))
    if isinstance(node, ast.ClassDef):
        for field, after in zip(node.body, node.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign | ast.Assign) and (words := _text(after)) is not None:
                target = field.target if isinstance(field, ast.AnnAssign) else field.targets[0]
                yield Text(path, after.lineno, "help", f"{name}.{ast.unparse(target)}", words)
    if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args:
        words = _message(node.exc.args[0])
        if words.replace("{}", "").strip():
            yield Text(path, node.lineno, "error", name, words)
    for child in ast.iter_child_nodes(node):
        own = getattr(child, "name", None) if isinstance(child, ast.ClassDef | ast.FunctionDef) else None
        yield from _of_node(path, child, ".".join(filter(None, (name, own))))


def _text(node: ast.AST) -> str | None:
    """The words of a statement that is only a string."""
    if (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    ):
        return " ".join(node.value.value.split())
    return None


def _message(node: ast.expr) -> str:
    if isinstance(node, ast.Constant):
        return " ".join(str(node.value).split())
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
    return ""


def _comments(path: Path, source: str) -> Iterator[Text]:
    """Comments, those on lines of their own that follow each other as one."""
    begun: Text | None = None
    last = -1
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT:
            continue
        words = token.string.lstrip("#: ")
        alone = not token.line[: token.start[1]].strip()
        if begun is not None and alone and token.start[0] == last + 1:
            begun = Text(path, begun.line, "comment", "", f"{begun.words} {words}")
        else:
            if begun is not None:
                yield begun
            begun = Text(path, token.start[0], "comment", "", words)
        last = token.start[0] if alone else -1
    if begun is not None:
        yield begun
