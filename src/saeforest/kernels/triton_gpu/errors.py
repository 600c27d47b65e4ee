"""The reconstruction errors of all layers in one pass over the active rows, and their gradients."""

from __future__ import annotations

from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from .launch import columns, launch
from .sparse import gather_dot

# The number of running sums that a program keeps: layers times columns.
_SUMS = 4096


@triton.jit
@no_type_check
def _layer_errors(
    values,
    ids,
    decoder,
    bias,
    x,
    mean,
    std,
    errors,
    squares,
    n,
    k,
    d,
    STARTS: tl.constexpr,
    LAYERS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One row and one block of columns, for all layers. `LAYERS` is their number, rounded up to a power of two."""
    t = tl.program_id(0).to(tl.int64)
    cols = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = cols < d
    layers = tl.arange(0, LAYERS)
    n_layers: tl.constexpr = len(STARTS) - 1

    sums = tl.zeros([LAYERS, BLOCK], tl.float32)
    for j in tl.range(0, k, loop_unroll_factor=4):
        feature = tl.load(ids + t * k + j).to(tl.int64)
        layer = tl.zeros([], tl.int32)
        for i in tl.static_range(1, n_layers):
            layer += (feature >= STARTS[i]).to(tl.int32)
        value = tl.where(layers == layer, tl.load(values + t * k + j), 0.0)
        row = tl.load(decoder + feature * d + cols, mask=inside, other=0.0)
        sums += value[:, None] * row[None, :]

    z = tl.cumsum(sums, axis=0) + tl.load(bias + cols, mask=inside, other=0.0)[None, :]
    missed = tl.load(mean + t) - tl.load(x + t * d + cols, mask=inside, other=0.0)
    error = missed[None, :] + tl.load(std + t) * z
    mask = (layers < n_layers)[:, None] & inside[None, :]
    tl.store(errors + (layers.to(tl.int64) * n + t)[:, None] * d + cols[None, :], error, mask=mask)
    square = tl.sum(tl.where(mask, error * error, 0.0), axis=1)
    at = (t * tl.num_programs(1) + tl.program_id(1)) * n_layers
    tl.store(squares + at + layers, square, mask=layers < n_layers)


@triton.jit
@no_type_check
def _layer_gradients(errors, factors, extra, std, grads, n, d, LAYERS: tl.constexpr, BLOCK: tl.constexpr):
    t = tl.program_id(0).to(tl.int64)
    cols = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = cols < d
    scale = tl.load(std + t)
    total = tl.zeros([BLOCK], tl.float32)
    for layer in tl.static_range(LAYERS - 1, -1, -1):
        at = (layer * n + t) * d + cols
        total += tl.load(factors + layer) * tl.load(errors + at, mask=inside, other=0.0)
        if extra[layer] is not None:
            total += tl.load(extra[layer] + t * d + cols, mask=inside, other=0.0)
        tl.store(grads + at, total * scale, mask=inside)


def layer_errors(
    values: Float[Tensor, "n k"],
    ids: Int[Tensor, "n k"],
    starts: tuple[int, ...],
    decoder: Float[Tensor, "F d"],
    bias: Float[Tensor, "d"],
    x: Float[Tensor, "n d"],
    mean: Float[Tensor, "n 1"],
    std: Float[Tensor, "n 1"],
) -> tuple[Float[Tensor, "L n d"], Float[Tensor, "L"]]:
    """One program for each row and block of columns. It reads every active row once, for all layers."""
    (n, d), k, n_layers = x.shape, ids.shape[1], len(starts) - 1
    layers = triton.next_power_of_2(n_layers)
    block, blocks, warps = columns(d, min(512, max(_SUMS // layers, 32)))
    errors, squares = x.new_empty(n_layers, n, d), x.new_empty(n, blocks, n_layers)
    tensors = (t.contiguous() for t in (values, ids, decoder, bias, x, mean, std, errors, squares))
    options = {"STARTS": starts, "LAYERS": layers, "BLOCK": block, "num_warps": warps}
    launch(_layer_errors, (n, blocks), *tensors, n, k, d, **options)
    return errors, squares.sum((0, 1))


def layer_gradients(
    errors: Float[Tensor, "L n d"],
    factors: Float[Tensor, "L"],
    extra: list[Float[Tensor, "n d"] | None],
    std: Float[Tensor, "n 1"],
    values: Float[Tensor, "n k"],
    ids: Int[Tensor, "n k"],
    starts: tuple[int, ...],
    decoder: Float[Tensor, "F d"],
    *,
    padded: bool,
) -> tuple[Float[Tensor, "L n d"], Float[Tensor, "n k"]]:
    """One program for each row and block of columns. It processes the layers from the last to the first."""
    n_layers, n, d = errors.shape
    errors = errors.contiguous()
    grads = torch.empty_like(errors)
    block, blocks, warps = columns(d)
    more = tuple(None if g is None else g.contiguous() for g in extra)
    tensors = (errors, factors.contiguous(), more, std.contiguous(), grads)
    options = {"LAYERS": n_layers, "BLOCK": block, "num_warps": warps}
    launch(_layer_gradients, (n, blocks), *tensors, n, d, **options)

    # One comparison for each layer, because `torch.bucketize` would wait for its boundaries to be copied to the GPU.
    layer = torch.zeros_like(ids)
    for start in starts[1:-1]:
        layer += ids >= start
    rows = (layer * n + torch.arange(n, device=ids.device)[:, None]).flatten()
    return grads, gather_dot(grads.flatten(0, 1), rows, ids.flatten(), decoder).view(ids.shape)
