"""Text around a token, as a terminal can show it: decoded whole, harmless, and fitted to its columns."""

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
    """The text around one token, within the window that the language model saw and within the token's document.

    The three strings hold printable characters only, and around the token no more than two spaces in a row (code
    is full of them). `token` is made of whole characters: where a character is spelled by several tokens, all of it.
    """

    before: str
    token: str
    after: str
    starts: bool
    """Nothing precedes `before` in the document."""
    ends: bool
    """Nothing follows `after` in the document."""

    @property
    def text(self) -> str:
        """All of it."""
        return self.before + self.token + self.after


def read_passage(tokens: Tokens, tokenizer: PreTrainedTokenizerBase, row: int) -> Passage:
    """The passage around the token at `row`."""
    document = int(tokens.document_of(torch.tensor([row])))
    first = int(tokens.document_starts[document])
    last = document + 1 == len(tokens.document_starts)
    # A document's closing token is no text, nor is a BOS.
    end = tokens.n_tokens
    if not last:
        end = int(tokens.document_starts[document + 1]) - 1
        if tokens.prepend_bos:  # before the closing token may stand a BOS, and before the next document
            end -= (end % tokens.context == 0) + ((end - 1) % tokens.context == 0)
        end = max(end, row + 1)
    window = row - row % tokens.context
    start = min(max(first, window + tokens.prepend_bos, row - _REACH), row)
    stop = min(end, window + tokens.context, row + 1 + _REACH)
    ids = tokens.ids.flatten()[start:stop].tolist()
    before, token, after = split_at(ids, row - start, tokenizer)
    starts, ends = start == first, stop == end and not last
    # A cut through a character leaves a part of it at the edge.
    before = before if starts else before.lstrip(UNKNOWN)
    after = after if ends else after.rstrip(UNKNOWN)
    return Passage(*_blanks_outside(printable(before), printable(token), printable(after)), starts, ends)


def split_at(ids: list[int], i: int, tokenizer: PreTrainedTokenizerBase) -> tuple[str, str, str]:
    """The text of `ids`: before the i-th token, the token, and after it.

    Tokens of a byte-level vocabulary may be parts of a character; then the middle grows to whole characters. A
    piece ends on a whole character just where its text is how the whole text begins.
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
    """Spaces at the token's ends belong to its surroundings; a token of nothing but spaces shows them."""
    inner = token.strip(" ")
    if not inner:
        return _narrow(before), BLANK * max(len(token), 1), _narrow(after)
    left, right = token.split(inner, 1)
    return _narrow(before + left), inner, _narrow(right + after)


def _narrow(text: str) -> str:
    return re.sub(" {3,}", "  ", text)


def fit(text: str, columns: int, keep: Literal["start", "end"], cut: bool = False) -> str:
    """At most `columns` terminal columns of a text, its start or its end; an ellipsis where something is missing.

    cut: something is missing already.
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
    """One line of a concordance: the marked token begins in column `left`, and `right` columns are left for it."""
    token = fit(passage.token, max(right - 2, 1), "start")
    before = fit(passage.before, left, "end", cut=not passage.starts)
    after = fit(passage.after, right - 2 - cell_len(token), "start", cut=not passage.ends)
    return Text.assemble(
        " " * (left - cell_len(before)), before, ("«", "dim"), (token, "bold reverse"), ("»", "dim"), after
    )
