"""Text around tokens as pieces of whole characters, each with what a feature does on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ...hf_types import PreTrainedTokenizerBase
from ...output import UNKNOWN, printable
from ...structure.forest import Forest
from ...text.passages import span
from ..index import Index
from ..index.form import REACH

_DIGITS = 4
# Tokens decoded in one call.
_BATCH = 4096


@dataclass(frozen=True)
class Context:
    """An activation with the text around it.

    value: the activation. row: row of its token in the indexed text.
    tokens: the text, in pieces of whole characters. values: the feature's activation on each of them.
    at: which of them the activation is on. child: the child that fires most strongly on each of them, -1 if none does;
    None if that was not asked for.
    """

    document: str
    row: int
    value: float
    tokens: tuple[str, ...]
    values: tuple[float, ...]
    at: int
    child: tuple[int, ...] | None = None


class TokenTexts:
    """The text of tokens: printable characters, as in `Passage`. Every token is decoded once."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        # A tokenizer may drop a space before the first token, so every token is decoded behind another one.
        found = tokenizer("a", add_special_tokens=False)["input_ids"]
        self._anchor = [int(found[-1])] if len(found) else []  # pyright: ignore[reportArgumentType, reportIndexIssue]
        self._before = self._decode(self._anchor)
        self._texts: dict[int, str] = {}
        # The same as they are shown, but only of tokens that are whole characters.
        self._whole: dict[int, str] = {}

    def of(self, token: int) -> str:
        """The text of a token; of part of a character, a sign that stands for it."""
        return printable(self._raw(token))

    def learn(self, tokens: Sequence[int]) -> None:
        """Decode many tokens at once, which is faster."""
        # Not the difference with the keys, which goes through all of the texts that are known.
        new = sorted(token for token in set(tokens) if token not in self._texts)
        for first in range(0, len(new), _BATCH):
            part = new[first : first + _BATCH]
            texts = self._tokenizer.batch_decode(
                [[*self._anchor, token] for token in part],
                skip_special_tokens=False,
                clean_up_tokenization_spaces=False,
            )
            for token, text in zip(part, texts, strict=True):
                self._texts[token] = found = str(text).removeprefix(self._before)
                if UNKNOWN not in found:
                    self._whole[token] = printable(found)

    def whole(self, ids: Sequence[int]) -> list[str] | None:
        """The text of each token, if all are whole characters; else None."""
        try:
            return [self._whole[token] for token in ids]
        except KeyError:
            self.learn(ids)
        return [self._whole[token] for token in ids] if self._whole.keys() >= set(ids) else None

    def pieces(self, ids: Sequence[int]) -> list[tuple[str, int, int]]:
        """The text of `ids` in pieces of whole characters: the text, and the first and last+1 token of each piece.

        A piece is one token, or the tokens that spell one character together.
        """
        found: list[tuple[str, int, int]] = []
        i = 0
        while i < len(ids):
            text, end = self._whole.get(ids[i]), i + 1
            if text is None:
                text, end = self._spelled(ids, i)
            found.append((text, i, end))
            i = end
        return found

    def _spelled(self, ids: Sequence[int], i: int) -> tuple[str, int]:
        """The text of the piece that begins with token i, and its last+1 token."""
        text, end = self._raw(ids[i]), i + 1
        if UNKNOWN in text:
            while end < len(ids) and UNKNOWN in self._raw(ids[end]):
                end += 1
                joined = self._decode([*self._anchor, *ids[i:end]]).removeprefix(self._before)
                if UNKNOWN not in joined:
                    text = joined
                    break
            else:
                end = i + 1  # half of a character at the edge, or bytes that are none
        return printable(text), end

    def _raw(self, token: int) -> str:
        if (text := self._texts.get(token)) is None:
            self.learn([token])
            text = self._texts[token]
        return text

    def _decode(self, ids: Sequence[int]) -> str:
        text = self._tokenizer.decode(
            list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        assert isinstance(text, str)
        return text


class Contexts:
    """The contexts of features of an index."""

    def __init__(self, index: Index, forest: Forest, texts: TokenTexts) -> None:
        self._index, self._forest, self._texts = index, forest, texts
        self._ids = index.tokens.ids.flatten()
        self._place = {parent: place for place, parent in enumerate(index.parents.tolist())}
        self._n_top = index.top_row.shape[1]

    def top(self, feature: int, *, children: bool = True, most: int | None = None) -> list[Context]:
        """The strongest activations of a feature. children: whether to say which child fires on each token."""
        rows, values = self._index.top_row[feature, :most], self._index.top_value[feature, :most]
        return self._contexts(feature, rows.tolist(), values.tolist(), 0, children)

    def one(self, feature: int, place: int) -> Context:
        """One of the strongest activations of a feature, by its place among them."""
        rows, values = self._index.top_row[feature, [place]], self._index.top_value[feature, [place]]
        return self._contexts(feature, rows.tolist(), values.tolist(), place, children=False)[0]

    def samples(self, feature: int, *, children: bool = True) -> list[Context]:
        """The sampled activations of a feature, from the highest part of its range to the lowest."""
        rows, values = self._index.sample_row[feature], self._index.sample_value[feature]
        return self._contexts(feature, rows.tolist(), values.tolist(), self._n_top, children)

    def made(self, row: int, value: float, window: NDArray[np.floating]) -> Context:
        """A context with other values than those in the index. window: `[64]`; place `REACH` is the row itself."""
        document = int(self._index.tokens.document_of(torch.tensor([row])))
        return self._context(row, value, document, window.round(_DIGITS), None, -1)

    def around(self, row: int, reach: int = REACH) -> tuple[str, str, str]:
        """The text before the token at a row, of the token, and after it."""
        document = int(self._index.tokens.document_of(torch.tensor([row])))
        start, stop, _, _ = span(self._index.tokens, row, document, reach, reach)
        pieces = self._texts.pieces(self._ids[start:stop].tolist())
        at = next(i for i, (_, first, end) in enumerate(pieces) if first <= row - start < end)
        texts = [text for text, _, _ in pieces]
        return "".join(texts[:at]), texts[at], "".join(texts[at + 1 :])

    def _contexts(
        self, feature: int, rows: list[int], values: list[float], first: int, children: bool
    ) -> list[Context]:
        kept = [(place, row) for place, row in enumerate(rows) if row >= 0]
        if not kept:
            return []
        documents = self._index.tokens.document_of(torch.tensor([row for _, row in kept])).tolist()
        most = float(self._index.value_max[feature])
        last = first + len(rows)
        windows = self._index.window_values[feature, first:last].numpy() * (most / 255)
        windows = windows.round(_DIGITS)
        parent = self._place.get(feature) if children else None
        kids = None if parent is None else self._index.window_child[parent, first:last].numpy()
        return [
            self._context(
                row, values[place], document, windows[place], None if kids is None else kids[place], feature
            )
            for (place, row), document in zip(kept, documents, strict=True)
        ]

    def _context(
        self,
        row: int,
        value: float,
        document: int,
        window: NDArray[np.floating],
        kids: NDArray[np.integer] | None,
        feature: int,
    ) -> Context:
        tokens = self._index.tokens
        start, stop, _, _ = span(tokens, row, document, REACH, REACH)
        first = start - row + REACH
        ids = self._ids[start:stop].tolist()
        each = window[first : first + stop - start].tolist()
        each[row - start] = round(value, _DIGITS)
        names = self._forest.children(feature) if kids is not None else []
        of_token = [] if kids is None else kids[first : first + stop - start].tolist()
        if (texts := self._texts.whole(ids)) is not None:
            child = tuple(names[k] if 0 <= k < len(names) else -1 for k in of_token)
            return Context(
                document=printable(tokens.names[document]),
                row=row,
                value=round(value, _DIGITS),
                tokens=tuple(texts),
                values=tuple(each),
                at=row - start,
                child=None if kids is None else child,
            )
        pieces = self._texts.pieces(ids)
        here = row - start
        at = next(i for i, (_, a, b) in enumerate(pieces) if a <= here < b)
        # The piece that the row is part of says what happens on the row itself.
        spans = [(here, here + 1) if i == at else (a, b) for i, (_, a, b) in enumerate(pieces)]
        child = None
        if kids is not None:
            child = tuple(
                next((names[k] for k in of_token[a:b] if 0 <= k < len(names)), -1) for a, b in spans
            )
        return Context(
            document=printable(tokens.names[document]),
            row=row,
            value=round(value, _DIGITS),
            tokens=tuple(text for text, _, _ in pieces),
            values=tuple(max(each[a:b]) for a, b in spans),
            at=at,
            child=child,
        )
