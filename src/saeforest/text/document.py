"""A document, and cutting a long text into several documents."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Document:
    """A text, and a name by which a person finds it: "wiki: Albert Einstein", "notes.txt", "data.jsonl:17"."""

    text: str
    name: str
    whole: str = ""
    """The text that this document is a piece of, if any. All pieces of a text are held out together."""
    chat: bool = False
    """Whether this is a rendered chat: special tokens spelled out in it are then encoded as special tokens."""


# One long module or conversation would otherwise be a large share of a small mix.
LONG = 6_000  # characters
DEFINITION = re.compile(r"(?<=\n\n)(?=@|(?:async def|def|class)\b)")
METHOD = re.compile(r"(?<=\n\n)(?=    (?:@|(?:async def|def|class)\b))")
PARAGRAPH = re.compile(r"(?<=\n\n)(?=.)")
LINE = re.compile(r"(?<=\n)(?=.)")


def cut(text: str, name: str, boundaries: Sequence[re.Pattern[str]]) -> Iterator[Document]:
    """Cut a text into documents of at most `LONG` characters, each named with the line at which it begins."""
    line = 1
    for piece in pieces_of(text, boundaries):
        yield Document(piece.strip("\n"), name if line == 1 else f"{name}:{line}", whole=text)
        line += piece.count("\n")


def pieces_of(text: str, boundaries: Sequence[re.Pattern[str]], limit: int = LONG) -> list[str]:
    """Cut `text` into pieces of at most `limit` characters that concatenate to `text`.

    boundaries: where to cut, in order of preference; a later pattern is used only inside a part that is still too long.
    A part without any boundary stays longer than `limit`.
    """
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
