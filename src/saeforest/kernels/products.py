"""Encode and decode as differentiable functions. Gradients are computed for active features only."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..errors import InputError
from . import shards
from .backend import backend
from .plain import layer_rows
from .rows import by_groups

Grad = Tensor | None

#: The attribute of a weight whose gradients hold only the rows that have one.
_BY_ROWS = "gradient_by_rows"
# A sum over many rows is split into this many, which threads can share.
_PARTS = 64


def gradient_by_rows(weight: Tensor) -> None:
    """From now on the gradients of `weight [F, d]` from the functions here are sparse tensors, as those of
    `nn.Embedding(sparse=True)` are: they hold the rows of active features, and none of the others."""
    setattr(weight, _BY_ROWS, True)


def rows_of_gradient(grad: Float[Tensor, "F d"]) -> tuple[Int[Tensor, "a"], Float[Tensor, "a d"]]:
    """The rows that have a gradient, in ascending order, and their gradients. Of a dense one, those that are not 0."""
    if grad.is_sparse:
        grad = grad.coalesce()
        return grad.indices()[0], grad.values()
    rows = grad.any(1).nonzero().flatten()
    return rows, grad[rows]


def _to_weight(
    values: Tensor, rows: Tensor, ids: Tensor, x: Tensor, weight: Tensor, *, few: bool = False
) -> Tensor:
    """The gradient of `weight`: `scatter_outer`, as a sparse tensor if that is wanted of this weight, or if few
    of its rows have one."""
    kernels = backend(x)
    if not (few or hasattr(weight, _BY_ROWS)):
        return kernels.scatter_outer(values, rows, ids, x, len(weight))
    active, place = _touched(values, ids, len(weight))
    grad = kernels.scatter_outer(values, rows, place, x, len(active))
    return torch.sparse_coo_tensor(
        active[None], grad, weight.shape, is_coalesced=True, check_invariants=False
    )


def _touched(values: Tensor, ids: Tensor, n: int) -> tuple[Int[Tensor, "a"], Int[Tensor, "m"]]:
    """The ids of entries that are not 0, in ascending order, and the place among them of each entry's id (0 for
    entries that are 0)."""
    used = values != 0
    mine = torch.where(used, ids, n)  # the last one gathers all that are unused
    on = torch.zeros(n + 1, dtype=torch.bool, device=ids.device)
    on[mine] = True
    on[n] = False
    active = on.nonzero().flatten()
    place = torch.zeros(n + 1, dtype=torch.int64, device=ids.device)
    place[active] = torch.arange(len(active), device=ids.device)
    return active, place[mine]


class _Decode(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        values: Tensor,
        ids: Tensor,
        rows: Tensor,
        first: Tensor,
        weight: Tensor,
        few: bool,
    ) -> Tensor:
        ctx.few = few
        ctx.save_for_backward(values, ids, rows, weight)
        return backend(values, weight).weighted_rows(values, ids, first, weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Grad, None, None, None, Grad, None]:
        values, ids, rows, weight = ctx.saved_tensors
        grad, kernels = grads[0].contiguous(), backend(values, weight)
        need_values, _, _, _, need_weight, _ = ctx.needs_input_grad
        to_values = kernels.gather_dot(grad, rows, ids, weight) if need_values else None
        to_weight = _to_weight(values, rows, ids, grad, weight, few=ctx.few) if need_weight else None
        return to_values, None, None, None, to_weight, None


class _Encode(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        ids: Tensor,
        rows: Tensor,
        first: Tensor,
        weight: Tensor,
        center: Tensor | None,
        known: Tensor | None,
        few: bool,
    ) -> Tensor:
        ctx.few = few
        ctx.save_for_backward(x, ids, rows, first, weight)
        if known is not None:
            return known.clone()
        kernels = backend(x, weight)
        return by_groups(lambda own: kernels.gather_dot(x, rows[own], ids[own], weight), first)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Grad, None, None, None, Grad, Grad, None, None]:
        x, ids, rows, first, weight = ctx.saved_tensors
        grad, kernels = grads[0].contiguous(), backend(x, weight)
        need_x, _, _, _, need_weight, need_center, _, _ = ctx.needs_input_grad
        to_center = None
        if need_center:  # summed over all rows directly, without a gradient for each row
            to_center = -_weighted_sum(grad, ids, weight, few=ctx.few)
        return (
            kernels.weighted_rows(grad, ids, first, weight) if need_x else None,
            None,
            None,
            None,
            _to_weight(grad, rows, ids, x, weight, few=ctx.few) if need_weight else None,
            to_center,
            None,
            None,
        )


def _weighted_sum(values: Tensor, ids: Tensor, weight: Tensor, *, few: bool = False) -> Float[Tensor, "d"]:
    """The sum of `values[i] weight[ids[i]]` over all entries."""
    kernels, one = backend(values, weight), values.new_ones(1, 1)
    if not (few or hasattr(weight, _BY_ROWS)):
        return kernels.scatter_outer(
            values, torch.zeros_like(ids), ids, one, len(weight)
        ).flatten() @ weight.to(values.dtype)
    active, place = _touched(values, ids, len(weight))
    sums = kernels.scatter_outer(values, torch.zeros_like(place), place, one, len(active)).flatten()
    first = torch.linspace(0, len(active), _PARTS + 1, device=ids.device).long()
    return kernels.weighted_rows(sums, active, first, weight).sum(0)


class _LayerErrors(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        values: Tensor,
        ids: Tensor,
        decoder: Tensor,
        bias: Tensor,
        x: Tensor,
        mean: Tensor,
        std: Tensor,
        starts: tuple[int, ...],
        padded: bool,
    ) -> tuple[Tensor, ...]:
        errors, squared = backend(values, decoder).layer_errors(
            values, ids, starts, decoder, bias, x, mean, std
        )
        ctx.save_for_backward(values, ids, decoder, std, errors)
        ctx.starts, ctx.padded = starts, padded
        ctx.set_materialize_grads(False)
        return squared, *errors.unbind()

    @staticmethod
    def backward(
        ctx: Any, *grads: Tensor | None
    ) -> tuple[Grad, None, Grad, Grad, None, None, None, None, None]:
        values, ids, decoder, std, errors = ctx.saved_tensors
        to_squared, *extra = grads
        factors = errors.new_zeros(len(errors)) if to_squared is None else 2 * to_squared
        kernels = backend(errors, decoder)
        sums, to_values = kernels.layer_gradients(
            errors, factors, extra, std, values, ids, ctx.starts, decoder, padded=ctx.padded
        )
        rows = layer_rows(ids, ctx.starts)
        to_decoder = _to_weight(values.flatten(), rows, ids.flatten(), sums.flatten(0, 1), decoder)
        return to_values, None, to_decoder, sums[0].sum(0), None, None, None, None, None


def jagged_decode(
    values: Float[Tensor, "m"],
    ids: Int[Tensor, "m"],
    rows: Int[Tensor, "m"],
    n: int,
    weight: Float[Tensor, "F d"],
    *,
    few: bool = False,
) -> Float[Tensor, "n d"]:
    """`out[t]` is the sum of `values[i] weight[ids[i]]` over the entries with `rows[i] = t`.

    `rows` must be in ascending order. Gradients for `values` and `weight`.

    few: few rows of `weight` are active, so the gradient holds only these, as with `gradient_by_rows`.
    """
    if shards.divided():
        return shards.summed(_decode_own(values, ids, rows, n, weight, few=few))
    check_ids(ids, len(weight))
    return _Decode.apply(values, ids, rows, _first(rows, n), weight, few)  # pyright: ignore[reportReturnType]


def jagged_encode(
    x: Float[Tensor, "n d"],
    ids: Int[Tensor, "m"],
    rows: Int[Tensor, "m"],
    weight: Float[Tensor, "F d"],
    center: Float[Tensor, "d"] | None = None,
    *,
    repeats: int = 1,
    few: bool = False,
) -> Float[Tensor, "m"]:
    """`x[rows[i]] . weight[ids[i]]`, with `rows` in ascending order. Gradients for `x` and `weight`.

    center: a vector that was subtracted from every row of `x`; it gets its gradient here.
    repeats: how often the rows of `x` follow each other, for the numbers in `rows`. If more than once, `x` gets no
        gradient.
    few: few rows of `weight` are active, so the gradient holds only these, as with `gradient_by_rows`.
    """
    if shards.divided():
        return _encode_own(x, ids, rows, weight, center, repeats=repeats, few=few)
    check_ids(ids, len(weight))
    first = _first(rows, len(x) * repeats)
    if repeats > 1:
        x, rows = x.detach(), rows % len(x)
    return _Encode.apply(x, ids, rows, first, weight, center, None, few)  # pyright: ignore[reportReturnType]


def sparse_decode(
    values: Float[Tensor, "n k"], ids: Int[Tensor, "n k"], weight: Float[Tensor, "F d"]
) -> Float[Tensor, "n d"]:
    """`sum_j values[t, j] weight[ids[t, j]]`. Gradients for `values` and `weight`.

    On a CPU, this and the other functions here raise InputError for an id that is not a row of `weight`. On a GPU, the
    check would have to wait for the device.
    """
    if ids.numel() == 0:
        return values.new_zeros(len(ids), weight.shape[1])
    if shards.divided():
        return shards.summed(_decode_own(values.flatten(), ids.flatten(), _slots(ids)[0], len(ids), weight))
    check_ids(ids, len(weight))
    rows, first = _slots(ids)
    return _Decode.apply(values.flatten(), ids.flatten(), rows, first, weight, False)  # pyright: ignore[reportReturnType]


def sparse_encode(
    x: Float[Tensor, "n d"],
    ids: Int[Tensor, "n k"],
    weight: Float[Tensor, "F d"],
    center: Float[Tensor, "d"] | None = None,
    known: Float[Tensor, "n k"] | None = None,
) -> Float[Tensor, "n k"]:
    """`x[t] . weight[ids[t, j]]`, the pre-activations of selected features. Gradients for `x` and `weight`.

    center: a vector that was subtracted from every row of `x`; it gets its gradient here.
    known: the result, if it was already computed when the features were selected.
    """
    if ids.numel() == 0:
        return x.new_zeros(ids.shape)
    flat = None if known is None else known.flatten()
    if shards.divided():
        return _encode_own(x, ids.flatten(), _slots(ids)[0], weight, center, flat).view(ids.shape)
    check_ids(ids, len(weight))
    rows, first = _slots(ids)
    h = _Encode.apply(x, ids.flatten(), rows, first, weight, center, flat, False)
    return h.view(ids.shape)  # pyright: ignore[reportOptionalMemberAccess]


def layer_errors(
    values: Float[Tensor, "n k"],
    ids: Int[Tensor, "n k"],
    decoder: Float[Tensor, "F d"],
    bias: Float[Tensor, "d"],
    x: Float[Tensor, "n d"],
    mean: Float[Tensor, "n 1"],
    std: Float[Tensor, "n 1"],
    starts: tuple[int, ...],
    *,
    padded: bool = False,
) -> tuple[Float[Tensor, "L"], list[Float[Tensor, "n d"]]]:
    """For every layer l, the errors of the reconstruction from layers 0 to l, and the sums of their squares.

    The reconstruction is `std (sum values decoder[ids] + bias) + mean`, an error is reconstruction minus `x`, and
    layer l consists of the features `starts[l]` to `starts[l + 1] - 1`. Returns (sums of squares, errors). Gradients
    for `values`, `decoder` and `bias`.

    padded: slots of value 0 are unused, and their gradient may be anything.
    """
    if shards.divided():
        return _layer_errors_of_all(values, ids, decoder, bias, x, mean, std, starts)
    check_ids(ids, len(decoder))
    squared, *errors = _LayerErrors.apply(values, ids, decoder, bias, x, mean, std, starts, padded)  # pyright: ignore[reportGeneralTypeIssues]
    return squared, errors


# -- the same with the rows of the weights divided among ranks (`shards.py`)


def _decode_own(
    values: Float[Tensor, "m"],
    ids: Int[Tensor, "m"],
    rows: Int[Tensor, "m"],
    n: int,
    weight: Float[Tensor, "F d"],
    *,
    few: bool = False,
) -> Float[Tensor, "n d"]:
    """The part of this rank's features in `jagged_decode`."""
    own = shards.mine(ids).nonzero().flatten()
    values, rows = shards.handed_out(values)[own], rows[own]
    return _Decode.apply(values, shards.place(ids[own]), rows, _first(rows, n), weight, few)  # pyright: ignore[reportReturnType]


def _encode_own(
    x: Float[Tensor, "n d"],
    ids: Int[Tensor, "m"],
    rows: Int[Tensor, "m"],
    weight: Float[Tensor, "F d"],
    center: Float[Tensor, "d"] | None,
    known: Float[Tensor, "m"] | None = None,
    *,
    repeats: int = 1,
    few: bool = False,
) -> Float[Tensor, "m"]:
    """`jagged_encode`: each rank computes the values of its own features."""
    own = shards.mine(ids).nonzero().flatten()
    first = _first(rows[own], len(x) * repeats)
    if repeats > 1:
        x, rows = x.detach(), rows % len(x)
    found = _Encode.apply(
        shards.handed_out(x),
        shards.place(ids[own]),
        rows[own],
        first,
        weight,
        None if center is None else shards.handed_out(center),
        None if known is None else known[own],
        few,
    )
    every = x.new_zeros(len(ids)).index_put((own,), found)  # pyright: ignore[reportArgumentType]
    return shards.summed(every)


def _layer_errors_of_all(
    values: Float[Tensor, "n k"],
    ids: Int[Tensor, "n k"],
    decoder: Float[Tensor, "F d"],
    bias: Float[Tensor, "d"],
    x: Float[Tensor, "n d"],
    mean: Float[Tensor, "n 1"],
    std: Float[Tensor, "n 1"],
    starts: tuple[int, ...],
) -> tuple[Float[Tensor, "L"], list[Float[Tensor, "n d"]]]:
    """`layer_errors`, from one sum over ranks of what their features add in each layer."""
    layers, rows = len(starts) - 1, layer_rows(ids, starts)
    order = rows.argsort(stable=True)
    parts = _decode_own(values.flatten()[order], ids.flatten()[order], rows[order], layers * len(x), decoder)
    z = shards.summed(parts).view(layers, *x.shape).cumsum(0)
    errors = [torch.addcmul(mean - x, std, of_layer + bias) for of_layer in z]
    return torch.stack([error.square().sum() for error in errors]), errors


@torch.no_grad()
def scatter_outer(
    values: Float[Tensor, "n k"], ids: Int[Tensor, "n k"], x: Float[Tensor, "n d"], n_rows: int
) -> Float[Tensor, "F d"]:
    """`out[f]` is the sum of `values[t, j] x[t]` over the slots with `ids[t, j] = f`. No gradients."""
    check_ids(ids, n_rows)
    return backend(x).scatter_outer(values.flatten(), _slots(ids)[0], ids.flatten(), x, n_rows)


def check_ids(ids: Int[Tensor, "*m"], n_rows: int) -> None:
    """Check ids, because compiled loops do not: a wrong id would access memory outside the weights."""
    if ids.device.type == "cpu" and ids.numel():
        low, high = (int(i) for i in ids.aminmax())
        if low < 0 or high >= n_rows:
            raise InputError(f"feature id {low if low < 0 else high}: expected 0 to {n_rows - 1}")


def _slots(ids: Int[Tensor, "n k"]) -> tuple[Int[Tensor, "m"], Int[Tensor, "n_and_1"]]:
    """The row of each slot of a code, in flat order, and the position of each row's first slot."""
    n, k = ids.shape
    rows = torch.arange(n, device=ids.device)
    return rows.repeat_interleave(k), torch.arange(n + 1, device=ids.device) * k


def _first(ascending: Int[Tensor, "m"], n: int) -> Int[Tensor, "n_and_1"]:
    """The position of the first entry for each of `0..n-1`, and one past the last entry."""
    return torch.searchsorted(ascending, torch.arange(n + 1, device=ascending.device))
