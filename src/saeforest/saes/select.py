"""Which features act on an activation, chosen by their pre-activations: the rules the systems share.

Each takes dense pre-activations `[n, F]` and returns the chosen as a SparseCode with positive values: their
pre-activations, or how far these exceed a threshold. Unused slots have value and id 0.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from ..code import SparseCode, concat_slots
from ..kernels import top_positive


def top_k(h: Float[Tensor, "n F"], k: int) -> SparseCode:
    """The `k` largest of every row, then ReLU (SPEC 7.1)."""
    return SparseCode(*top_positive(h, min(k, h.shape[1])))


def largest(codes: list[SparseCode], k: int) -> SparseCode:
    """The `k` largest of every row of several codes that have no feature in common."""
    every = concat_slots(codes)
    values, slots = top_positive(every.values, k)
    return SparseCode(values, torch.where(values > 0, every.ids.gather(1, slots), 0))


def batch_top_k(best: Callable[[int], SparseCode], n: int, d_sae: int, k: int) -> SparseCode:
    """The `k * n` largest positive pre-activations of a batch of `n` rows, wherever they are (SPEC 7.2).

    `best(width)` gives the `width` largest of each row.
    """
    wanted, width = k * n, min(4 * k, d_sae)
    while True:
        # Rows rarely hold more than a few times k of the batch's largest: look at the best of each, and look
        # again, wider, if a row was cut off above the value that decides.
        rows = best(width)
        values, ids = rows.values, rows.ids
        chosen = values.flatten().topk(wanted)
        if width == d_sae or bool((values.amin(1) <= chosen.values[-1]).all()):
            break
        width = min(2 * width, d_sae)
    kept = torch.zeros_like(values).flatten().scatter_(0, chosen.indices, 1).view_as(values) > 0
    kept &= values > 0
    widest = max(int(kept.sum(1).max()), 1)
    return largest([SparseCode(torch.where(kept, values, 0), ids)], widest)


def above(h: Float[Tensor, "n F"], floor: Float[Tensor, "F"]) -> SparseCode:
    """Every feature whose pre-activation exceeds its floor; the values say by how much (SPEC 6.4, 7.2)."""
    excess = (h - floor).relu()
    width = max(int((excess > 0).sum(1).max()), 1) if len(h) else 1
    return top_k(excess, width)
