"""Sparse products of the encoder and the decoder, with gradients over active features only.

Everything an SAE does with its active features is one of three products, for rows `W [F, d]`:

    weighted_rows   out[t] = sum_j values[t, j] W[ids[t, j]]         decode
    gather_dot      out[t, j] = x[t] . W[ids[t, j]]                  encode the selected features
    scatter_outer   out[i] = sum over slots (t, j) with ids = i of values[t, j] x[t]     weight gradients

and each is the other's gradient. Where rows have very different numbers of active features, `jagged_` products take
entries `(row, id, value)` instead of slots. `reference.py` spells them out; `embedding_bag.py` is the fast path.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from . import embedding_bag as fast
from .embedding_bag import scatter_outer


class _SparseDecode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, ids: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(values, ids, weight)
        return fast.weighted_rows(values, ids, weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, Tensor | None]:
        values, ids, weight = ctx.saved_tensors
        grad = grads[0].contiguous()
        need_values, _, need_weight = ctx.needs_input_grad
        return (
            fast.gather_dot(grad, ids, weight) if need_values else None,
            None,
            fast.scatter_outer(values, ids, grad, len(weight)) if need_weight else None,
        )


class _SparseEncode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, ids: Tensor, weight: Tensor, known: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, ids, weight)
        return fast.gather_dot(x, ids, weight) if known is None else known.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, Tensor | None, None]:
        x, ids, weight = ctx.saved_tensors
        grad = grads[0].contiguous()
        need_x, _, need_weight, _ = ctx.needs_input_grad
        return (
            fast.weighted_rows(grad, ids, weight) if need_x else None,
            None,
            fast.scatter_outer(grad, ids, x, len(weight)) if need_weight else None,
            None,
        )


class _JaggedDecode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, ids: Tensor, rows: Tensor, n: int, weight: Tensor) -> Tensor:
        ctx.save_for_backward(values, ids, rows, weight)
        return fast.weighted_rows_jagged(values, ids, rows, n, weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, None, None, Tensor | None]:
        values, ids, rows, weight = ctx.saved_tensors
        grad = grads[0].contiguous()
        need_values, *_, need_weight = ctx.needs_input_grad
        return (
            fast.gather_dot_jagged(grad, ids, rows, weight) if need_values else None,
            None,
            None,
            None,
            fast.scatter_outer_jagged(values, ids, rows, grad, len(weight)) if need_weight else None,
        )


class _JaggedEncode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, ids: Tensor, rows: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, ids, rows, weight)
        return fast.gather_dot_jagged(x, ids, rows, weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, None, Tensor | None]:
        x, ids, rows, weight = ctx.saved_tensors
        grad = grads[0].contiguous()
        need_x, _, _, need_weight = ctx.needs_input_grad
        return (
            fast.weighted_rows_jagged(grad, ids, rows, len(x), weight) if need_x else None,
            None,
            None,
            fast.scatter_outer_jagged(grad, ids, rows, x, len(weight)) if need_weight else None,
        )


def sparse_decode(
    values: Float[Tensor, "n k"], ids: Int[Tensor, "n k"], weight: Float[Tensor, "F d"]
) -> Float[Tensor, "n d"]:
    """`sum_j values[t, j] weight[ids[t, j]]`; gradients for `values` and `weight`."""
    return _SparseDecode.apply(values, ids, weight)  # pyright: ignore[reportReturnType]


def sparse_encode(
    x: Float[Tensor, "n d"],
    ids: Int[Tensor, "n k"],
    weight: Float[Tensor, "F d"],
    known: Float[Tensor, "n k"] | None = None,
) -> Float[Tensor, "n k"]:
    """`x[t] . weight[ids[t, j]]`, the pre-activations of chosen features; gradients for `x` and `weight`.

    `known`: the same numbers where choosing the features has computed them already.
    """
    return _SparseEncode.apply(x, ids, weight, known)  # pyright: ignore[reportReturnType]


def jagged_decode(
    values: Float[Tensor, "m"],
    ids: Int[Tensor, "m"],
    rows: Int[Tensor, "m"],
    n: int,
    weight: Float[Tensor, "F d"],
) -> Float[Tensor, "n d"]:
    """`sparse_decode` of entries: row t sums over the entries with `rows[i] = t`, which come in ascending order."""
    return _JaggedDecode.apply(values, ids, rows, n, weight)  # pyright: ignore[reportReturnType]


def jagged_encode(
    x: Float[Tensor, "n d"], ids: Int[Tensor, "m"], rows: Int[Tensor, "m"], weight: Float[Tensor, "F d"]
) -> Float[Tensor, "m"]:
    """`sparse_encode` of entries: `x[rows[i]] . weight[ids[i]]`, rows in ascending order."""
    return _JaggedEncode.apply(x, ids, rows, weight)  # pyright: ignore[reportReturnType]


__all__ = ["jagged_decode", "jagged_encode", "scatter_outer", "sparse_decode", "sparse_encode"]
