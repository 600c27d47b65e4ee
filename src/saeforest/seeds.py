"""Reproducible random numbers."""

from __future__ import annotations

import hashlib

import torch


def seeded(seed: int, *path: int | str) -> torch.Generator:
    """A random generator on the CPU for one purpose, which `path` names, so that different uses are independent.

    The same seed and path always give the same numbers.
    """
    digest = hashlib.blake2b(repr((seed, *path)).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
