"""SparseCode: what an SAE says about a batch of activations. The currency of the library."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .errors import InputError

#: What picks some of the activations along one dimension.
Rows = int | slice | Sequence[int] | Tensor


@dataclass(frozen=True, eq=False, repr=False)
class SparseCode:
    """The active features of every activation, in `k` slots each. What `sae.encode` returns.

    values: `[..., k]`, non-negative; an unused slot has value 0 (and, by convention, id 0).
    ids:    `[..., k]` int64, global feature ids.

    The leading dimensions are those of the activations: `[n, k]` for activations `[n, d]`. Indexing, `len` and
    iteration go over these; `code[3]` is the code of one activation, `[k]`. Raises InputError where the two shapes
    differ.

    Example:
        >>> code = SparseCode(torch.tensor([[0.5, 2.0], [1.0, 0.0]]), torch.tensor([[4, 7], [2, 0]]))
        >>> len(code), code.dtype
        (2, torch.float32)
        >>> code.active()
        tensor([[ True,  True],
                [ True, False]])
        >>> code[0].ids
        tensor([4, 7])
        >>> code[code.values.sum(1) > 2].values
        tensor([[0.5000, 2.0000]])
        >>> code.dense(d_sae=8)[1]
        tensor([0., 0., 1., 0., 0., 0., 0., 0.])
    """

    values: Float[Tensor, "*n k"]
    ids: Int[Tensor, "*n k"]

    def __post_init__(self) -> None:
        if self.values.shape != self.ids.shape or self.values.ndim < 1:
            raise InputError(
                f"SparseCode: values of shape {list(self.values.shape)} and ids of shape {list(self.ids.shape)}; "
                "expected the same [..., k] of both"
            )

    def __repr__(self) -> str:
        *shape, k = self.values.shape
        return f"SparseCode(shape={shape}, slots={k}, dtype={self.dtype}, device='{self.device}')"

    @property
    def device(self) -> torch.device:
        """The device that both tensors are on."""
        return self.values.device

    @property
    def dtype(self) -> torch.dtype:
        """The type of the values; ids are int64."""
        return self.values.dtype

    def __len__(self) -> int:
        """The number of activations along the first dimension."""
        if self.values.ndim < 2:
            raise InputError("len: this is the code of a single activation; code.values has its slots")
        return len(self.values)

    def __iter__(self) -> Iterator[SparseCode]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, rows: Rows | tuple[Rows, ...]) -> SparseCode:
        """The code of some activations: an int, a slice, a mask or ids of rows, or one of these for each dimension.

        Raises InputError for an index into the slots, and IndexError for a row that there is not.
        """
        index = rows if isinstance(rows, tuple) else (rows,)
        dimensions = sum(i.ndim if isinstance(i, Tensor) and i.dtype == torch.bool else 1 for i in index)
        if dimensions > self.values.ndim - 1:
            raise InputError(
                f"code[...]: {dimensions} indices for activations of shape {list(self.values.shape[:-1])}; "
                "slots are in code.values and code.ids"
            )
        return SparseCode(self.values[index], self.ids[index])

    def to(self, *target: Any, **options: Any) -> SparseCode:
        """The same code on another device, or with values of another type: arguments are those of `Tensor.to`. Ids stay
        int64."""
        values = self.values.to(*target, **options)
        return SparseCode(values, self.ids.to(values.device))

    def replace(
        self, *, values: Float[Tensor, "*n k"] | None = None, ids: Int[Tensor, "*n k"] | None = None
    ) -> SparseCode:
        """The code with other values or ids, of the same shape: to switch a feature off, say, before decoding."""
        return SparseCode(self.values if values is None else values, self.ids if ids is None else ids)

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
        """The code as a dense `[..., d_sae]` matrix: for small inputs and tests.

        Raises InputError where `d_sae` is not above every id.
        """
        if self.ids.numel() and (largest := int(self.ids.max())) >= d_sae:
            raise InputError(
                f"d_sae = {d_sae}: the code has feature {largest}; expected {largest + 1} or more"
            )
        out = self.values.new_zeros(*self.values.shape[:-1], d_sae)
        return out.scatter_add_(-1, self.ids, self.values)

    def detach(self) -> SparseCode:
        """The same code without gradients."""
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
    wide = [padded(c, k) for c in codes]
    return SparseCode(torch.cat([c.values for c in wide]), torch.cat([c.ids for c in wide]))


def padded(code: SparseCode, k: int) -> SparseCode:
    """The same code with unused slots at the end, `k` slots in all."""
    more = (0, k - code.values.shape[-1])
    return SparseCode(F.pad(code.values, more), F.pad(code.ids, more))
