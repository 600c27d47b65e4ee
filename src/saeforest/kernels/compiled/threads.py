"""Compiled loops over ranges of rows, on as many threads as PyTorch uses.

Numba releases Python's global lock while a loop runs, so ordinary threads suffice. Every row is processed by one thread
from beginning to end, so results do not depend on how rows are distributed.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from typing import Any

import numba
import numpy as np
import torch

# Sums may be reordered for the processor's vector instructions, in the same way every time.
OPTIONS: Any = {
    "nogil": True,
    "fastmath": {"reassoc", "contract", "nsz", "arcp"},
    "error_model": "numpy",
}
# The number of ranges for each thread. Threads that finish early take another range, since cores differ in speed.
_RANGES = 4
_FEW_ROWS = 8


def jit(loop: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a loop, without the type checks that tests wrap around every function."""
    loop = inspect.unwrap(loop)
    try:
        return numba.njit(cache=True, **OPTIONS)(loop)
    except RuntimeError:  # there is no place for a cache, so compile it again in every process
        return numba.njit(**OPTIONS)(loop)


@cache
def _pool(n_threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(n_threads, thread_name_prefix="saeforest")


os.register_at_fork(after_in_child=_pool.cache_clear)  # a forked process has none of the threads


def over_rows(loop: Callable[..., None], n: int, *args: Any) -> None:
    """Run `loop(*args, low, high)` over ranges that together cover `0..n`."""
    n_threads = torch.get_num_threads()
    over_ranges(
        loop, np.linspace(0, n, min(n_threads * _RANGES, max(n // _FEW_ROWS, 1)) + 1).astype(np.int64), *args
    )


def over_work(loop: Callable[..., None], work: np.ndarray, *args: Any, own: slice | None = None) -> None:
    """The same for rows that differ in work: `work[i]` is the total work of the rows before row i.

    own: only these rows.
    """
    low, high = (0, len(work) - 1) if own is None else (own.start, own.stop)
    parts = torch.get_num_threads() * _RANGES
    todo = work[high] - work[low]
    inner = np.searchsorted(work, work[low] + np.arange(1, parts) * (todo / parts)).clip(low, high)
    over_ranges(loop, np.concatenate([[low], inner, [high]]), *args)


def over_ranges(loop: Callable[..., None], cuts: np.ndarray, *args: Any) -> None:
    ranges = [(low, high) for low, high in pairwise(cuts.tolist()) if low < high]
    n_threads = torch.get_num_threads()
    if n_threads == 1 or len(ranges) == 1:
        for low, high in ranges:
            loop(*args, low, high)
    else:
        list(_pool(n_threads).map(lambda ends: loop(*args, *ends), ranges))
