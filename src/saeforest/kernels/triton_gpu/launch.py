"""How kernels are started, and over which blocks of columns."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton

_WARP = 32


class Columns(NamedTuple):
    """How programs divide the columns of a matrix among themselves."""

    block: int
    """Columns at a time, a power of two; masks hide those past the last."""
    blocks: int
    """How many of those there are."""
    warps: int
    """Warps of a program: every thread holds four columns, the 16 bytes that it loads at a time."""


def columns(d: int, most: int = 512) -> Columns:
    block = max(min(triton.next_power_of_2(d), most), _WARP)
    return Columns(block, triton.cdiv(d, block), max(block // (4 * _WARP), 1))


def launch(kernel: Any, grid: tuple[int, ...], *args: Any, **options: Any) -> None:
    """Starts a kernel on the device of its first argument, a tensor; does nothing where there is nothing to do."""
    if 0 not in grid:
        # Triton launches on the current device, which need not be the tensors' own.
        with torch.cuda.device_of(args[0]):
            kernel[grid](*args, **options)
