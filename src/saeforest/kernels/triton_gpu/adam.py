"""The step of the optimizer, in one pass over weights, gradients and state."""

from __future__ import annotations

import math
from typing import no_type_check

import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from .. import plain
from ..low_precision import Bytes
from ..types import AdamStep, after_rest
from .launch import launch

_BLOCK = 1024


@triton.jit
@no_type_check
def _rounded(x, place, shift):
    """Round to bfloat16 as `plain.rounded` does; `shift` is the amount that the seed adds to every position."""
    h = place.to(tl.uint32) + shift.to(tl.uint32)
    h = (h ^ (h >> 16)) * 0x85EBCA6B
    h = (h ^ (h >> 13)) * 0xC2B2AE35
    h = h ^ (h >> 16)
    bits = x.to(tl.uint32, bitcast=True) + (h & 0xFFFF)
    return (bits >> 16).to(tl.uint16).to(tl.bfloat16, bitcast=True)


@triton.jit(do_not_specialize=["shift_m", "shift_v", "rank", "ranks"])
@no_type_check
def _adam(
    weight,
    grad,
    exp_avg,
    exp_avg_sq,
    size,
    d,
    take_m,
    keep_v,
    take_v,
    rate,
    root,
    eps,
    shift_m,
    shift_v,
    width,
    rank,
    ranks,
    rows,
    rests,
    UNIT_ROWS: tl.constexpr,
    PROJECT: tl.constexpr,
    SOME: tl.constexpr,
    DIVIDED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Update one row of length `d`. `size` is the number of elements of all rows, so the last may be shorter.

    With SOME, program i updates row `rows[i]`, whose gradient is row i of `grad`, after it has made up for its rest as
    row i of `rests` says (`after_rest`).

    With DIVIDED, row f of these, of length `width`, is rounded as row `f * ranks + rank` of a whole matrix.
    """
    program = tl.program_id(0).to(tl.int64)
    begin = program * d
    far = 0.0
    if SOME:
        begin = tl.load(rows + program) * d
        keep = rests + 3 * program
        far = tl.load(keep + 2)
    grad += program * d - begin
    end = tl.minimum(begin + d, size)
    shrink = 1.0
    along = 0.0
    if UNIT_ROWS:
        squares = tl.zeros([BLOCK], tl.float32)
        products = tl.zeros([BLOCK], tl.float32)
        for start in range(begin, end, BLOCK):
            at = start + tl.arange(0, BLOCK)
            w = tl.load(weight + at, mask=at < end, other=0.0)
            if SOME:
                m = tl.load(exp_avg + at, mask=at < end, other=0.0).to(tl.float32)
                v = tl.load(exp_avg_sq + at, mask=at < end, other=0.0).to(tl.float32)
                w -= far * m / (tl.sqrt_rn(v) * root + eps)
            squares += w * w
            if PROJECT:
                products += w * tl.load(grad + at, mask=at < end, other=0.0)
        shrink = 1.0 / tl.maximum(tl.sqrt_rn(tl.sum(squares)), 1e-12)
        along = tl.sum(products) * shrink

    for start in range(begin, end, BLOCK):
        at = start + tl.arange(0, BLOCK)
        mine = at < end
        w = tl.load(weight + at, mask=mine, other=0.0)
        g = tl.load(grad + at, mask=mine, other=0.0)
        m = tl.load(exp_avg + at, mask=mine, other=0.0).to(tl.float32)
        v = tl.load(exp_avg_sq + at, mask=mine, other=0.0).to(tl.float32)
        if SOME:
            w -= far * m / (tl.sqrt_rn(v) * root + eps)
            m *= tl.load(keep)
            v *= tl.load(keep + 1)
        if UNIT_ROWS:
            w *= shrink
        if PROJECT:
            g -= along * w
        m += take_m * (g - m)
        v = keep_v * v + take_v * g * g
        w -= rate * m / (tl.sqrt_rn(v) * root + eps)
        tl.store(weight + at, w, mask=mine)
        place = at
        if DIVIDED:
            place += (at // width * (ranks - 1) + rank) * width
        if exp_avg.dtype.element_ty == tl.bfloat16:
            tl.store(exp_avg + at, _rounded(m, place, shift_m), mask=mine)
        else:
            tl.store(exp_avg + at, m, mask=mine)
        if exp_avg_sq.dtype.element_ty == tl.bfloat16:
            tl.store(exp_avg_sq + at, _rounded(v, place, shift_v), mask=mine)
        else:
            tl.store(exp_avg_sq + at, v, mask=mine)


def adam(
    weight: Float[Tensor, "*shape"],
    grad: Float[Tensor, "*shape"],
    exp_avg: Float[Tensor, "*shape"] | Bytes,
    exp_avg_sq: Float[Tensor, "*shape"] | Bytes,
    step: AdamStep,
) -> None:
    """Run one program for each row if rows are scaled to unit norm, otherwise one for each block of elements.

    `weight` must be float32, and the tensors that are updated must be contiguous. PyTorch steps those
    with moments in 8 bits.
    """
    if isinstance(exp_avg, Bytes) or isinstance(exp_avg_sq, Bytes):
        plain.adam(weight, grad, exp_avg, exp_avg_sq, step)
        return
    d = weight.shape[-1] if step.unit_rows else _BLOCK
    _launch(triton.cdiv(weight.numel(), d), d, weight, grad, exp_avg, exp_avg_sq, step, None, None)


def adam_rows(
    weight: Float[Tensor, "F d"],
    rows: Int[Tensor, "a"],
    grad: Float[Tensor, "a d"],
    exp_avg: Float[Tensor, "F d"] | Bytes,
    exp_avg_sq: Float[Tensor, "F d"] | Bytes,
    last: Int[Tensor, "F"],
    step: AdamStep,
) -> None:
    """Run one program for each of `rows`. The same holds for the tensors as in `adam`."""
    if isinstance(exp_avg, Bytes) or isinstance(exp_avg_sq, Bytes):
        plain.adam_rows(weight, rows, grad, exp_avg, exp_avg_sq, last, step)
        return
    rests = after_rest(step, last[rows]).float()
    _launch(len(rows), weight.shape[1], weight, grad, exp_avg, exp_avg_sq, step, rows, rests)
    last[rows] = step.steps


def _launch(
    programs: int,
    d: int,
    weight: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    step: AdamStep,
    rows: Tensor | None,
    rests: Tensor | None,
) -> None:
    for t in (weight, exp_avg, exp_avg_sq):
        assert t.is_contiguous()
    options = {
        "UNIT_ROWS": step.unit_rows,
        "PROJECT": step.unit_rows and step.project,
        "SOME": rows is not None,
        "DIVIDED": step.shard[1] > 1,
        "BLOCK": min(triton.next_power_of_2(d), _BLOCK),
        "num_warps": 4,
    }
    launch(
        _adam,
        (programs,),
        weight,
        grad.contiguous(),
        exp_avg,
        exp_avg_sq,
        weight.numel(),
        d,
        1 - step.beta1,
        step.beta2,
        1 - step.beta2,
        step.lr / (1 - step.beta1**step.steps),
        1 / math.sqrt(1 - step.beta2**step.steps),
        step.eps,
        _shift(step.seeds[1]),
        _shift(step.seeds[2]),
        weight.shape[-1],
        *step.shard,
        rows,
        rests,
        **options,
    )


def _shift(seed: int) -> int:
    """`seed` times the constant of `plain.rounded`, as a signed 32-bit number, so that its type never changes."""
    return (seed * 0x9E3779B9 + 2**31) % 2**32 - 2**31
