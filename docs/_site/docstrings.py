"""Docstrings as Markdown: `name: text` of an argument or attribute becomes an item of a list, and an indented example
a block of code. The types stand in the signature."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from typing import Any

import griffe

ITEM = re.compile(r"(\w+(?:, \w+)*): (.*)")


class Docstrings(griffe.Extension):
    """Rewrites the docstrings of a package when all of it has been read."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        for thing in _everything(pkg):
            if thing.docstring is not None:
                thing.docstring.value = markdown(thing.docstring.value, _names(thing))


def _everything(thing: griffe.Object) -> Iterator[griffe.Object]:
    yield thing
    for member in thing.members.values():
        if not member.is_alias:
            yield from _everything(member)


def _names(thing: griffe.Object) -> set[str]:
    """What a docstring may describe by name: the arguments of a function, the attributes of a class."""
    if isinstance(thing, griffe.Function):
        return {parameter.name.lstrip("*") for parameter in thing.parameters}
    if isinstance(thing, griffe.Class):
        return set(thing.members) | {parameter.name for parameter in thing.parameters}
    return set()


def markdown(text: str, names: set[str]) -> str:
    lines, out = text.splitlines(), []
    at = 0
    while at < len(lines):
        line = lines[at]
        at += 1
        item = ITEM.fullmatch(line)
        if item and set(item[1].split(", ")) <= names:
            if out and out[-1] and not out[-1].startswith(("- ", "    ")):
                out.append("")
            out.append(f"- {', '.join(f'`{name}`' for name in item[1].split(', '))}: {item[2]}")
        elif re.fullmatch(r"Examples?\b.*:", line):
            block = []
            while at < len(lines) and (not lines[at] or lines[at].startswith(" ")):
                block.append(lines[at])
                at += 1
            code = textwrap.dedent("\n".join(block)).strip("\n")
            out += [
                "",
                f"*{line.removesuffix(':')}:*",
                "",
                "```pycon" if ">>>" in code else "```python",
                code,
                "```",
                "",
            ]
        else:
            out.append(line)
    return "\n".join(out)
