"""Launching kernels, and the division of columns into blocks."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton

_WARP = 32


class Columns(NamedTuple):
    """The division of a matrix's columns among programs."""

    block: int
    """Number of columns in a block, a power of two. Columns past the last are masked."""
    blocks: int
    """Number of blocks."""
    warps: int
    """Number of warps of a program, such that every thread has four columns, which it loads at once (16 bytes)."""


def columns(d: int, most: int = 512) -> Columns:
    block = max(min(triton.next_power_of_2(d), most), _WARP)
    return Columns(block, triton.cdiv(d, block), max(block // (4 * _WARP), 1))


def launch(kernel: Any, grid: tuple[int, ...], *args: Any, **options: Any) -> None:
    """Launch a kernel on the device of its first argument, a tensor. An empty grid does nothing."""
    if 0 not in grid:
        # Triton launches on the current device, which may not be that of the tensors.
        with torch.cuda.device_of(args[0]):
            kernel[grid](*args, **options)
