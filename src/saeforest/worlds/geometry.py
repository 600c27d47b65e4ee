"""Directions of true features `[m, d]`: orthogonal, nearly so, or correlated (docs/spec/synthetic.md#sampling)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ..errors import InputError
from ..structure.forest import ROOT
from .trees import TreeSpec


def unit_vectors(
    m: int, d: int, generator: torch.Generator, *, steps: int = 1000, lr: float = 0.01
) -> Float[Tensor, "m d"]:
    """`m` orthonormal vectors if m <= d, else vectors made as orthogonal as `steps` optimization steps make them."""
    if m < 1 or d < 1:
        raise InputError(f"{m} features in {d} dimensions: expected 1 or more of both")
    if m <= d:
        return torch.linalg.qr(torch.randn(d, m, generator=generator))[0].T.contiguous()
    return nearly_orthogonal(F.normalize(torch.randn(m, d, generator=generator)), steps, lr)


def nearly_orthogonal(v: Float[Tensor, "m d"], steps: int, lr: float) -> Float[Tensor, "m d"]:
    """Minimize `sum_{i != j} (v_i . v_j)^2 + m sum_i (|v_i|^2 - 1)^2` with Adam, then normalize to unit norm.

    The sum over pairs is `|V'V|^2 - sum_i |v_i|^4`, so a step costs m d^2 and needs no [m, m] matrix.
    """
    v = v.clone()
    m = len(v)
    adam = torch.optim.Adam([v], lr=lr)
    for _ in range(steps):
        square = v.square().sum(1, keepdim=True)
        v.grad = 4 * (v @ (v.T @ v)) + (4 * m * (square - 1) - 4 * square) * v
        adam.step()
    return F.normalize(v)


def lean_on_parents(v: Float[Tensor, "m d"], spec: TreeSpec, offset: float) -> Float[Tensor, "m d"]:
    """Replace every child's vector by `normalize(own direction + offset * the sum of its parents' vectors)`, from the
    top down."""
    if offset < 0:
        raise InputError(f"parent_offset = {offset:g}: expected 0 or more")
    v = v.clone()
    for level in range(1, int(spec.forest.depth.max()) + 1):
        at = (spec.forest.depth == level) & (spec.forest.parent != ROOT)
        lean = v.new_zeros(int(at.sum()), v.shape[1])
        for parent in spec.parents:
            lean += torch.where((parent[at] != ROOT)[:, None], v[parent[at]], 0)
        v[at] = F.normalize(v[at] + offset * lean)
    return v


def mix_group(v: Float[Tensor, "g d"], eps: float) -> Float[Tensor, "g d"]:
    """`normalize((1 - eps) own + eps * mean of the others)`: gives orthonormal vectors equal pairwise cosines."""
    others = (v.sum(0) - v) / (len(v) - 1)
    return F.normalize((1 - eps) * v + eps * others)
