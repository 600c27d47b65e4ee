"""A document, and how a long text is cut into several."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Document:
    """One text, and where a reader finds it: "wiki: Albert Einstein", "notes.txt", "data.jsonl:17"."""

    text: str
    name: str
    whole: str = ""
    """The text it is a piece of, if it is one: pieces of one whole are held out together."""
    chat: bool = False
    """Whether it is a rendered chat, whose special tokens are meant as such."""


# One long module or conversation would otherwise be a large share of a small mix.
LONG = 6_000  # characters
DEFINITION = re.compile(r"(?<=\n\n)(?=@|(?:async def|def|class)\b)")
METHOD = re.compile(r"(?<=\n\n)(?=    (?:@|(?:async def|def|class)\b))")
PARAGRAPH = re.compile(r"(?<=\n\n)(?=.)")
LINE = re.compile(r"(?<=\n)(?=.)")


def cut(text: str, name: str, boundaries: Sequence[re.Pattern[str]]) -> Iterator[Document]:
    line = 1
    for piece in pieces_of(text, boundaries):
        yield Document(piece.strip("\n"), name if line == 1 else f"{name}:{line}", whole=text)
        line += piece.count("\n")


def pieces_of(text: str, boundaries: Sequence[re.Pattern[str]], limit: int = LONG) -> list[str]:
    """Pieces that join to `text`, none above `limit` unless one line is, cut at the first boundaries that suffice."""
    if len(text) <= limit or not boundaries:
        return [text]
    pieces = [""]
    for part in boundaries[0].split(text):
        for piece in [part] if len(part) <= limit else pieces_of(part, boundaries[1:], limit):
            if pieces[-1] and len(pieces[-1]) + len(piece) > limit:
                pieces.append(piece)
            else:
                pieces[-1] += piece
    return pieces
