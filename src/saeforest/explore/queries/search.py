"""Searching for text in the contexts of an index."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import cached_property
from threading import Lock

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ...errors import InputError
from ...extras import needs
from ...hf_types import PreTrainedTokenizerBase
from ...output import printable
from ...schema import shown
from ..index import Index
from .cards import Matched

#: Where a search looks.
PLACES: tuple[Matched, ...] = ("label", "token", "text")
MOST_PATTERN = 200
# A regular expression gets this long for everything it is matched with.
_SECONDS = 2.0
_BATCH = 1024

Matches = Callable[[str], bool]


class TimeIsUp(Exception):
    """A regular expression took too long; what was found before is right."""


class Search:
    """Searches for text in the contexts of all features. Decoded text is cached, so the first search takes longest."""

    def __init__(self, index: Index, tokenizer: PreTrainedTokenizerBase) -> None:
        self.index, self.tokenizer = index, tokenizer
        self._lock = Lock()

    def prepare(self) -> None:
        """Decode all text, so that no search has to."""
        with self._lock:
            _ = self._tokens, self._windows

    def hits(
        self,
        matches: Matches,
        labels: Mapping[int, str],
        *,
        whole: Matches | None = None,
        places: Collection[Matched] = PLACES,
        given: Collection[int] = (),
    ) -> Iterator[tuple[Matched, int, int | None]]:
        """Find text in lower case. Yields where it was found, the feature, and which context (None for a label).

        matches: whether a text has what is looked for. whole: whether a token is just that; such tokens come first.
        places: where to look. The text around a token is its whole window.
        given: features whose labels somebody gave: these come first. Other labels are made of tokens, so the features
        that fire most on what is looked for come first.
        """
        self.prepare()
        if "label" in places:
            found = [feature for feature, label in sorted(labels.items()) if matches(label.casefold())]
            share = self._share(_where(self._top_ids, self._tokens, matches)).tolist() if found else []
            for feature in sorted(found, key=lambda f: (f not in given, -share[f])):
                yield "label", feature, None
        if "token" in places:
            for of_token in (whole, matches):
                if of_token is not None:
                    for feature, place in self._ranked(_where(self._top_ids, self._tokens, of_token)):
                        yield "token", feature, place
        if "text" in places:
            for feature, place in self._ranked(_where(self._top_windows, self._windows, matches)):
                yield "text", feature, place

    def _ranked(self, hits: Bool[Tensor, "d_sae n_contexts"]) -> Iterator[tuple[int, int]]:
        """Feature and context of every hit; features with a larger fraction of activations that match come first."""
        share = self._share(hits)
        for feature in share.argsort(descending=True, stable=True).tolist():
            if share[feature] <= 0:
                return
            for place in hits[feature].nonzero().flatten().tolist():
                yield feature, place

    def _share(self, hits: Bool[Tensor, "d_sae n_contexts"]) -> Float[Tensor, "d_sae"]:
        """The share of each feature's strongest activations that are hits, weighted by the activations."""
        value = self.index.top_value
        return (value * hits).sum(1) / value.sum(1).clamp(min=1e-12)

    @cached_property
    def _top_ids(self) -> Int[Tensor, "d_sae n_contexts"]:
        """The token of every context; -1 if there is none."""
        rows = self.index.top_row
        return torch.where(rows >= 0, self.index.tokens.ids.flatten()[rows.clamp(min=0).long()].long(), -1)

    @cached_property
    def _tokens(self) -> dict[int, str]:
        """The text of these tokens, by id."""
        ids = [i for i in self._top_ids.unique().tolist() if i >= 0]
        return dict(zip(ids, self._decoded([[i] for i in ids]), strict=True))

    @cached_property
    def _top_windows(self) -> Int[Tensor, "d_sae n_contexts"]:
        """The window of every context; -1 if there is none."""
        rows = self.index.top_row
        return torch.where(rows >= 0, rows // self.index.tokens.context, -1)

    @cached_property
    def _windows(self) -> dict[int, str]:
        """The text of these windows, by number."""
        windows = [w for w in self._top_windows.unique().tolist() if w >= 0]
        return dict(zip(windows, self._decoded(self.index.tokens.ids[windows].tolist()), strict=True))

    def _decoded(self, texts: list[list[int]]) -> list[str]:
        """The texts of token ids, in lower case, as they are shown: control characters as signs."""
        found: list[str] = []
        for first in range(0, len(texts), _BATCH):
            found += self.tokenizer.batch_decode(
                texts[first : first + _BATCH], skip_special_tokens=False, clean_up_tokenization_spaces=False
            )
        return [printable(text).casefold() for text in found]


def words(query: str) -> tuple[Matches, Matches]:
    """Whether a text in lower case has the query in it; and whether it is the query, but for spaces around it."""
    query = query.casefold()
    word = query.strip()
    return lambda text: query in text, lambda token: token.strip() == word


def expression(pattern: str) -> Matches:
    """Whether a text matches a regular expression somewhere, without regard to case.

    Raises InputError if `pattern` is no regular expression, or too long. The function raises TimeIsUp once all calls
    together have taken too long.
    """
    with needs("explore", "a search by regular expression"):
        import regex
    if len(pattern) > MOST_PATTERN:
        raise InputError(
            f"regular expression of {len(pattern):,} characters: expected at most {MOST_PATTERN}"
        )
    try:
        compiled = regex.compile(pattern, regex.IGNORECASE | regex.V0)
    except (regex.error, OverflowError, RecursionError, ValueError) as error:
        raise InputError(f"regular expression {shown(pattern)}: {printable(str(error))}") from None
    until: float | None = None

    def matches(text: str) -> bool:
        nonlocal until
        until = time.monotonic() + _SECONDS if until is None else until
        left = until - time.monotonic()
        try:
            if left <= 0:
                raise TimeIsUp
            return compiled.search(text, timeout=left, concurrent=True) is not None
        except (TimeoutError, MemoryError):
            raise TimeIsUp from None

    return matches


def _where(
    keys: Int[Tensor, "d_sae n_contexts"], texts: Mapping[int, str], matches: Callable[[str], bool]
) -> Bool[Tensor, "d_sae n_contexts"]:
    """Which contexts have a text that matches."""
    found = [key for key, text in texts.items() if matches(text)]
    return torch.isin(keys, torch.tensor(found, dtype=keys.dtype))
