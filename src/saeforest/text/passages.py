"""The text around a token, ready for a terminal: whole characters, printable, cut to the width."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from rich.cells import cell_len, get_character_cell_size
from rich.text import Text

from saeforest.hf_types import PreTrainedTokenizerBase

from ..output import UNKNOWN, printable
from . import Tokens

ELLIPSIS, BLANK = "…", "␣"
# Tokens decoded on either side: enough for the columns of a wide terminal.
_REACH = 64


@dataclass(frozen=True)
class Passage:
    """The text around one token, within the window that the language model read and within the token's document.

    The three strings hold printable characters only, and `before` and `after` at most two spaces in a row (code is full
    of them). `token` consists of whole characters: if several tokens encode one character, it is that character.
    """

    before: str
    token: str
    after: str
    starts: bool
    """Whether `before` begins at the start of the document."""
    ends: bool
    """Whether `after` reaches the end of the document."""

    @property
    def text(self) -> str:
        """The whole passage."""
        return self.before + self.token + self.after


def read_passage(tokens: Tokens, tokenizer: PreTrainedTokenizerBase, row: int) -> Passage:
    """The passage around the token at `row`."""
    document = int(tokens.document_of(torch.tensor([row])))
    start, stop, starts, ends = span(tokens, row, document, _REACH, _REACH + 1)
    ids = tokens.ids.flatten()[start:stop].tolist()
    before, token, after = split_at(ids, row - start, tokenizer)
    # If the cut is inside a character, its partial bytes at the edge are dropped.
    before = before if starts else before.lstrip(UNKNOWN)
    after = after if ends else after.rstrip(UNKNOWN)
    return Passage(*_blanks_outside(printable(before), printable(token), printable(after)), starts, ends)


def span(tokens: Tokens, row: int, document: int, before: int, after: int) -> tuple[int, int, bool, bool]:
    """The rows of text around the token at `row`, within its document and the window that the language model read.

    document: the document of the row. before, after: at most so many tokens before it, and from it on.

    Returns the first row, the row after the last, and whether they are the start and the end of the document.
    """
    first = int(tokens.document_starts[document])
    last = document + 1 == len(tokens.document_starts)
    # Neither the token that closes a document nor BOS is text.
    end = tokens.n_tokens
    if not last:
        end = int(tokens.document_starts[document + 1]) - 1
        if tokens.prepend_bos:  # a BOS may come before the closing token, and before the next document
            end -= (end % tokens.context == 0) + ((end - 1) % tokens.context == 0)
        end = max(end, row + 1)
    window = row - row % tokens.context
    start = min(max(first, window + tokens.prepend_bos, row - before), row)
    stop = min(end, window + tokens.context, row + after)
    return start, stop, start == first, stop == end and not last


def split_at(ids: list[int], i: int, tokenizer: PreTrainedTokenizerBase) -> tuple[str, str, str]:
    """The text of `ids` before token i, of token i, and after it.

    In a byte-level vocabulary a token may be part of a character; the middle is then extended to whole characters.
    `ids[:n]` ends on a whole character exactly if its text is a prefix of the whole text.
    """

    def decode(n: int) -> str:
        text = tokenizer.decode(ids[:n], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        return text

    whole = decode(len(ids))
    left = next(text for n in range(i, -1, -1) if whole.startswith(text := decode(n) if n else ""))
    right = next(text for n in range(i + 1, len(ids) + 1) if whole.startswith(text := decode(n)))
    return left, whole[len(left) : len(right)], whole[len(right) :]


def _blanks_outside(before: str, token: str, after: str) -> tuple[str, str, str]:
    """Move spaces at the token's ends to the text around it. A token of spaces only is shown as visible blanks."""
    inner = token.strip(" ")
    if not inner:
        return _narrow(before), BLANK * max(len(token), 1), _narrow(after)
    left, right = token.split(inner, 1)
    return _narrow(before + left), inner, _narrow(right + after)


def _narrow(text: str) -> str:
    return re.sub(" {3,}", "  ", text)


def fit(text: str, columns: int, keep: Literal["start", "end"], cut: bool = False) -> str:
    """The start or the end of a text, at most `columns` terminal columns wide, with an ellipsis where it was cut.

    cut: whether the text was cut before, so that it gets an ellipsis in any case.
    """
    if not cut and cell_len(text) <= columns:
        return text
    room = columns - 1
    if room < 0:
        return ""
    if keep == "start":
        return "".join(_within(text, room)) + ELLIPSIS
    return ELLIPSIS + "".join(_within(text[::-1], room))[::-1]


def _within(text: str, columns: int) -> Iterator[str]:
    for c in text:
        columns -= get_character_cell_size(c)
        if columns < 0:
            return
        yield c


def keyword_line(passage: Passage, left: int, right: int) -> Text:
    """One line of a concordance: the marked token starts at column `left`; it and what follows get `right` columns."""
    token = fit(passage.token, max(right - 2, 1), "start")
    before = fit(passage.before, left, "end", cut=not passage.starts)
    after = fit(passage.after, right - 2 - cell_len(token), "start", cut=not passage.ends)
    return Text.assemble(
        " " * (left - cell_len(before)), before, ("«", "dim"), (token, "bold reverse"), ("»", "dim"), after
    )
