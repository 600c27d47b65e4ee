"""The loops that Numba compiles for Adam: one pass over weights, gradients and moments.

They are in one file because they call each other, and because Numba's cache is valid until the file changes. Each
processes the rows `low` to `high - 1`. None of them checks its arguments.
"""

from __future__ import annotations

import numpy as np

from .threads import jit


@jit
def _direction(weight, grad, out, unit_rows, project):
    """Scale the row to unit norm and write its gradient, without the component along the row if that is asked for."""
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
def adam(weight, grad, m, v, unit_rows, project, beta1, beta2, size, root, eps, low, high):
    direction = np.empty_like(weight[0])
    for f in range(low, high):
        _direction(weight[f], grad[f], direction, unit_rows, project)
        _update(weight[f], direction, m[f], v[f], beta1, beta2, size, root, eps)


@jit
def _after_rest(weight, m, v, rest, root, eps):
    """Let a row make up for the steps in which it rested."""
    keep_m, keep_v, far = rest[0], rest[1], rest[2]
    for i in range(len(weight)):
        weight[i] -= far * m[i] / (np.sqrt(v[i]) * root + eps)
        m[i] *= keep_m
        v[i] *= keep_v


@jit
def adam_rows(
    weight, rows, grad, m, v, last, steps, rests, unit_rows, project, beta1, beta2, size, root, eps, low, high
):
    """Row i of `rests` holds what row `rows[i]` makes up for."""
    direction = np.empty_like(weight[0])
    for i in range(low, high):
        f = rows[i]
        if last[f] < steps - 1:
            _after_rest(weight[f], m[f], v[f], rests[i], root, eps)
        _direction(weight[f], grad[i], direction, unit_rows, project)
        _update(weight[f], direction, m[f], v[f], beta1, beta2, size, root, eps)
        last[f] = steps


@jit
def _widen(bits, half):
    """bfloat16 to float32, as integers."""
    for i in range(len(half)):
        bits[i] = np.uint32(half[i]) << np.uint32(16)


@jit
def _round(half, bits, place, seed):
    """float32 to bfloat16, as integers, by the stochastic rounding of `plain.rounded`."""
    for i in range(len(half)):
        # Otherwise Numba would continue in 64 bits.
        h = np.uint32(np.uint32(place + i) + seed)
        h = np.uint32((h ^ (h >> np.uint32(16))) * np.uint32(0x85EBCA6B))
        h = np.uint32((h ^ (h >> np.uint32(13))) * np.uint32(0xC2B2AE35))
        h = np.uint32(h ^ (h >> np.uint32(16)))
        half[i] = np.uint32(bits[i] + (h & np.uint32(0xFFFF))) >> np.uint32(16)


@jit
def adam_rounded(
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


@jit
def adam_rows_rounded(
    weight,
    rows,
    grad,
    m,
    v,
    last,
    steps,
    rests,
    unit_rows,
    project,
    beta1,
    beta2,
    size,
    root,
    eps,
    seed_m,
    seed_v,
    low,
    high,
):
    d = weight.shape[1]
    direction, a, b = np.empty(d, np.float32), np.empty(d, np.float32), np.empty(d, np.float32)
    a_bits, b_bits = a.view(np.uint32), b.view(np.uint32)
    for i in range(low, high):
        f = rows[i]
        _widen(a_bits, m[f])
        _widen(b_bits, v[f])
        if last[f] < steps - 1:
            _after_rest(weight[f], a, b, rests[i], root, eps)
        _direction(weight[f], grad[i], direction, unit_rows, project)
        _update(weight[f], direction, a, b, beta1, beta2, size, root, eps)
        _round(m[f], a_bits, f * d, seed_m)
        _round(v[f], b_bits, f * d, seed_v)
        last[f] = steps
