"""SparseCode: what an SAE says about a batch of activations. The currency of the library."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True, eq=False)
class SparseCode:
    """The active features of every activation, `k` slots each.

    values: `[..., k]`, non-negative; an unused slot has value 0 (and, by convention, id 0).
    ids:    `[..., k]` int64, global feature ids.
    """

    values: Float[Tensor, "*n k"]
    ids: Int[Tensor, "*n k"]

    def active(self, threshold: float = 0.0) -> Bool[Tensor, "*n k"]:
        """Which slots hold a feature whose value exceeds `threshold`."""
        return self.values > threshold

    def fired(self, d_sae: int, threshold: float = 0.0) -> Int[Tensor, "d_sae"]:
        """On how many activations each feature exceeds `threshold`."""
        return torch.bincount(self.ids[self.active(threshold)], minlength=d_sae)

    def with_parent(self, parent: Int[Tensor, "d_sae"], threshold: float = 0.0) -> Bool[Tensor, "n k"]:
        """Which slots of a flat code hold an active feature whose parent is active on the same activation.

        A child of the root (-1) has no such parent.
        """
        active = self.active(threshold)
        # One id past the last stands for an empty slot; sorted, a parent is found by bisection.
        on = torch.where(active, self.ids, len(parent)).sort(1).values
        above = parent[self.ids]
        place = torch.searchsorted(on, above).clamp(max=on.shape[1] - 1)
        return active & (on.gather(1, place) == above)

    def dense(self, d_sae: int) -> Float[Tensor, "*n d_sae"]:
        """The code as a dense `[..., d_sae]` matrix: for small inputs and tests."""
        out = self.values.new_zeros(*self.values.shape[:-1], d_sae)
        return out.scatter_add_(-1, self.ids, self.values)

    def detach(self) -> SparseCode:
        return SparseCode(self.values.detach(), self.ids)

    def reshape(self, *shape: int) -> SparseCode:
        """The same code with other leading dimensions; the slot dimension stays last."""
        k = self.values.shape[-1]
        return SparseCode(self.values.reshape(*shape, k), self.ids.reshape(*shape, k))


def concat_slots(codes: list[SparseCode]) -> SparseCode:
    """One code holding the slots of several (of the layers of one SAE, say)."""
    return SparseCode(torch.cat([c.values for c in codes], dim=-1), torch.cat([c.ids for c in codes], dim=-1))


def from_entries(
    rows: Int[Tensor, "m"], ids: Int[Tensor, "m"], values: Float[Tensor, "m"], n: int
) -> SparseCode:
    """The code of `n` activations with the given entries, in ascending order of rows."""
    count = torch.bincount(rows, minlength=n)
    slot = torch.arange(len(rows), device=rows.device) - (count.cumsum(0) - count)[rows]
    shape = (n, max(int(count.max()), 1) if n else 1)
    return SparseCode(
        values.new_zeros(shape).index_put_((rows, slot), values),
        ids.new_zeros(shape).index_put_((rows, slot), ids),
    )


def concat_rows(codes: list[SparseCode]) -> SparseCode:
    """One flat code holding the activations of several, with as many slots as the widest of them."""
    k = max(c.values.shape[-1] for c in codes)
    return SparseCode(
        torch.cat([F.pad(c.values, (0, k - c.values.shape[-1])) for c in codes]),
        torch.cat([F.pad(c.ids, (0, k - c.ids.shape[-1])) for c in codes]),
    )
