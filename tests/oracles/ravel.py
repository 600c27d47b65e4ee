"""RAVEL by the book (docs/spec/ravel.md): one pair after the other, one feature after the other, in float64."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]


def mixed(
    plain: FloatArray,
    base: FloatArray,
    source: FloatArray,
    mask: list[float],
    scale: float,
    decoder: FloatArray,
) -> FloatArray:
    """What an activation becomes: decode(base) is `plain`."""
    out = plain.copy()
    for i, m in enumerate(mask):
        value = (1 - m) * base[i] + m * source[i]
        out += scale * (value - base[i]) * decoder[i]
    return out


def sigmoid(z: float, temperature: float) -> float:
    return 1 / (1 + math.exp(-z / temperature))


def temperature(step: int, steps: int) -> float:
    """From 1 to 1e-4, evenly in its logarithm."""
    return 10 ** (-4 * step / (steps - 1)) if steps > 1 else 1.0


def cross_entropy(logits: FloatArray, target: int) -> float:
    largest = max(logits)
    return math.log(sum(math.exp(v - largest) for v in logits)) + largest - float(logits[target])


def slopes(
    d_loss_d_x: list[FloatArray],
    base: list[FloatArray],
    source: list[FloatArray],
    scale: list[float],
    decoder: FloatArray,
    z: list[float],
    temperature: float,
) -> FloatArray:
    """The gradient of the mean loss by z, given that of each pair's loss by its activation."""
    out = np.zeros(len(z))
    for slope, f_b, f_s, s in zip(d_loss_d_x, base, source, scale, strict=True):
        for i, z_i in enumerate(z):
            m = sigmoid(z_i, temperature)
            along = sum(float(a) * float(b) for a, b in zip(slope, decoder[i], strict=True))
            out[i] += along * s * (f_s[i] - f_b[i]) * m * (1 - m) / temperature
    return out / len(base)


def adam(z: list[float], gradients: list[FloatArray], lr: float) -> list[float]:
    """Adam (0.9, 0.999, 1e-8) over some steps."""
    m = v = np.zeros(len(z))
    now = np.array(z)
    for step, gradient in enumerate(gradients, 1):
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        now = now - lr * (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.999**step)) + 1e-8)
    return now.tolist()


def share(pairs: list[tuple[str, bool, bool]], cause: bool, weight: dict[str, float]) -> float:
    """Of pairs (entity, whether it should change, whether it was right): the share that was right, weighted."""
    mine = [(weight[entity], right) for entity, should, right in pairs if should == cause]
    return sum(w * right for w, right in mine) / sum(w for w, _ in mine)
