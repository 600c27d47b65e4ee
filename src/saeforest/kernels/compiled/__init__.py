"""The kernels for CPUs, compiled by Numba; `plain.py` documents them. Their loops are in the files beside this one."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import plain
from ..low_precision import Bytes
from ..rows import own_work, parts_together
from ..types import AdamStep, after_rest
from . import loops, moments, select
from .threads import over_rows, over_work

_BLOCK = 64
# The number of products that are updated and searched together.
_PRODUCTS = 256
# The number of scores of children that are computed at a time.
_SCORES = 1 << 26
# The children of one parent take a dense product in bfloat16 if there are at least this many tokens, children, and
# scores. With fewer tokens, it would take longer to gather and convert the children's rows than to multiply them.
_WIDE_TOKENS, _WIDE_CHILDREN, _WIDE_SCORES = 128, 64, 1 << 16


def weighted_rows(values: Tensor, ids: Tensor, first: Tensor, weight: Tensor) -> Tensor:
    out = values.new_empty(len(first) - 1, weight.shape[1])
    over_work(loops.weighted_rows, first.numpy(), *arrays(out, values, ids, first, weight))
    return out


def gather_dot(x: Tensor, rows: Tensor, ids: Tensor, weight: Tensor) -> Tensor:
    out = x.new_empty(len(ids))
    over_rows(loops.gather_dot, len(ids), *arrays(out, x, rows, ids, weight))
    return out


def scatter_outer(values: Tensor, rows: Tensor, ids: Tensor, x: Tensor, n_rows: int) -> Tensor:
    out = x.new_empty(n_rows, x.shape[1])
    out_, values_, rows_, ids_, x_ = arrays(out, values, rows, ids, x)
    order, first = loops.by_id(ids_, values_ != 0, n_rows)
    values_, rows_ = loops.take(values_, rows_, order)
    # The weighted sums of rows of x, over the entries of each feature. Writing a row is work even without entries.
    over_work(loops.weighted_rows, first + np.arange(n_rows + 1), out_, values_, rows_, first, x_)
    return out


def top_positive(h: Tensor, k: int) -> tuple[Tensor, Tensor]:
    n, width = h.shape
    ids, used = torch.empty(n, k, dtype=torch.int64), torch.empty(n, dtype=torch.int64)
    block = _BLOCK
    while block > 1 and width < 4 * k * block:
        block //= 2
    bits, infinity = as_bits(h), as_bits(h.new_tensor([torch.inf]))[0]
    over_rows(select.top_positive, n, ids.numpy(), used.numpy(), bits, k, block, infinity)
    return torch.where(torch.arange(k) < used[:, None], h.gather(1, ids), 0), ids


def top_children(
    u: Tensor,
    encoder: Tensor,
    active: Tensor,
    first: Tensor,
    children: Tensor,
    k: int,
    precision: torch.dtype,  # in bfloat16 are only the scores of parents with many children and tokens
    *,
    in_order: bool = True,
) -> tuple[Tensor, Tensor]:
    u_, encoder_, active_, first_, children_ = arrays(u, encoder, active, first, children)
    features, tokens, offsets, begin, total = loops.active_pairs(active_, first_)
    if total > _SCORES and len(u) > 1:
        halves = zip(u.chunk(2), active.chunk(2), strict=True)
        found = [
            top_children(a, encoder, b, first, children, k, precision, in_order=in_order) for a, b in halves
        ]
        best, which = zip(*found, strict=True)
        return torch.cat(best), torch.cat(which)
    order, group = loops.by_id(features, np.ones(len(features), np.bool_), len(first) - 1)
    tokens, offsets = tokens[order], offsets[order]
    values, ids = u.new_empty(len(u), k), children.new_empty(len(u), k)
    n_tokens, n_children = np.diff(group), np.diff(first_)
    wide = (n_tokens >= _WIDE_TOKENS) & (n_children >= _WIDE_CHILDREN)
    wide &= n_tokens * n_children >= _WIDE_SCORES
    wide &= in_order and precision == torch.bfloat16
    work = np.concatenate([[0], np.cumsum(np.where(wide, 0, n_tokens * n_children) + 1)])
    own = own_work(np.concatenate([[0], np.cumsum(n_tokens * n_children + 1)]))
    scores = np.empty(total, u_.dtype) if own is None else np.zeros(total, u_.dtype)
    over_work(
        loops.child_scores,
        work,
        scores,
        u_,
        encoder_,
        tokens,
        offsets,
        group,
        first_,
        children_,
        wide,
        own=own,
    )
    halved = u.bfloat16() if wide.any() else u
    for p in np.flatnonzero(wide):
        if own is not None and not own.start <= p < own.stop:
            continue
        mine, below = slice(group[p], group[p + 1]), children[first_[p] : first_[p + 1]]
        product = halved[torch.from_numpy(tokens[mine])] @ encoder[below].bfloat16().T
        bits = as_bits(product).view(np.uint16)
        over_rows(loops.place_rows, len(product), scores, bits, offsets[mine])
    if own is not None:
        scores = parts_together(torch.from_numpy(scores)).numpy()
    places = arrays(values, ids)
    if in_order:
        over_rows(loops.top_children, len(u), *places, scores, begin, active_, first_, children_)
    else:
        bits = scores.view(np.int32 if scores.itemsize == 4 else np.int64)
        padded = np.append(children_, children_[:1].repeat(3))
        over_rows(select.best_children, len(u), *places, scores, bits, begin, active_, first_, padded)
    return values, ids


def best_children(
    u: Tensor, encoder: Tensor, active: Tensor, first: Tensor, children: Tensor, k: int
) -> tuple[Tensor, Tensor]:
    return top_children(u, encoder, active, first, children, k, u.dtype, in_order=False)


def kth_largest(values: Tensor, k: int) -> float:
    bits = as_bits(values).ravel()
    bound = torch.from_numpy(np.array([select.kth_largest(bits, len(bits), k)], bits.dtype))
    return float(bound.view(values.dtype))


def kept_slots(values: Tensor, ids: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    used = kept.sum(1)
    k = max(int(used.max()), 1) if len(used) else 1
    places = values.new_empty(len(values), k), ids.new_empty(len(ids), k)
    over_rows(select.kept_slots, len(values), *arrays(*places, values, ids, kept))
    return places


def closed_best(
    scores: Tensor, values: Tensor, ids: Tensor, starts: tuple[int, ...], k: int
) -> tuple[Tensor, Tensor]:
    slots, used = ids.new_empty(len(ids), k), ids.new_empty(len(ids))
    bits = as_bits(scores)
    over_rows(
        select.closed_best, len(ids), *arrays(slots, used), bits, *arrays(values, ids), np.array(starts)
    )
    return slots, used


def closed_scores(values: Tensor, ids: Tensor, parent: Tensor, levels: int, *, pull: bool) -> Tensor:
    scores = torch.empty_like(values, memory_format=torch.contiguous_format)
    over_rows(select.closed_scores, len(values), *arrays(scores, values, ids, parent), pull)
    return scores


def layer_errors(
    values: Tensor,
    ids: Tensor,
    starts: tuple[int, ...],
    decoder: Tensor,
    bias: Tensor,
    x: Tensor,
    mean: Tensor,
    std: Tensor,
) -> tuple[Tensor, Tensor]:
    errors = x.new_empty(len(starts) - 1, *x.shape)
    squared = x.new_empty(errors.shape[:2])
    errors_, squared_, values_, ids_ = arrays(errors, squared, values, ids)
    rest = arrays(decoder, bias, x, mean, std)
    over_rows(loops.layer_errors, len(x), errors_, squared_, values_, ids_, np.array(starts), *rest)
    return errors, squared.sum(1)


def layer_gradients(
    errors: Tensor,
    factors: Tensor,
    extra: list[Tensor | None],
    std: Tensor,
    values: Tensor,
    ids: Tensor,
    starts: tuple[int, ...],
    decoder: Tensor,
    *,
    padded: bool,
) -> tuple[Tensor, Tensor]:
    grads, to_values = torch.empty_like(errors), torch.zeros_like(ids, dtype=errors.dtype)
    given = [e for e in extra if e is not None]
    # The position of every layer among those given, or -1.
    which = np.array(
        [sum(x is not None for x in extra[:i]) if e is not None else -1 for i, e in enumerate(extra)]
    )
    stacked = given[0][None] if len(given) == 1 else torch.stack(given) if given else errors[:0]
    grads_, to_values_, errors_, factors_, stacked_ = arrays(grads, to_values, errors, factors, stacked)
    std_, values_, ids_, decoder_ = arrays(std, values, ids, decoder)
    over_rows(
        loops.layer_gradients,
        len(ids),
        grads_,
        to_values_,
        errors_,
        factors_,
        stacked_,
        which,
        std_,
        values_,
        padded,
        ids_,
        np.array(starts),
        decoder_,
    )
    return grads, to_values


def adam(
    weight: Tensor, grad: Tensor, exp_avg: Tensor | Bytes, exp_avg_sq: Tensor | Bytes, step: AdamStep
) -> None:
    if not _in_place(weight, grad, exp_avg, exp_avg_sq) or weight.dim() not in (1, 2):
        plain.adam(weight, grad, exp_avg, exp_avg_sq, step)
        return
    if isinstance(exp_avg, Tensor) and isinstance(exp_avg_sq, Tensor) and weight.dim() == 1:
        weight, grad, exp_avg, exp_avg_sq = (t[None] for t in (weight, grad, exp_avg, exp_avg_sq))
    _adam(weight, None, grad, exp_avg, exp_avg_sq, None, None, step)


def adam_rows(
    weight: Tensor,
    rows: Tensor,
    grad: Tensor,
    exp_avg: Tensor | Bytes,
    exp_avg_sq: Tensor | Bytes,
    last: Tensor,
    step: AdamStep,
) -> None:
    if not _in_place(weight, grad, exp_avg, exp_avg_sq):
        plain.adam_rows(weight, rows, grad, exp_avg, exp_avg_sq, last, step)
        return
    rests = after_rest(step, last[rows]).to(grad.dtype).numpy()
    _adam(weight, arrays(rows)[0], grad, exp_avg, exp_avg_sq, arrays(last)[0], rests, step)


def _adam(
    weight: Tensor,
    rows: np.ndarray | None,
    grad: Tensor,
    exp_avg: Tensor | Bytes,
    exp_avg_sq: Tensor | Bytes,
    last: np.ndarray | None,
    rests: np.ndarray | None,
    step: AdamStep,
) -> None:
    (grad_,) = arrays(grad)
    number = grad_.dtype.type
    over_rows(
        moments.adam,
        len(grad_),
        _kept(weight),
        rows,
        grad_,
        _kept(exp_avg),
        _kept(exp_avg_sq),
        last,
        step.steps,
        rests,
        step.unit_rows,
        step.project,
        number(step.beta1),
        number(step.beta2),
        number(step.lr / (1 - step.beta1**step.steps)),
        number(1 / math.sqrt(1 - step.beta2**step.steps)),  # undoes the bias of the root of the second moment
        number(step.eps),
        *(np.uint32(seed * 0x9E3779B9 & 0xFFFFFFFF) for seed in step.seeds),
        *step.shard,
    )


def _in_place(weight: Tensor, grad: Tensor, *moments: Tensor | Bytes) -> bool:
    """Whether the compiled loops can update these: contiguous, in the gradient's data type or in fewer bits than its
    32."""
    kept = [part for each in (weight, *moments) for part in (each if isinstance(each, Bytes) else (each,))]
    exact = all(t.dtype == grad.dtype for t in kept)
    return all(t.is_contiguous() for t in kept) and (exact or grad.dtype == torch.float32)


def _kept(matrix: Tensor | Bytes) -> Any:
    """The arrays that the loops of `moments.py` take for a matrix."""
    if isinstance(matrix, Bytes):
        return tuple(arrays(*matrix))
    return arrays(matrix)[0]


def choose_atoms(u: Tensor, atoms: Tensor, gram: Tensor, k: int, tolerance: float) -> tuple[Tensor, Tensor]:
    ids = torch.zeros(len(u), k, dtype=torch.int64)
    taken = torch.zeros(len(u), k, dtype=torch.bool)
    products, residual = u @ atoms.T, u.clone(memory_format=torch.contiguous_format)
    over_rows(
        loops.choose_atoms,
        len(u),
        *arrays(ids, taken, products),
        as_bits(products),
        *arrays(residual, atoms, gram),
        atoms.detach().numpy().dtype.type(tolerance),
        _PRODUCTS,
    )
    return ids, taken


def take_atoms(u: Tensor, ids: Tensor, taken: Tensor, atoms: Tensor) -> tuple[Tensor, Tensor]:
    amounts, residual = u.new_zeros(ids.shape), u.detach().clone(memory_format=torch.contiguous_format)
    over_rows(loops.take_atoms, len(u), *arrays(amounts, residual, ids, taken, atoms))
    return amounts, residual


def put_back_atoms(
    grad: Tensor, residual: Tensor, amounts: Tensor, ids: Tensor, atoms: Tensor
) -> tuple[Tensor, Tensor]:
    grad, residual = (t.clone(memory_format=torch.contiguous_format) for t in (grad, residual))
    shares = grad.new_empty(*ids.shape, grad.shape[1])
    over_rows(loops.put_back_atoms, len(ids), *arrays(grad, shares, residual, amounts, ids, atoms))
    return grad, shares


def arrays(*tensors: Tensor) -> list[np.ndarray]:
    """A NumPy view of a tensor, or a copy if it is not contiguous; so nothing may be written into it. One in bfloat16
    is given by its bits."""
    return [
        as_bits(t).view(np.uint16) if t.dtype == torch.bfloat16 else t.detach().contiguous().numpy()
        for t in tensors
    ]


def as_bits(x: Tensor) -> np.ndarray:
    """The bits of floating-point numbers as integers: for positive numbers in the same order, else negative."""
    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}
    return x.detach().contiguous().view(integers[x.element_size()]).numpy()
