"""Searching for text in the contexts of an index."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cached_property

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from ..hf_types import PreTrainedTokenizerBase
from .cards import Matched
from .index import Index


class Search:
    """Searches for text in the contexts of all features. Decoded text is cached, so the first search takes longest."""

    def __init__(self, index: Index, tokenizer: PreTrainedTokenizerBase) -> None:
        self.index, self.tokenizer = index, tokenizer

    def hits(self, query: str, labels: Mapping[int, str]) -> Iterator[tuple[Matched, int, int | None]]:
        """Find `query` (lower case). Yields where it was found, the feature, and which context (None for a label).

        Whole tokens come before parts of tokens. The text around a token is its whole window.
        """
        for feature, label in sorted(labels.items()):
            if query in label.casefold():
                yield "label", feature, None
        word = query.strip()
        for matches in (lambda token: token.strip() == word, lambda token: query in token):
            for feature, place in self._ranked(_where(self._top_ids, self._tokens, matches)):
                yield "token", feature, place
        around = _where(self._top_windows, self._windows, lambda text: query in text)
        for feature, place in self._ranked(around):
            yield "text", feature, place

    def _ranked(self, hits: Bool[Tensor, "d_sae n_contexts"]) -> Iterator[tuple[int, int]]:
        """Feature and context of every hit; features with a larger fraction of activations that match come first."""
        value = self.index.top_value
        share = (value * hits).sum(1) / value.sum(1).clamp(min=1e-12)
        for feature in share.argsort(descending=True, stable=True).tolist():
            if share[feature] <= 0:
                return
            for place in hits[feature].nonzero().flatten().tolist():
                yield feature, place

    @cached_property
    def _top_ids(self) -> Int[Tensor, "d_sae n_contexts"]:
        """The token of every context; -1 if there is none."""
        rows = self.index.top_row
        return torch.where(rows >= 0, self.index.tokens.ids.flatten()[rows.clamp(min=0)].long(), -1)

    @cached_property
    def _tokens(self) -> dict[int, str]:
        """The text of these tokens, by id."""
        return {i: self._decoded([i]) for i in self._top_ids.unique().tolist() if i >= 0}

    @cached_property
    def _top_windows(self) -> Int[Tensor, "d_sae n_contexts"]:
        """The window of every context; -1 if there is none."""
        rows = self.index.top_row
        return torch.where(rows >= 0, rows // self.index.tokens.context, -1)

    @cached_property
    def _windows(self) -> dict[int, str]:
        """The text of these windows, by number."""
        ids = self.index.tokens.ids
        return {w: self._decoded(ids[w].tolist()) for w in self._top_windows.unique().tolist() if w >= 0}

    def _decoded(self, ids: list[int]) -> str:
        """The text of token ids, in lower case."""
        text = self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        return text.casefold()


def _where(
    keys: Int[Tensor, "d_sae n_contexts"], texts: Mapping[int, str], matches: Callable[[str], bool]
) -> Bool[Tensor, "d_sae n_contexts"]:
    """Which contexts have a text that matches."""
    found = [key for key, text in texts.items() if matches(text)]
    return torch.isin(keys, torch.tensor(found, dtype=keys.dtype))
