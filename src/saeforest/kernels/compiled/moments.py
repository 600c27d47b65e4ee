"""The loop that Numba compiles for Adam: one pass over weights, gradients and moments.

All of it is in one file because Numba's cache is valid until the file changes. A matrix is kept in the data type of the
gradients, or in fewer bits: in bfloat16, given by its bits (uint16), or as a pair of codes in 8 bits and the exponents
of its rows (`low_precision.py`). None of the loops checks its arguments.
"""

from __future__ import annotations

import inspect

import numpy as np
from numba.core import types
from numba.extending import overload

from ..low_precision import SIGNED, UNSIGNED
from .threads import OPTIONS, jit


@jit
def _direction(weight, grad, out, unit_rows, project):
    """Scale the row to unit norm and write its gradient, without the component along the row if that is asked for."""
    if not unit_rows:
        for i in range(len(out)):  # an assignment to a slice takes Numba two seconds more to compile
            out[i] = grad[i]
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
def _after_rest(weight, m, v, rest, root, eps):
    """Let a row make up for the steps in which it rested."""
    keep_m, keep_v, far = rest[0], rest[1], rest[2]
    for i in range(len(weight)):
        weight[i] -= far * m[i] / (np.sqrt(v[i]) * root + eps)
        m[i] *= keep_m
        v[i] *= keep_v


# -- rows in fewer bits; integers are kept in 32 bits, or Numba would continue in 64


@jit
def _hash(place, seed):
    """`low_precision.hashed`."""
    h = np.uint32(np.uint32(place) + seed)
    h = np.uint32((h ^ (h >> np.uint32(16))) * np.uint32(0x85EBCA6B))
    h = np.uint32((h ^ (h >> np.uint32(13))) * np.uint32(0xC2B2AE35))
    return np.uint32(h ^ (h >> np.uint32(16)))


@jit
def _from_halves(half, out):
    bits = out.view(np.uint32)
    for i in range(len(half)):
        bits[i] = np.uint32(half[i]) << np.uint32(16)
    return out


@jit
def _to_halves(half, row, place, seed):
    bits = row.view(np.uint32)
    for i in range(len(half)):
        half[i] = np.uint32(bits[i] + (_hash(place + i, seed) & np.uint32(0xFFFF))) >> np.uint32(16)


@jit
def _from_bytes(codes, exponent, top, mantissa, out):
    """`low_precision.widened`."""
    units = np.empty(len(out), np.uint32)
    digits = np.int32((1 << mantissa) - 1)
    lowest = np.int32(exponent - top - mantissa)
    for i in range(len(codes)):
        size = np.int32(abs(np.int32(codes[i])))
        own = np.int32(size >> mantissa)
        hidden = np.int32(min(own, np.int32(1)))
        number = np.float32(np.int32((size & digits) + (hidden << mantissa)))
        out[i] = -number if codes[i] < 0 else number
        units[i] = np.uint32(lowest + max(own, np.int32(1))) << np.uint32(23)
    powers = units.view(np.float32)
    for i in range(len(codes)):
        out[i] *= powers[i]
    return out


@jit
def _to_bytes(codes, row, place, seed, top, mantissa, least):
    """`low_precision.narrowed`. Returns the row's exponent."""
    bits = row.view(np.uint32)
    largest = np.uint32(0)
    for i in range(len(codes)):
        largest = max(largest, bits[i] & np.uint32(0x7FFFFFFF))
    spare = np.int32(23 - mantissa)
    exponent = (np.int64(largest) + (1 << spare) - 1) >> 23
    exponent = min(max(exponent, top + mantissa), 255)
    first = np.int32(exponent - top + 1)
    for i in range(len(codes)):
        x = np.uint32(bits[i] & np.uint32(0x7FFFFFFF))
        own = np.int32(x >> np.uint32(23))
        hidden = np.uint32(min(own, np.int32(1)))
        number = np.uint32((x & np.uint32(0x7FFFFF)) | np.uint32(hidden << np.uint32(23)))
        own = np.int32(max(own, np.int32(1)))
        shift = np.int32(spare + max(np.int32(first - own), np.int32(0)))
        number = np.uint32(number >> np.uint32(min(max(np.int32(shift - 31), np.int32(0)), np.int32(31))))
        by = np.uint32(min(shift, np.int32(31)))
        chance = np.uint32(_hash(place + i, seed) & np.uint32((np.uint32(1) << by) - np.uint32(1)))
        code = np.int32(np.uint32(number + chance) >> by)
        code = np.int32(code + (max(np.int32(own - first), np.int32(0)) << mantissa))
        code = max(code, least) if x > 0 else np.int32(0)
        codes[i] = -code if bits[i] >> np.uint32(31) else code
    return exponent


# -- how a matrix is kept is known when a loop is compiled for it


def _row(kept, f, out):
    """Row `f` of a matrix. If it is kept in fewer bits, it is written to `out`."""
    raise NotImplementedError


def _keep(kept, f, row, place, seed):
    """Write a row that `_row` returned back, rounded stochastically."""
    raise NotImplementedError


def _is_bytes(kept):
    return isinstance(kept, types.BaseTuple)


def _form(kept):
    return (SIGNED if kept[0].dtype == types.int8 else UNSIGNED)[1:]


@overload(_row, jit_options=OPTIONS)
def _row_of(kept, f, out):
    if _is_bytes(kept):
        top, mantissa, _ = _form(kept)
        return lambda kept, f, out: _from_bytes(kept[0][f], kept[1][f], top, mantissa, out)
    if kept.dtype == types.uint16:
        return lambda kept, f, out: _from_halves(kept[f], out)
    return lambda kept, f, out: kept[f]


@overload(_keep, jit_options=OPTIONS)
def _keep_of(kept, f, row, place, seed):
    if _is_bytes(kept):
        top, mantissa, least = _form(kept)

        def keep(kept, f, row, place, seed):
            codes, exponents = kept
            exponents[f] = _to_bytes(codes[f], row, place, seed, top, mantissa, least)

        return inspect.unwrap(keep)
    if kept.dtype == types.uint16:
        return lambda kept, f, row, place, seed: _to_halves(kept[f], row, place, seed)
    return lambda kept, f, row, place, seed: None


@jit
def adam(
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
    seed_weight,
    seed_m,
    seed_v,
    rank,
    ranks,
    low,
    high,
):
    """Step the rows `rows[i]` for i from `low` to `high - 1`, whose gradients are `grad[i]`, after they have made up
    for `rests[i]`. If `rows` is None, all have a gradient and none has rested. Row f is rounded as row
    `f * ranks + rank` of a whole matrix."""
    d = grad.shape[1]
    spare = np.empty((4, d), grad.dtype)
    for i in range(low, high):
        f = i if rows is None else rows[i]
        w, a, b, direction = _row(weight, f, spare[0]), _row(m, f, spare[1]), _row(v, f, spare[2]), spare[3]
        if rows is not None:
            if last[f] < steps - 1:
                _after_rest(w, a, b, rests[i], root, eps)
            last[f] = steps
        _direction(w, grad[i], direction, unit_rows, project)
        _update(w, direction, a, b, beta1, beta2, size, root, eps)
        place = (f * ranks + rank) * d
        _keep(weight, f, w, place, seed_weight)
        _keep(m, f, a, place, seed_m)
        _keep(v, f, b, place, seed_v)
