"""Keeping the strongest activations of every feature during a pass over activations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ...text import Tokens

# Below this many documents, windows stand in for documents.
_MANY_DOCUMENTS = 100

PassageOf = Callable[[Tensor], Tensor]
"""A function from rows `[n]` to the passages `[n]` that they belong to, as numbers."""


def passages(tokens: Tokens) -> tuple[Literal["document", "window"], PassageOf]:
    """What counts as a passage in this text ("document" or "window"), and the function from rows to passages.

    A feature's strongest activations are taken from different passages, so that they show different contexts. If a text
    has few documents (a single book, say), windows serve as passages.
    """
    if len(tokens.names) >= _MANY_DOCUMENTS:
        return "document", tokens.document_of
    return "window", lambda rows: rows // tokens.context


class Strongest:
    """The `n` strongest activations of every feature, at most one from each passage.

    value: `[d_sae, n]` activations, descending, padded with 0.
    row:   `[d_sae, n]` their token rows, padded with -1. Of equal values, the lower row comes first.

    The result is exact after one pass: a passage that dropped out can only return with a stronger activation.
    """

    def __init__(self, d_sae: int, n: int, passage: PassageOf, device: torch.device) -> None:
        self.value = torch.zeros(d_sae, n, device=device)
        self.row = torch.full((d_sae, n), -1, device=device)
        self._passage = passage

    def add(self, feature: Int[Tensor, "m"], value: Float[Tensor, "m"], row: Int[Tensor, "m"]) -> None:
        """Add activations, each of one feature at one token."""
        contends = value >= self.value[feature, -1]
        feature, value, row = feature[contends], value[contends], row[contends]
        touched = feature.unique()
        held = self.row[touched] >= 0
        feature = torch.cat([touched[:, None].expand_as(held)[held], feature])
        value = torch.cat([self.value[touched][held], value])
        row = torch.cat([self.row[touched][held], row])

        order = sorted_by(row, -value, feature)
        feature, value, row = feature[order], value[order], row[order]
        best = _first_of_each(feature, self._passage(row))
        feature, value, row = feature[best], value[best], row[best]
        place = torch.arange(len(feature), device=feature.device) - torch.searchsorted(feature, feature)
        kept = place < self.value.shape[1]
        feature, place = feature[kept], place[kept]
        self.value[touched], self.row[touched] = 0, -1
        self.value[feature, place], self.row[feature, place] = value[kept], row[kept]


def sorted_by(*keys: Tensor) -> Int[Tensor, "m"]:
    """The order by the last key, then by the one before it, and so on."""
    order = torch.arange(len(keys[0]), device=keys[0].device)
    for key in keys:
        order = order[key[order].argsort(stable=True)]
    return order


def _first_of_each(*keys: Int[Tensor, "m"]) -> Bool[Tensor, "m"]:
    """A mask of the first entry of every combination of keys."""
    order = sorted_by(*keys)
    new = torch.ones_like(order, dtype=torch.bool)
    new[1:] = torch.stack([key[order].diff() != 0 for key in keys]).any(0)
    return torch.zeros_like(new).index_put_((order[new],), torch.tensor(True, device=new.device))
