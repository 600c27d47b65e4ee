"""JumpReLU, and the straight-through estimator by which its thresholds are trained.

Source: Rajamanoharan et al., arXiv 2407.14435, Eq. 11 and 12.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


class _JumpReLU(torch.autograd.Function):
    """`h 1[h > theta]`, with pseudo-derivative -(theta / eps) K((h - theta) / eps) by theta; K is a rectangle."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, theta: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(h, theta)
        ctx.bandwidth = bandwidth
        return torch.where(h > theta, h, 0)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        h, theta = ctx.saved_tensors
        near = (h - theta).abs() < ctx.bandwidth / 2
        to_theta = torch.where(near, -theta / ctx.bandwidth * grads[0], 0)
        return torch.where(h > theta, grads[0], 0), to_theta, None


class _Heaviside(torch.autograd.Function):
    """`1[h > theta]`, with pseudo-derivative -(1 / eps) K((h - theta) / eps) by theta, and none by h."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, theta: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(h, theta)
        ctx.bandwidth = bandwidth
        return (h > theta).to(h.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor, None]:
        h, theta = ctx.saved_tensors
        near = (h - theta).abs() < ctx.bandwidth / 2
        return None, torch.where(near, -grads[0] / ctx.bandwidth, 0), None


def jumprelu(h: Float[Tensor, "*n"], theta: Float[Tensor, "*n"], bandwidth: float) -> Float[Tensor, "*n"]:
    """`h` where it exceeds the threshold, otherwise 0 (Eq. 11); `bandwidth` is the width of the kernel."""
    return _JumpReLU.apply(h, theta, bandwidth)  # pyright: ignore[reportReturnType]


def heaviside(h: Float[Tensor, "*n"], theta: Float[Tensor, "*n"], bandwidth: float) -> Float[Tensor, "*n"]:
    """1 where `h` exceeds the threshold, otherwise 0 (Eq. 12); `bandwidth` is the width of the kernel."""
    return _Heaviside.apply(h, theta, bandwidth)  # pyright: ignore[reportReturnType]
