"""Unlearning by the book (docs/spec/unlearning.md): one token, one feature, one setting after the other, in float64."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]


def active_share(codes: list[FloatArray]) -> list[float]:
    """Of each feature, from one code for each token."""
    return [sum(float(code[i]) > 0 for code in codes) / len(codes) for i in range(len(codes[0]))]


def features(forget: list[float], retain: list[float], threshold: float, n: int) -> list[int]:
    usable = [i for i in range(len(forget)) if retain[i] < threshold and forget[i] > 0]
    return sorted(usable, key=lambda i: (-forget[i], i))[:n]


def clamped(
    x: FloatArray, code: FloatArray, scale: float, decoder: FloatArray, chosen: list[int], strength: float
) -> FloatArray:
    """An activation whose active features among the chosen ones have become -strength, its error kept."""
    out = x.copy()
    for i in chosen:
        if code[i] > 0:
            out += scale * (-strength - code[i]) * decoder[i]
    return out


def score(forget: list[float], retain: list[float]) -> float:
    allowed = [f for f, r in zip(forget, retain, strict=True) if r >= 0.99]
    return 1 - min(allowed, default=1.0)
