"""All kernels in PyTorch's own operators, for any device. The compiled ones are tested against these.

The sparse products use PyTorch's embedding bag, which reads each active row once and stores no `[n, k, d]` tensor.
Each kernel sums in a fixed order, so results on a CPU are reproducible bit for bit.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .low_precision import Bytes, format_of, narrowed, rounded, widened
from .types import AdamStep, after_rest

_SUM = 0  # embedding bag's code for mode="sum"
# Rows are independent, so dense tensors are built for slices of rows with about this many entries.
_DENSE_ENTRIES = 1 << 25


# -- the three sparse products, of entries (row, id, value)


def weighted_rows(
    values: Float[Tensor, "m"],
    ids: Int[Tensor, "m"],
    first: Int[Tensor, "n_and_1"],
    weight: Float[Tensor, "F d"],
) -> Float[Tensor, "n d"]:
    """`out[t]` is the sum of `values[i] weight[ids[i]]` over the entries `first[t]` to `first[t + 1] - 1`."""
    weight = weight.to(values.dtype)  # it may be kept in bfloat16
    return F.embedding_bag(ids, weight, first[:-1], per_sample_weights=values, mode="sum")


def gather_dot(
    x: Float[Tensor, "r d"], rows: Int[Tensor, "m"], ids: Int[Tensor, "m"], weight: Float[Tensor, "F d"]
) -> Float[Tensor, "m"]:
    """`out[i] = x[rows[i]] . weight[ids[i]]`."""
    # This product is the gradient of a bag's sum with respect to its weights.
    bags = torch.zeros(len(x), dtype=rows.dtype, device=rows.device)
    return torch.ops.aten._embedding_bag_per_sample_weights_backward(
        x.contiguous(), weight.to(x.dtype), ids, bags, rows, _SUM
    )


def scatter_outer(
    values: Float[Tensor, "m"],
    rows: Int[Tensor, "m"],
    ids: Int[Tensor, "m"],
    x: Float[Tensor, "r d"],
    n_rows: int,
) -> Float[Tensor, "F d"]:
    """`out[f]` is the sum of `values[i] x[rows[i]]` over the entries with `ids[i] = f`."""
    by_id, order = ids.sort(stable=True)
    first = torch.searchsorted(by_id, torch.arange(n_rows + 1, device=ids.device))
    return weighted_rows(values[order], rows[order], first, x)


# -- the selection of active features


def top_positive(h: Float[Tensor, "n m"], k: int) -> tuple[Float[Tensor, "n k"], Int[Tensor, "n k"]]:
    """The `k` largest positive entries of every row, in any order; unused slots come last, with value and id 0."""
    values, ids = h.topk(k, dim=1)
    used = values > 0
    return torch.where(used, values, 0), torch.where(used, ids, 0)


def top_children(
    u: Float[Tensor, "n d"],
    encoder: Float[Tensor, "F d"],
    active: Int[Tensor, "n a"],
    first: Int[Tensor, "F_and_1"],
    children: Int[Tensor, "c"],
    k: int,
    precision: torch.dtype,
) -> tuple[Float[Tensor, "n k"], Int[Tensor, "n k"]]:
    """For every row, the `k` largest positive pre-activations `u . encoder` of children of active features.

    `active` holds feature ids, each at most once in a row, and -1 in unused slots. The children of feature p are
    `children[first[p]:first[p + 1]]`. Values have at least `precision`, in any order; unused slots come last, with
    value 0 and id 0.
    """
    n_features = len(first) - 1
    parent = torch.arange(n_features, device=u.device).repeat_interleave(first.diff())
    rows = encoder[children].to(precision)
    slots = min(k, len(children))
    values, ids = u.new_zeros(len(u), k), children.new_zeros(len(u), k)
    done = 0
    for part, on in zip(
        *(t.split(max(_DENSE_ENTRIES // max(n_features, 1), 1)) for t in (u, active)), strict=True
    ):
        # An additional last column is for unused slots.
        is_active = torch.zeros(len(part), n_features + 1, dtype=torch.bool, device=u.device)
        is_active.scatter_(1, torch.where(on < 0, n_features, on), True)
        h = torch.where(is_active[:, parent], part.to(precision) @ rows.T, 0)
        top, local = top_positive(h, slots)
        here = slice(done, done + len(part))
        values[here, :slots], ids[here, :slots] = top.to(u.dtype), torch.where(top > 0, children[local], 0)
        done += len(part)
    return values, ids


def best_children(
    u: Float[Tensor, "n d"],
    encoder: Float[Tensor, "F d"],
    active: Int[Tensor, "n a"],
    first: Int[Tensor, "F_and_1"],
    children: Int[Tensor, "c"],
    k: int,
) -> tuple[Float[Tensor, "n k"], Int[Tensor, "n k"]]:
    """The same as `top_children` in the precision of the weights, with the slots perhaps in another order."""
    return top_children(u, encoder, active, first, children, k, u.dtype)


def kth_largest(values: Float[Tensor, "*n"], k: int) -> float:
    """The `k`-th largest of values that are not negative, or 0 if there are fewer."""
    n = values.numel()
    return float(values.flatten().double().kthvalue(n - k + 1).values) if k <= n else 0.0


def kept_slots(
    values: Float[Tensor, "n c"], ids: Int[Tensor, "n c"], kept: Bool[Tensor, "n c"]
) -> tuple[Float[Tensor, "n k"], Int[Tensor, "n k"]]:
    """The slots that are kept, in their order, with as many places as the fullest row needs, and at least one."""
    widest = max(int(kept.sum(1).max()), 1) if len(kept) else 1
    slots = kept.int().argsort(dim=1, descending=True, stable=True)[:, :widest]
    on = kept.gather(1, slots)
    return torch.where(on, values.gather(1, slots), 0), torch.where(on, ids.gather(1, slots), 0)


def closed_best(
    scores: Float[Tensor, "n c"],
    values: Float[Tensor, "n c"],
    ids: Int[Tensor, "n c"],
    starts: tuple[int, ...],
    k: int,
) -> tuple[Int[Tensor, "n k"], Int[Tensor, "n"]]:
    """For every row, the slots of the `k` largest positive scores, in any order, and how many there are.

    Of equal scores those of earlier layers are selected first, so that parents come before their children; then those
    of larger values, and then those of smaller ids. Layer l consists of the features `starts[l]` to
    `starts[l + 1] - 1`.
    """
    order = ids.argsort(dim=1, stable=True)
    order = order.gather(1, values.gather(1, order).argsort(dim=1, descending=True, stable=True))
    order = order.gather(1, layer_of(ids, starts).gather(1, order).argsort(dim=1, stable=True))
    order = order.gather(1, scores.gather(1, order).argsort(dim=1, descending=True, stable=True))
    return order[:, :k], (scores > 0).sum(1).clamp(max=k)


def closed_scores(
    values: Float[Tensor, "n c"],
    ids: Int[Tensor, "n c"],
    parent: Int[Tensor, "d_sae"],
    levels: int,
    *,
    pull: bool,
) -> Float[Tensor, "n c"]:
    """The scores by which a selection that is closed under parents ranks its candidates.

    Candidates are the slots with a positive value. In every row they are closed under parents, and a parent comes
    before its children. Going up, `m_p = max(h_p, (h_p + largest m of its children) / 2)`, unless `pull` is False;
    going down, `m_c = min(m_c, m_parent)`. Unused slots have score 0.

    parent: -1 for the root.
    levels: largest number of ancestors of a feature.
    """
    n, n_slots = values.shape
    parts = max(_DENSE_ENTRIES // max(len(parent), 1), 1)
    if n > parts:
        halves = zip(values.split(parts), ids.split(parts), strict=True)
        return torch.cat([closed_scores(v, i, parent, levels, pull=pull) for v, i in halves])
    used = values > 0
    own = torch.arange(n_slots, device=ids.device).expand_as(ids)
    # An additional last column is for unused slots.
    place = ids.new_zeros(n, len(parent) + 1)
    place.scatter_(1, torch.where(used, ids, len(parent)), own)
    above = parent[ids]
    below = used & (above >= 0)
    slot = torch.where(below, place.gather(1, above.clamp(min=0)), own)
    h = torch.where(used, values, 0)
    m = h
    for _ in range(levels if pull else 0):
        best = torch.zeros_like(m).scatter_reduce_(1, slot, torch.where(below, m, 0), "amax")
        m = torch.where(best > 0, torch.maximum(h, (h + best) / 2), h)
    for _ in range(levels):
        m = torch.minimum(m, m.gather(1, slot))
    return m


# -- the reconstruction errors of all layers, and their gradients


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
    """For every layer l, the errors of the reconstruction from layers 0 to l, and the sums of their squares.

    The reconstruction is `std (sum values decoder[ids] + bias) + mean`, an error is reconstruction minus `x`, and
    layer l consists of the features `starts[l]` to `starts[l + 1] - 1`.
    """
    layer = layer_of(ids, starts)
    first = torch.arange(len(ids) + 1, device=ids.device) * ids.shape[1]
    errors = x.new_empty(len(starts) - 1, *x.shape)
    z = bias
    for i, error in enumerate(errors):
        own = torch.where(layer == i, values, 0)
        z = z + weighted_rows(own.flatten(), ids.flatten(), first, decoder)
        torch.addcmul(mean - x, std, z, out=error)
    return errors, errors.square().sum((1, 2))


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
    """The backward pass of `layer_errors`.

    The gradient of `errors[l]` is `factors[l] errors[l]`, plus `extra[l]` if that is not None. Returns the gradient of
    every layer's sum of decoder rows, and the gradient of `values`. If the code is padded, slots of value 0 are unused,
    and their gradient may be anything.
    """
    grads = torch.empty_like(errors)
    total = torch.zeros_like(errors[0])
    for i in reversed(range(len(errors))):
        total = total + factors[i] * errors[i]
        if (more := extra[i]) is not None:
            total = total + more
        torch.mul(total, std, out=grads[i])
    rows = layer_rows(ids, starts)
    return grads, gather_dot(grads.flatten(0, 1), rows, ids.flatten(), decoder).view(ids.shape)


def layer_of(ids: Int[Tensor, "n k"], starts: tuple[int, ...]) -> Int[Tensor, "n k"]:
    """The layer of every feature; layer l consists of the features `starts[l]` to `starts[l + 1] - 1`."""
    layer = torch.zeros_like(ids)
    for start in starts[1:-1]:  # a tensor of starts would have to be copied to the GPU, which waits for it
        layer += ids >= start
    return layer


def layer_rows(ids: Int[Tensor, "n k"], starts: tuple[int, ...]) -> Int[Tensor, "n_times_k"]:
    """For every slot, the row of its feature's layer and its activation in a flattened `[L, n]`."""
    n = len(ids)
    return (layer_of(ids, starts) * n + torch.arange(n, device=ids.device)[:, None]).flatten()


# -- the optimizer


def adam(
    weight: Float[Tensor, "*shape"],
    grad: Float[Tensor, "*shape"],
    exp_avg: Float[Tensor, "*shape"] | Bytes,
    exp_avg_sq: Float[Tensor, "*shape"] | Bytes,
    step: AdamStep,
) -> None:
    """One step of Adam, in place; with `step.unit_rows`, on rows of unit norm (docs/spec/tree-sae.md#adam).

    It is computed in the data type of `grad`. What is kept in fewer bits is rounded stochastically.
    """
    w, m, v = (_widened(t, grad.dtype) for t in (weight, exp_avg, exp_avg_sq))
    new, (rank, size) = _stepped(w, grad, m, v, step), step.shard
    places = None if size == 1 else torch.arange(rank, size * len(weight), size, device=weight.device)
    for kept, x, seed in zip((weight, exp_avg, exp_avg_sq), new, step.seeds, strict=True):
        _keep(kept, x, seed, slice(None), places)


def adam_rows(
    weight: Float[Tensor, "F d"],
    rows: Int[Tensor, "a"],
    grad: Float[Tensor, "a d"],
    exp_avg: Float[Tensor, "F d"] | Bytes,
    exp_avg_sq: Float[Tensor, "F d"] | Bytes,
    last: Int[Tensor, "F"],
    step: AdamStep,
) -> None:
    """One step of Adam on some rows, in place; the others rest (docs/spec/tree-sae.md#active-rows).

    Before the step, a row makes up for the steps in which it rested: it moves as far as its moments would have moved
    it, and they decay.

    rows: the rows, each at most once. grad: their gradients.
    last: the step in which each row was last updated, 0 if in none; it is updated too.
    """
    keep_m, keep_v, far = after_rest(step, last[rows]).to(grad.dtype)[:, :, None].unbind(1)
    w, m, v = (_widened(t, grad.dtype, rows) for t in (weight, exp_avg, exp_avg_sq))
    w = w - far * m / (v.sqrt() / math.sqrt(1 - step.beta2**step.steps) + step.eps)
    new = _stepped(w, grad, keep_m * m, keep_v * v, step)
    last[rows] = step.steps
    rank, size = step.shard
    for kept, x, seed in zip((weight, exp_avg, exp_avg_sq), new, step.seeds, strict=True):
        _keep(kept, x, seed, rows, rows * size + rank)


def _stepped(
    w: Float[Tensor, "*shape"],
    grad: Float[Tensor, "*shape"],
    m: Float[Tensor, "*shape"],
    v: Float[Tensor, "*shape"],
    step: AdamStep,
) -> tuple[Float[Tensor, "*shape"], Float[Tensor, "*shape"], Float[Tensor, "*shape"]]:
    """Weights and moments after a step."""
    if step.unit_rows:
        w = F.normalize(w)
        if step.project:
            grad = grad - (grad * w).sum(-1, keepdim=True) * w
    m = torch.lerp(m, grad, 1 - step.beta1)
    v = step.beta2 * v + (1 - step.beta2) * grad * grad
    size = step.lr / (1 - step.beta1**step.steps)
    w = w.addcdiv(m, v.sqrt() / math.sqrt(1 - step.beta2**step.steps) + step.eps, value=-size)
    return w, m, v


def _widened(
    kept: Float[Tensor, "*shape"] | Bytes, dtype: torch.dtype, rows: Int[Tensor, "a"] | None = None
) -> Float[Tensor, "..."]:
    """`rows` of a matrix, or all of it, in `dtype`."""
    if isinstance(kept, Bytes):
        return widened(kept if rows is None else Bytes(kept.codes[rows], kept.exponents[rows])).to(dtype)
    return (kept if rows is None else kept[rows]).to(dtype)


def _keep(
    kept: Float[Tensor, "*shape"] | Bytes,
    x: Float[Tensor, "..."],
    seed: int,
    rows: Int[Tensor, "a"] | slice,
    places: Int[Tensor, "a"] | None,
) -> None:
    """Write rows of a matrix, rounded stochastically if its numbers have fewer bits.

    places: the rows by whose numbers they are rounded. None: those of the whole matrix.
    """
    if isinstance(kept, Bytes):
        kept.codes[rows], kept.exponents[rows] = narrowed(x, format_of(kept.codes.dtype), seed, places)
    else:
        kept[rows] = x if kept.dtype == x.dtype else rounded(x, seed, places)


# -- matching pursuit


def choose_atoms(
    u: Float[Tensor, "n d"],
    atoms: Float[Tensor, "F d"],
    gram: Float[Tensor, "F F"] | None,
    k: int,
    tolerance: float,
) -> tuple[Int[Tensor, "n k"], Bool[Tensor, "n k"]]:
    """The atom that each iteration of matching pursuit on `u` selects, and whether the iteration takes place.

    It is the atom with the largest product with the residual, if that is positive. A row stops after selecting an atom
    for the second time, and when the norm of its residual falls below `tolerance`. `gram = atoms @ atoms.T`, if given,
    saves a dense product in every iteration.
    """
    n = len(u)
    products, residual = u @ atoms.T, u
    ids = torch.zeros(n, k, dtype=torch.int64, device=u.device)
    taken = torch.zeros(n, k, dtype=torch.bool, device=u.device)
    going = torch.ones(n, dtype=torch.bool, device=u.device)
    for i in range(k):
        amount, atom = products.max(1)
        amount = torch.where(going, amount.relu(), 0)
        going = amount > 0
        again = ((ids == atom[:, None]) & taken).any(1)
        ids[:, i], taken[:, i] = torch.where(going, atom, 0), going
        residual = torch.addcmul(residual, amount[:, None], atoms[atom], value=-1)
        going = going & ~again & (residual.norm(dim=1) >= tolerance)
        if i + 1 == k or not going.any():
            break
        if gram is None:
            products = residual @ atoms.T
        else:
            products.addcmul_(amount[:, None], gram[atom], value=-1)
    return ids, taken


def take_atoms(
    u: Float[Tensor, "n d"], ids: Int[Tensor, "n k"], taken: Bool[Tensor, "n k"], atoms: Float[Tensor, "F d"]
) -> tuple[Float[Tensor, "n k"], Float[Tensor, "n d"]]:
    """The amount of each selected atom (its product with the residual of that iteration), and the final residual."""
    residual, amounts = u.detach(), []
    for i in range(ids.shape[1]):
        row = atoms[ids[:, i]]
        amounts.append(torch.where(taken[:, i], (residual * row).sum(1).relu(), 0))
        residual = residual - amounts[-1][:, None] * row
    return torch.stack(amounts, dim=1), residual


def put_back_atoms(
    grad: Float[Tensor, "n d"],
    residual: Float[Tensor, "n d"],
    amounts: Float[Tensor, "n k"],
    ids: Int[Tensor, "n k"],
    atoms: Float[Tensor, "F d"],
    to_amounts: Float[Tensor, "n k"] | None = None,
) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n k d"]]:
    """The backward pass of `take_atoms`: from the gradient of the residual, the gradients of `u` and of each atom.

    With a = r . w and r' = r - a w, a gradient g of r' gives r the gradient g - (g . w) w, and w the gradient
    -a g - (g . w) r. If a itself has a gradient `to_amounts`, it is subtracted from g . w.
    """
    shares = []
    for i in reversed(range(ids.shape[1])):
        amount, row = amounts[:, i, None], atoms[ids[:, i]]
        residual = residual + amount * row
        along = (grad * row).sum(1, keepdim=True)
        if to_amounts is not None:
            along = along - to_amounts[:, i, None]
        shares.append(torch.where(amount > 0, -amount * grad - along * residual, 0))
        grad = torch.where(amount > 0, grad - along * row, grad)
    return grad, torch.stack(shares[::-1], dim=1)
