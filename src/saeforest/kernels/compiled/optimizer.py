"""Adam in one pass over weights, gradient and state; rows of unit norm are brought back to it on the way."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from ..types import AdamStep
from .sparse import arrays, as_bits
from .threads import jit, over_rows


@jit
def _direction(weight, grad, out, unit_rows, project):
    """Brings the row to unit norm and writes its gradient, without the part along the row, where that is asked."""
    if not unit_rows:
        out[:] = grad
        return
    norm = along = weight.dtype.type(0)
    for i in range(len(weight)):
        norm += weight[i] * weight[i]
        along += weight[i] * grad[i]
    scale = 1 / max(np.sqrt(norm), weight.dtype.type(1e-12))
    along = along * scale if project else weight.dtype.type(0)
    for i in range(len(weight)):
        weight[i] *= scale
        out[i] = grad[i] - along * weight[i]


@jit
def _update(weight, grad, m, v, beta1, beta2, size, root, eps):
    one = weight.dtype.type(1)
    for i in range(len(weight)):
        g = grad[i]
        a = m[i] + (one - beta1) * (g - m[i])
        b = beta2 * v[i] + (one - beta2) * g * g
        m[i], v[i] = a, b
        weight[i] -= size * a / (np.sqrt(b) * root + eps)


@jit
def _adam(weight, grad, m, v, unit_rows, project, beta1, beta2, size, root, eps, low, high):
    direction = np.empty_like(weight[0])
    for f in range(low, high):
        _direction(weight[f], grad[f], direction, unit_rows, project)
        _update(weight[f], direction, m[f], v[f], beta1, beta2, size, root, eps)


@jit
def _widen(bits, half):
    """bfloat16 to float32, as integers."""
    for i in range(len(half)):
        bits[i] = np.uint32(half[i]) << np.uint32(16)


@jit
def _round(half, bits, place, seed):
    """float32 to bfloat16 as integers, up or down by the hash of `plain.rounded`."""
    for i in range(len(half)):
        # Numba would go on in 64 bits.
        h = np.uint32(np.uint32(place + i) + seed)
        h = np.uint32((h ^ (h >> np.uint32(16))) * np.uint32(0x85EBCA6B))
        h = np.uint32((h ^ (h >> np.uint32(13))) * np.uint32(0xC2B2AE35))
        h = np.uint32(h ^ (h >> np.uint32(16)))
        half[i] = np.uint32(bits[i] + (h & np.uint32(0xFFFF))) >> np.uint32(16)


@jit
def _adam_rounded(
    weight, grad, m, v, unit_rows, project, beta1, beta2, size, root, eps, seed_m, seed_v, low, high
):
    d = weight.shape[1]
    direction, a, b = np.empty(d, np.float32), np.empty(d, np.float32), np.empty(d, np.float32)
    a_bits, b_bits = a.view(np.uint32), b.view(np.uint32)
    for f in range(low, high):
        _direction(weight[f], grad[f], direction, unit_rows, project)
        _widen(a_bits, m[f])
        _widen(b_bits, v[f])
        _update(weight[f], direction, a, b, beta1, beta2, size, root, eps)
        _round(m[f], a_bits, f * d, seed_m)
        _round(v[f], b_bits, f * d, seed_v)


def adam(weight: Tensor, grad: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, step: AdamStep) -> None:
    if weight.dim() == 1:
        weight, grad, exp_avg, exp_avg_sq = (t[None] for t in (weight, grad, exp_avg, exp_avg_sq))
    weight_, grad_ = arrays(weight, grad)
    number = weight_.dtype.type
    size = number(step.lr / (1 - step.beta1**step.steps))
    root = number(1 / math.sqrt(1 - step.beta2**step.steps))
    numbers = (number(step.beta1), number(step.beta2), size, root, number(step.eps))
    flags = (step.unit_rows, step.project)
    if exp_avg.dtype == weight.dtype:
        over_rows(_adam, len(weight), weight_, grad_, *arrays(exp_avg, exp_avg_sq), *flags, *numbers)
        return
    if exp_avg.dtype != torch.bfloat16 or weight.dtype != torch.float32:
        raise TypeError(f"Adam's state in {exp_avg.dtype} for weights in {weight.dtype}")
    m, v = (as_bits(t).view(np.uint16) for t in (exp_avg, exp_avg_sq))
    seeds = [np.uint32((2 * step.steps + i) * 0x9E3779B9 & 0xFFFFFFFF) for i in (0, 1)]
    over_rows(_adam_rounded, len(weight), weight_, grad_, m, v, *flags, *numbers, *seeds)
