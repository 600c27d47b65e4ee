"""Contexts in which features fire, and how alike those of a parent and a child are.

A context is the window of `buffer` tokens on either side of a firing, within one context window of the language model.
The contexts of a parent share no token with any context of the child that they are compared with: text that is in both
would be alike for no other reason.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Int64
from numpy import ndarray as Array
from torch import Tensor

from ..text import Tokens
from .bootstrap import FloatArray

# Fewer contexts than this say little about where a feature fires.
LEAST = 5
# Tokens of a text that are embedded at once.
_AT_ONCE = 1 << 16

#: Gives the vector of each token that does not depend on its context.
Embed = Callable[[Int[Tensor, "*n"]], Float[Tensor, "*n d"]]


class Chosen(NamedTuple):
    """Centers of contexts of a parent, a null parent and a child: flat positions in the text, ascending."""

    parent: Int64[Array, "m"]
    null: Int64[Array, "m"]
    child: Int64[Array, "k"]


class Contexts:
    """Chooses contexts at random: up to `n` for each feature."""

    def __init__(self, tokens: Tokens, buffer: int, n: int, rng: np.random.Generator) -> None:
        self.tokens, self.buffer, self.n = tokens, buffer, n
        # One order for all features: those that fire on the same tokens share contexts, which are then read once.
        self._order = rng.permutation(tokens.n_tokens)

    def choose(
        self, parent: Int64[Array, "p"], null: Int64[Array, "q"], child: Int64[Array, "c"]
    ) -> Chosen | None:
        """Contexts for a pair and its matched pair, equally many for both parents; None if there are too few.

        The arguments are the tokens on which each of the three fires, ascending.
        """
        apart = [rows[self._fits(rows) & self._is_away(rows, child)] for rows in (parent, null)]
        own = child[self._fits(child)]
        m = min(self.n, *map(len, apart))
        if m < LEAST or len(own) < LEAST:
            return None
        return Chosen(self._first(apart[0], m), self._first(apart[1], m), self._first(own, self.n))

    def _fits(self, rows: Int64[Array, "n"]) -> Bool[Array, "n"]:
        position = rows % self.tokens.context
        return (position >= self.buffer + self.tokens.prepend_bos) & (
            position < self.tokens.context - self.buffer
        )

    def _is_away(self, rows: Int64[Array, "n"], child: Int64[Array, "c"]) -> Bool[Array, "n"]:
        """Whether no context of the child shares a token with the one around each of `rows`."""
        after = np.searchsorted(child, rows)
        away = np.ones(len(rows), dtype=bool)
        for beside in (after - 1, after):
            there = (beside >= 0) & (beside < len(child))
            nearest = child[np.clip(beside, 0, len(child) - 1)]
            same = nearest // self.tokens.context == rows // self.tokens.context
            away &= ~(there & same & (np.abs(nearest - rows) <= 2 * self.buffer))
        return away

    def _first(self, rows: Int64[Array, "n"], m: int) -> Int64[Array, "m"]:
        return np.sort(rows[np.argsort(self._order[rows], kind="stable")[:m]])

    def ids(self, centers: Int64[Array, "n"], *, center: bool) -> Int[Tensor, "n window"]:
        """The tokens of the contexts around `centers`. center: whether the token in the middle is one of them."""
        offsets = np.arange(-self.buffer, self.buffer + 1)
        if not center:
            offsets = offsets[offsets != 0]
        return self.tokens.ids.reshape(-1)[torch.from_numpy(centers[:, None] + offsets)].long()


def static_similarity(
    contexts: Contexts, chosen: Chosen, embed: Embed, mean: FloatArray
) -> tuple[float, float]:
    """Cosine similarity of a parent's mean context to the child's, and of the null parent's to the child's.

    A mean context is the mean of the vectors of the tokens around the firings, without those in the middle.

    mean: mean vector of the tokens of the whole text, which is subtracted.
    """
    parent, null, child = (
        embed(contexts.ids(centers, center=False)).double().mean((0, 1)).numpy() - mean for centers in chosen
    )
    return cosine(parent, child), cosine(null, child)


def mean_vector(tokens: Tokens, embed: Embed) -> FloatArray:
    """The mean vector of the tokens of a text."""
    ids, count = tokens.ids.unique(return_counts=True)
    total = sum(
        (embed(part.long()).double() * n[:, None]).sum(0)
        for part, n in zip(ids.split(_AT_ONCE), count.split(_AT_ONCE), strict=True)
    )
    assert isinstance(total, Tensor)
    return (total / count.sum()).numpy()


def cosine(a: FloatArray, b: FloatArray) -> float:
    """The cosine of the angle between two vectors; NaN if one of them is zero."""
    length = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / length if length > 0 else float("nan")
