"""The selection of features: the best of all, of the children of active features, of whole trees, and atom by atom."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..sparse_code import SparseCode
from . import plain, shards
from .backend import backend, shares_children
from .products import Grad, check_ids
from .rows import by_rows


@torch.no_grad()
def top_positive(h: Float[Tensor, "n m"], k: int) -> tuple[Float[Tensor, "n k"], Int[Tensor, "n k"]]:
    """The `k` largest positive entries of every row, in any order; unused slots come last, with value and id 0."""
    # Pre-activations may have any data type; the backend is chosen by their device.
    return backend(h.new_empty(0, dtype=torch.float32)).top_positive(h, k)


@torch.no_grad()
def kth_largest(values: Float[Tensor, "*n"], k: int) -> float:
    """The `k`-th largest of values that are not negative, or 0 if there are fewer. They may have any data type."""
    return backend(values.new_empty(0, dtype=torch.float32)).kth_largest(values, k)


@torch.no_grad()
def kept_slots(
    values: Float[Tensor, "n c"], ids: Int[Tensor, "n c"], kept: Bool[Tensor, "n c"]
) -> tuple[Float[Tensor, "n k"], Int[Tensor, "n k"]]:
    """See `plain.kept_slots`."""
    return backend(values).kept_slots(values, ids, kept)


@torch.no_grad()
def top_children(
    u: Float[Tensor, "n d"],
    encoder: Float[Tensor, "F d"],
    active: Int[Tensor, "n a"],
    first: Int[Tensor, "F_and_1"],
    children: Int[Tensor, "c"],
    k: int,
    precision: torch.dtype,
) -> tuple[Float[Tensor, "n k"], Int[Tensor, "n k"]]:
    """See `plain.top_children`."""
    return _children(backend(u, encoder).top_children, u, encoder, active, first, children, k, precision)


@torch.no_grad()
def best_children(
    u: Float[Tensor, "n d"],
    encoder: Float[Tensor, "F d"],
    active: Int[Tensor, "n a"],
    first: Int[Tensor, "F_and_1"],
    children: Int[Tensor, "c"],
    k: int,
) -> tuple[Float[Tensor, "n k"], Int[Tensor, "n k"]]:
    """See `plain.best_children`."""
    return _children(backend(u, encoder).best_children, u, encoder, active, first, children, k)


def _children(
    kernel: Callable[..., tuple[Tensor, Tensor]],
    u: Float[Tensor, "n d"],
    encoder: Float[Tensor, "F d"],
    active: Int[Tensor, "n a"],
    *rest: Any,
) -> tuple[Float[Tensor, "n k"], Int[Tensor, "n k"]]:
    """What `kernel` selects, by as many ranks as there are."""
    if shards.divided():
        return _children_of_all(kernel, u, encoder, active, *rest)
    if shares_children(backend(u, encoder)):
        return kernel(u, encoder, active, *rest)
    values, ids = by_rows(lambda own: kernel(u[own], encoder, active[own], *rest), len(u))
    return values, ids


def _children_of_all(
    kernel: Callable[..., tuple[Tensor, Tensor]],
    u: Float[Tensor, "n d"],
    encoder: Float[Tensor, "F d"],
    active: Int[Tensor, "n a"],
    first: Int[Tensor, "F_and_1"],
    children: Int[Tensor, "c"],
    k: int,
    *precision: torch.dtype,
) -> tuple[Float[Tensor, "n k"], Int[Tensor, "n k"]]:
    """The best children of all ranks, from the best of each."""
    own = shards.mine(children)
    kept = children[own]
    values, ids = u.new_zeros(len(u), k), children.new_zeros(len(u), k)
    if len(kept):
        before = torch.cat([own.new_zeros(1, dtype=torch.int64), own.cumsum(0)])
        values, ids = kernel(u, encoder, active, before[first], shards.place(kept), k, *precision)
        ids = torch.where(values > 0, shards.feature(ids), 0)
    found = shards.best_of_all(SparseCode(values, ids), lambda every: SparseCode(*top_positive(every, k)))
    return found.values, found.ids


@torch.no_grad()
def closed_best(
    scores: Float[Tensor, "n c"],
    values: Float[Tensor, "n c"],
    ids: Int[Tensor, "n c"],
    starts: tuple[int, ...],
    k: int,
) -> tuple[Int[Tensor, "n k"], Int[Tensor, "n"]]:
    """See `plain.closed_best`."""
    return backend(scores).closed_best(scores, values, ids, starts, k)


@torch.no_grad()
def closed_scores(
    values: Float[Tensor, "n c"],
    ids: Int[Tensor, "n c"],
    parent: Int[Tensor, "d_sae"],
    levels: int,
    *,
    pull: bool = True,
) -> Float[Tensor, "n c"]:
    """See `plain.closed_scores`."""
    check_ids(ids, len(parent))
    return backend(values).closed_scores(values, ids, parent, levels, pull=pull)


def choose_atoms(
    u: Float[Tensor, "n d"],
    atoms: Float[Tensor, "F d"],
    gram: Float[Tensor, "F F"] | None,
    k: int,
    tolerance: float,
) -> tuple[Int[Tensor, "n k"], Bool[Tensor, "n k"]]:
    """The atoms that matching pursuit selects; see `plain.choose_atoms`. No gradients."""
    if gram is None:
        return plain.choose_atoms(u, atoms, None, k, tolerance)
    return backend(atoms).choose_atoms(u, atoms, gram, k, tolerance)


class _Pursue(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, u: Tensor, ids: Tensor, taken: Tensor, atoms: Tensor) -> tuple[Tensor, Tensor]:
        amounts, residual = backend(atoms).take_atoms(u, ids, taken, atoms)
        ctx.save_for_backward(ids, atoms, amounts, residual)
        ctx.set_materialize_grads(False)
        return amounts, residual

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Grad, None, None, Grad]:
        ids, atoms, amounts, residual = ctx.saved_tensors
        to_amounts, to_residual = grads
        grad = torch.zeros_like(residual) if to_residual is None else to_residual.contiguous()
        if to_amounts is None:  # as in training, where the loss depends only on the residual
            grad, shares = backend(atoms).put_back_atoms(grad, residual, amounts, ids, atoms)
        else:
            grad, shares = plain.put_back_atoms(grad, residual, amounts, ids, atoms, to_amounts)
        used, every = (amounts > 0).to(atoms.dtype).flatten(), torch.arange(ids.numel(), device=ids.device)
        return (
            grad,
            None,
            None,
            backend(atoms).scatter_outer(used, every, ids.flatten(), shares.flatten(0, 1), len(atoms)),
        )


def take_atoms(
    u: Float[Tensor, "n d"], ids: Int[Tensor, "n k"], taken: Bool[Tensor, "n k"], atoms: Float[Tensor, "F d"]
) -> tuple[Float[Tensor, "n k"], Float[Tensor, "n d"]]:
    """The amount of each selected atom, and the residual of `u` at the end. Gradients for `u` and `atoms`."""
    check_ids(ids, len(atoms))
    return _Pursue.apply(u, ids, taken, atoms)  # pyright: ignore[reportReturnType]
