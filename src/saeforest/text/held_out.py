"""Which documents are held out.

A document is held out if the hash of its text, scaled to [0, 1), is below the fraction to hold out. So training and
held-out text have no text in common, and adding documents moves none of the others to the other side.

With few documents, one side may be empty. Then all documents are cut into passages of at most 6,000 characters (or a
twentieth of the distinct text if that is shorter, but at least 1,000), at the ends of paragraphs if possible, else of
lines, sentences or words. Each passage goes to the side that its own hash decides. If all passages are on one side,
the one whose hash is nearest to the threshold is moved to the other. An exception: if more than half of the text is to
be held out and nothing is left to train on, that is an error.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from itertools import chain

from saeforest.output import note
from saeforest.text.document import LINE, LONG, PARAGRAPH, Document, pieces_of

# Number of characters that are read ahead to see whether a source has text for both sides.
_AHEAD = 2**26
_SHORT, _PASSAGES = 1_000, 20
_BOUNDARIES = [
    PARAGRAPH,
    LINE,
    re.compile(r"(?<=\r)(?=[^\r\n])"),  # lines that end in CR, as on an old Macintosh
    re.compile(r"(?<=[.!?] )(?=\S)|(?<=[。！？])"),
    re.compile(r"(?<=\s)(?=\S)"),
]
_said: set[str] = set()


def split_of(found: Iterator[Document], split: str, held_out: float, source: str) -> Iterator[Document]:
    """Iterate over the documents of one side of the split: "train" or "held_out"."""
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
        # If more than half is to be held out, an empty training side is what was asked for, so nothing is cut.
        if sides == {False} or (sides == {True} and held_out <= 0.5):
            yield from _passages(ahead, wanted, held_out, source)
            return
    for document in chain(ahead, found):
        if _is_held_out(document, held_out) == wanted:
            yield document


def _is_held_out(document: Document, held_out: float) -> bool:
    return fraction(document.whole or document.text) < held_out


def fraction(text: str) -> float:
    """The hash of a text as a number from 0 to 1."""
    digest = blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def _passages(found: Sequence[Document], wanted: bool, held_out: float, source: str) -> Iterator[Document]:
    different = {document.text for document in found}
    limit = min(max(sum(map(len, different)) // _PASSAGES, _SHORT), LONG)
    passages = [passage for document in found for passage in _cut(document, limit)]
    hashes = {passage.text: fraction(passage.text) for passage in passages}
    held = {text for text, value in hashes.items() if value < held_out}
    if not held or len(held) == len(hashes):
        # Move the passage nearest to the threshold. A single passage stays where it is.
        nearest = min(hashes, key=hashes.__getitem__) if not held else max(hashes, key=hashes.__getitem__)
        held = (held ^ {nearest}) if len(hashes) > 1 else held
    _say(source, found, different, passages, held, limit)
    for passage in passages:
        if (passage.text in held) == wanted:
            yield passage


def _cut(document: Document, limit: int) -> Iterator[Document]:
    """Passages of a document, each named with the line and column at which it begins."""
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
    """Cut pieces that are still longer than `limit` (they have no boundary) after every `limit` characters."""
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
    equal = f" ({len(found) - len(different):,} of them duplicates)" if len(found) > len(different) else ""
    line = (
        f"text source '{source}': its {len(found):,} document{'s' if len(found) > 1 else ''}{equal} would leave "
        f"nothing to train on or to hold out, so they are split into {len(passages):,} passages of up to {limit:,} "
        f"characters, of which {n_held:,} are held out"
    )
    if line not in _said:
        _said.add(line)
        note(line)
