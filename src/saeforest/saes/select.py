"""Which features act on an activation, chosen by their pre-activations: the rules the systems share.

Each takes dense pre-activations `[n, F]` and returns the chosen as a SparseCode with positive values: their
pre-activations, or how far these exceed a threshold. Unused slots have value and id 0.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from ..code import SparseCode


def top_k(h: Float[Tensor, "n F"], k: int) -> SparseCode:
    """The `k` largest of every row, then ReLU (SPEC 7.1)."""
    values, ids = h.topk(k, dim=1)
    return _positive(values, ids)


def batch_top_k(h: Float[Tensor, "n F"], k: int) -> SparseCode:
    """The `k * n` largest positive pre-activations of the batch, wherever they are (SPEC 7.2)."""
    n, d_sae = h.shape
    wanted, width = k * n, min(4 * k, d_sae)
    while True:
        # Rows rarely hold more than a few times k of the batch's largest: look at the best of each, and look
        # again, wider, if a row was cut off above the value that decides.
        values, ids = h.topk(width, dim=1)
        chosen = values.flatten().topk(wanted)
        if width == d_sae or bool((values[:, -1] <= chosen.values[-1]).all()):
            break
        width = min(2 * width, d_sae)
    kept = torch.zeros_like(values).flatten().scatter_(0, chosen.indices, 1).view_as(values) > 0
    return _trimmed(torch.where(kept, values, 0), ids)


def above(h: Float[Tensor, "n F"], floor: Float[Tensor, "F"]) -> SparseCode:
    """Every feature whose pre-activation exceeds its floor; the values say by how much (SPEC 6.4, 7.2)."""
    excess = (h - floor).relu()
    width = max(int((excess > 0).sum(1).max()), 1) if len(h) else 1
    return _positive(*excess.topk(width, dim=1))


def _trimmed(values: Float[Tensor, "n k"], ids: Tensor) -> SparseCode:
    """Without the slots at the end that no row uses. Among equals, a row may use a later slot and not an earlier."""
    used = (values > 0).any(0).nonzero()
    width = int(used[-1]) + 1 if len(used) else 1
    return _positive(values[:, :width], ids[:, :width])


def _positive(values: Float[Tensor, "n k"], ids: Tensor) -> SparseCode:
    used = values > 0
    return SparseCode(torch.where(used, values, 0), torch.where(used, ids, 0))
