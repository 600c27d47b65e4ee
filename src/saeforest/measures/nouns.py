"""Which noun, if any, each token of a text is part of."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int32, Int64
from numpy import ndarray as Array

from ..hf_types import PreTrainedTokenizerBase
from ..text import Tokens
from .wordnet import WordNet

_WORD = re.compile("[A-Za-z]+")


@dataclass(frozen=True)
class Nouns:
    """The nouns of a text.

    at:   `[n_tokens]` the noun that each token is part of, -1 for none.
    base: the base form of each noun, in lower case.
    """

    at: Int32[Array, "n_tokens"]
    base: list[str]

    def most_frequent(self, rows: Int64[Array, "n"], n: int) -> list[str]:
        """Up to `n` nouns that tokens at `rows` are most often part of; of equals, those that the text has first."""
        found = self.at[rows]
        noun, count = np.unique(found[found >= 0], return_counts=True)
        return [self.base[i] for i in noun[np.argsort(-count, kind="stable")[:n]].tolist()]


def nouns_of(tokens: Tokens, tokenizer: PreTrainedTokenizerBase, net: WordNet) -> Nouns:
    """The nouns of a text. A word ends where a context window does."""
    pieces = _pieces(tokens, tokenizer)
    number: dict[str, int] = {}
    at = np.full(tokens.ids.shape, -1, dtype=np.int32)
    for row, ids in zip(at, tokens.ids.tolist(), strict=True):
        texts = [pieces[i] for i in ids]
        ends = np.cumsum([len(text) for text in texts])
        begins = ends - [len(text) for text in texts]
        for word in _WORD.finditer("".join(texts)):
            base = net.noun(word[0].lower())
            if base is not None:
                row[(begins < word.end()) & (ends > word.start())] = number.setdefault(base, len(number))
    return Nouns(at.reshape(-1), list(number))


def _pieces(tokens: Tokens, tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    """The text of each token that occurs, with the space in front of it if it begins a word."""
    ids = tokens.ids.unique().tolist()
    decoded = tokenizer.batch_decode([[i] for i in ids])
    # SentencePiece decoders drop the space before the first word of a text, but the token still shows it.
    spaced = [str(token).startswith("▁") for token in tokenizer.convert_ids_to_tokens(ids)]
    pieces = {i: f" {text}" if s else text for i, text, s in zip(ids, decoded, spaced, strict=True)}
    # The names of special tokens are not words of the text.
    return pieces | dict.fromkeys(tokenizer.all_special_ids, " ")
