"""Every kernel in PyTorch's own operators, for any device: what the compiled ones are measured against.

The sparse products go through PyTorch's embedding bag, which reads each active row once and stores no `[n, k, d]`.
Each kernel sums in a fixed order, so on a CPU results repeat bit for bit.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .types import AdamStep

_SUM = 0  # embedding bag's code for mode="sum"
# Rows are independent, so what is dense is made for so many entries at a time.
_DENSE_ENTRIES = 1 << 25


# -- the three sparse products, of entries (row, id, value)


def weighted_rows(
    values: Float[Tensor, "m"],
    ids: Int[Tensor, "m"],
    first: Int[Tensor, "n_and_1"],
    weight: Float[Tensor, "F d"],
) -> Float[Tensor, "n d"]:
    """`out[t]` sums `values[i] weight[ids[i]]` over the entries from `first[t]` up to `first[t + 1]`."""
    return F.embedding_bag(ids, weight, first[:-1], per_sample_weights=values, mode="sum")


def gather_dot(
    x: Float[Tensor, "r d"], rows: Int[Tensor, "m"], ids: Int[Tensor, "m"], weight: Float[Tensor, "F d"]
) -> Float[Tensor, "m"]:
    """`out[i] = x[rows[i]] . weight[ids[i]]`."""
    # The gradient of a bag's sum with respect to its weights is exactly this product.
    bags = torch.zeros(len(x), dtype=rows.dtype, device=rows.device)
    return torch.ops.aten._embedding_bag_per_sample_weights_backward(
        x.contiguous(), weight, ids, bags, rows, _SUM
    )


def scatter_outer(
    values: Float[Tensor, "m"],
    rows: Int[Tensor, "m"],
    ids: Int[Tensor, "m"],
    x: Float[Tensor, "r d"],
    n_rows: int,
) -> Float[Tensor, "F d"]:
    """`out[f]` sums `values[i] x[rows[i]]` over the entries with `ids[i] = f`."""
    by_id, order = ids.sort(stable=True)
    first = torch.searchsorted(by_id, torch.arange(n_rows + 1, device=ids.device))
    return weighted_rows(values[order], rows[order], first, x)


# -- which features act


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
    """Of every row the `k` features of largest positive pre-activation `u . encoder` among the active ones' children.

    `active` holds features, each at most once in a row, and -1 in unused slots; the children of feature p are
    `children[first[p]:first[p + 1]]`. Values are in `precision` or better, in any order; unused slots come last, with
    value and id 0.
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
        # One column past the last stands for unused slots.
        is_active = torch.zeros(len(part), n_features + 1, dtype=torch.bool, device=u.device)
        is_active.scatter_(1, torch.where(on < 0, n_features, on), True)
        h = torch.where(is_active[:, parent], part.to(precision) @ rows.T, 0)
        top, local = top_positive(h, slots)
        here = slice(done, done + len(part))
        values[here, :slots], ids[here, :slots] = top.to(u.dtype), torch.where(top > 0, children[local], 0)
        done += len(part)
    return values, ids


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
    """What the reconstruction from layers 0 to l misses `x` by, and the sum of its squares, for every l.

    The reconstruction is `std (sum values decoder[ids] + bias) + mean`; layer l are the features from `starts[l]` up
    to `starts[l + 1]`.
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
    ids: Int[Tensor, "n k"],
    starts: tuple[int, ...],
    decoder: Float[Tensor, "F d"],
) -> tuple[Float[Tensor, "L n d"], Float[Tensor, "n k"]]:
    """Backward of `layer_errors`, given that of errors[l]: `factors[l] errors[l]` and, where there is one, `extra[l]`.

    Returns the gradient of every layer's sum of decoder rows, and that of `values`.
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
    layer = torch.zeros_like(ids)
    for start in starts[1:-1]:  # no tensor of them: bringing one to a GPU would wait for it
        layer += ids >= start
    return layer


def layer_rows(ids: Int[Tensor, "n k"], starts: tuple[int, ...]) -> Int[Tensor, "n_times_k"]:
    """Of every slot its row in `[L, n]` laid flat: that of its feature's layer and its activation."""
    n = len(ids)
    return (layer_of(ids, starts) * n + torch.arange(n, device=ids.device)[:, None]).flatten()


# -- the optimiser


def adam(
    weight: Float[Tensor, "*shape"],
    grad: Float[Tensor, "*shape"],
    exp_avg: Float[Tensor, "*shape"],
    exp_avg_sq: Float[Tensor, "*shape"],
    step: AdamStep,
) -> None:
    """One step of Adam in place, on rows of unit norm if `step.unit_rows` is set (docs/spec/tree-sae.md#adam)."""
    if step.unit_rows:
        weight.copy_(F.normalize(weight))
        if step.project:
            grad = grad - (grad * weight).sum(-1, keepdim=True) * weight
    m, v = exp_avg.to(weight.dtype), exp_avg_sq.to(weight.dtype)
    m = torch.lerp(m, grad, 1 - step.beta1)
    v = step.beta2 * v + (1 - step.beta2) * grad * grad
    size = step.lr / (1 - step.beta1**step.steps)
    weight.addcdiv_(m, v.sqrt() / math.sqrt(1 - step.beta2**step.steps) + step.eps, value=-size)
    for i, (state, new) in enumerate(((exp_avg, m), (exp_avg_sq, v))):
        state.copy_(new if state.dtype == weight.dtype else rounded(new, 2 * step.steps + i))


def rounded(x: Float[Tensor, "*shape"], seed: int) -> Float[Tensor, "*shape"]:
    """`x` in bfloat16, rounded up or down at random in proportion to what is cut off: right on average.

    Rounding to the nearest would never let a slow average move. What is drawn depends on place and `seed` alone.
    """
    place = torch.arange(x.numel(), device=x.device, dtype=torch.int64).view(x.shape)
    mask = 0xFFFFFFFF
    # A hash of 32 bits (murmur3's finaliser), in integers of 64.
    h = (place + seed * 0x9E3779B9) & mask
    h = ((h ^ (h >> 16)) * 0x85EBCA6B) & mask
    h = ((h ^ (h >> 13)) * 0xC2B2AE35) & mask
    h = h ^ (h >> 16)
    bits = x.float().view(torch.int32).long() & mask
    bits = ((bits + (h & 0xFFFF)) & 0xFFFF0000).to(torch.int64)
    # The upper half of a float32 is a bfloat16.
    half = (bits >> 16).to(torch.int32)
    return torch.where(half >= 1 << 15, half - (1 << 16), half).to(torch.int16).view(torch.bfloat16)


# -- matching pursuit


def choose_atoms(
    u: Float[Tensor, "n d"],
    atoms: Float[Tensor, "F d"],
    gram: Float[Tensor, "F F"] | None,
    k: int,
    tolerance: float,
) -> tuple[Int[Tensor, "n k"], Bool[Tensor, "n k"]]:
    """The atom that each iteration takes of what is left of `u`, and whether it takes one.

    Always the one with the largest product with the residual, as long as that is positive. A row stops after an atom
    it had taken before, and where the norm of its residual falls below `tolerance`. `gram = atoms @ atoms.T` saves a
    dense product in every iteration.
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
    """How much of each taken atom is in what is left when its turn comes, if positive; and what is left at the end."""
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
    """Given the gradient of what is left: that of `u`, and every taken atom's share of its own.

    With a = r . w and r' = r - a w, the gradient g of r' makes g - (g . w) w of r, and -a g - (g . w) r of w; with a
    gradient `to_amounts` of a itself, g . w is less by that.
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
