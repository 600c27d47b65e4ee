"""Which documents are held out.

A document is held out when the hash of its text, read as a fraction, is below the share to hold out. So training and
held-out text have no text in common, and adding documents moves none of the others.

A source of few documents may leave one side empty. Then all its documents are cut into passages of up to 6,000
characters (a twentieth of the different text if that is shorter, but not below 1,000), at the ends of paragraphs,
lines, sentences or words, whichever suffices; the passages go by their own hashes; and where these too are all on one
side, the passage whose hash comes nearest goes to the other. (Nothing left to train on under a share above a half is an
error instead.)
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from itertools import chain

from saeforest.output import note
from saeforest.text.document import LINE, LONG, PARAGRAPH, Document, pieces_of

# So many characters are read ahead to see whether a source has text for both sides.
_AHEAD = 2**26
_SHORT, _PASSAGES = 1_000, 20
_BOUNDARIES = [
    PARAGRAPH,
    LINE,
    re.compile(r"(?<=\r)(?=[^\r\n])"),  # lines of an old Macintosh
    re.compile(r"(?<=[.!?] )(?=\S)|(?<=[。！？])"),
    re.compile(r"(?<=\s)(?=\S)"),
]
_said: set[str] = set()


def split_of(found: Iterator[Document], split: str, held_out: float, source: str) -> Iterator[Document]:
    """The documents of one side: "train" or "held_out"."""
    if not 0 < held_out < 1:
        return (d for d in found if _is_held_out(d, held_out) == (split == "held_out"))
    return _split(found, split == "held_out", held_out, source)


def _split(found: Iterator[Document], wanted: bool, held_out: float, source: str) -> Iterator[Document]:
    ahead: list[Document] = []
    sides: set[bool] = set()
    characters = 0
    for document in found:
        ahead.append(document)
        sides.add(_is_held_out(document, held_out))
        characters += len(document.text)
        if len(sides) == 2 or characters > _AHEAD:
            break
    else:
        # All held out where more is to be held out than kept: that is the share's doing, and not of few documents.
        if sides == {False} or (sides == {True} and held_out <= 0.5):
            yield from _passages(ahead, wanted, held_out, source)
            return
    for document in chain(ahead, found):
        if _is_held_out(document, held_out) == wanted:
            yield document


def _is_held_out(document: Document, held_out: float) -> bool:
    return fraction(document.whole or document.text) < held_out


def fraction(text: str) -> float:
    """The hash of a text, from 0 to 1."""
    digest = blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def _passages(found: Sequence[Document], wanted: bool, held_out: float, source: str) -> Iterator[Document]:
    different = {document.text for document in found}
    limit = min(max(sum(map(len, different)) // _PASSAGES, _SHORT), LONG)
    passages = [passage for document in found for passage in _cut(document, limit)]
    hashes = {passage.text: fraction(passage.text) for passage in passages}
    held = {text for text, value in hashes.items() if value < held_out}
    if not held or len(held) == len(hashes):
        # The one that comes nearest to the other side; a lone passage stays where it is.
        nearest = min(hashes, key=hashes.__getitem__) if not held else max(hashes, key=hashes.__getitem__)
        held = (held ^ {nearest}) if len(hashes) > 1 else held
    _say(source, found, different, passages, held, limit)
    for passage in passages:
        if (passage.text in held) == wanted:
            yield passage


def _cut(document: Document, limit: int) -> Iterator[Document]:
    """Passages of a document, named by the line and column at which they begin."""
    start = 0
    for piece in _short(pieces_of(document.text, _BOUNDARIES, limit), limit):
        line = document.text.count("\n", 0, start) + 1
        column = start - (document.text.rfind("\n", 0, start) + 1)
        place = f"{document.name}:{line}" if line > 1 else document.name
        text = piece.strip("\r\n")
        if text.strip():
            yield Document(text, f"{place}+{column}" if column else place, chat=document.chat)
        start += len(piece)


def _short(pieces: Sequence[str], limit: int) -> Iterator[str]:
    """A piece without any boundary is cut anywhere."""
    for piece in pieces:
        yield from (piece[i : i + limit] for i in range(0, len(piece), limit))


def _say(
    source: str,
    found: Sequence[Document],
    different: set[str],
    passages: Sequence[Document],
    held: set[str],
    limit: int,
) -> None:
    n_held = sum(passage.text in held for passage in passages)
    equal = (
        f", {len(found) - len(different):,} of them equal to others" if len(found) > len(different) else ""
    )
    line = (
        f"text source '{source}': its {len(found):,} document{'s' if len(found) > 1 else ''}{equal} would leave "
        f"nothing to train on or to hold out, so passages of up to {limit:,} characters stand for documents: "
        f"{len(passages):,}, of which {n_held:,} are held out"
    )
    if line not in _said:
        _said.add(line)
        note(line)
