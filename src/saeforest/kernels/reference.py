"""The three sparse products in their simplest form: slow, and used to test the fast ones."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor


def weighted_rows(
    values: Float[Tensor, "n k"], ids: Int[Tensor, "n k"], weight: Float[Tensor, "F d"]
) -> Float[Tensor, "n d"]:
    """`out[t] = sum_j values[t, j] weight[ids[t, j]]`."""
    return torch.einsum("nk,nkd->nd", values, weight[ids])


def gather_dot(
    x: Float[Tensor, "n d"], ids: Int[Tensor, "n k"], weight: Float[Tensor, "F d"]
) -> Float[Tensor, "n k"]:
    """`out[t, j] = x[t] . weight[ids[t, j]]`."""
    return torch.einsum("nd,nkd->nk", x, weight[ids])


def scatter_outer(
    values: Float[Tensor, "n k"], ids: Int[Tensor, "n k"], x: Float[Tensor, "n d"], n_rows: int
) -> Float[Tensor, "F d"]:
    """`out[f]` is the sum of `values[t, j] x[t]` over the slots with `ids[t, j] = f`."""
    outer = torch.einsum("nk,nd->nkd", values, x)
    return x.new_zeros(n_rows, x.shape[1]).index_add_(0, ids.flatten(), outer.flatten(0, 1))
