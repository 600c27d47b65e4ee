"""The kernels for CPUs, compiled by Numba; `plain.py` documents them. Their loops are in the files beside this one."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import plain
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
    out = weight.new_empty(len(first) - 1, weight.shape[1])
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
    return top_children(u, encoder, active, first, children, k, encoder.dtype, in_order=False)


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


def adam(weight: Tensor, grad: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, step: AdamStep) -> None:
    if not _in_place(weight, exp_avg, exp_avg_sq) or weight.dim() not in (1, 2):
        plain.adam(weight, grad, exp_avg, exp_avg_sq, step)
        return
    if weight.dim() == 1:
        weight, grad, exp_avg, exp_avg_sq = (t[None] for t in (weight, grad, exp_avg, exp_avg_sq))
    weight_, grad_ = arrays(weight, grad)
    number = weight_.dtype.type
    numbers = (number(step.beta1), number(step.beta2), *_sizes(step, number))
    flags = (step.unit_rows, step.project)
    if exp_avg.dtype == weight.dtype:
        over_rows(moments.adam, len(weight), weight_, grad_, *arrays(exp_avg, exp_avg_sq), *flags, *numbers)
        return
    m, v = _halves(exp_avg, exp_avg_sq)
    over_rows(moments.adam_rounded, len(weight), weight_, grad_, m, v, *flags, *numbers, *_seeds(step))


def adam_rows(
    weight: Tensor,
    rows: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    last: Tensor,
    step: AdamStep,
) -> None:
    if not _in_place(weight, exp_avg, exp_avg_sq):
        plain.adam_rows(weight, rows, grad, exp_avg, exp_avg_sq, last, step)
        return
    weight_, rows_, grad_, last_ = arrays(weight, rows, grad, last)
    number = weight_.dtype.type
    rests = after_rest(step, last[rows]).to(weight.dtype).numpy()
    numbers = (number(step.beta1), number(step.beta2), *_sizes(step, number))
    others = (last_, step.steps, rests, step.unit_rows, step.project, *numbers)
    if exp_avg.dtype == weight.dtype:
        m, v = arrays(exp_avg, exp_avg_sq)
        over_rows(moments.adam_rows, len(rows), weight_, rows_, grad_, m, v, *others)
        return
    m, v = _halves(exp_avg, exp_avg_sq)
    over_rows(moments.adam_rows_rounded, len(rows), weight_, rows_, grad_, m, v, *others, *_seeds(step))


def _in_place(weight: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor) -> bool:
    """Whether the compiled loops can update these: contiguous, with moments of the weight's type or in bfloat16."""
    halved = exp_avg.dtype == torch.bfloat16 and weight.dtype == torch.float32
    contiguous = all(t.is_contiguous() for t in (weight, exp_avg, exp_avg_sq))
    return contiguous and (halved or exp_avg.dtype == weight.dtype)


def _sizes(step: AdamStep, number: Callable[[float], Any]) -> tuple[Any, Any, Any]:
    """The length of the step, what undoes the bias of the root of the second moment, and epsilon."""
    size = step.lr / (1 - step.beta1**step.steps)
    return number(size), number(1 / math.sqrt(1 - step.beta2**step.steps)), number(step.eps)


def _halves(*moments: Tensor) -> list[np.ndarray]:
    return [as_bits(t).view(np.uint16) for t in moments]


def _seeds(step: AdamStep) -> list[np.uint32]:
    return [np.uint32((2 * step.steps + i) * 0x9E3779B9 & 0xFFFFFFFF) for i in (0, 1)]


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
    """A NumPy view of a tensor, or a copy if it is not contiguous; so nothing may be written into it."""
    return [t.detach().contiguous().numpy() for t in tensors]


def as_bits(x: Tensor) -> np.ndarray:
    """The bits of floating-point numbers as integers: for positive numbers in the same order, else negative."""
    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}
    return x.detach().contiguous().view(integers[x.element_size()]).numpy()
