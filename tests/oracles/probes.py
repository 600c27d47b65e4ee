"""Probes and the reconstruction score, slow and in float64 (docs/spec/hierarchy.md#directions, Eq. 5).

x: `[n, d]` activations. y: `[n]` or `[n, C]`, 1 where a feature fires. theta: `[d + 1]` or `[C, d + 1]`, weights and,
last, the bias.
"""

import math

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]


def loss(theta: FloatArray, x: FloatArray, y: FloatArray, pos_weight: float) -> float:
    """BCE with logits, a positive weighing `pos_weight`; the mean over the rows of x."""
    total = 0.0
    for row, label in zip(x, y, strict=True):
        z = float(row @ theta[:-1] + theta[-1])
        p_log, not_p_log = -np.logaddexp(0, -z), -np.logaddexp(0, z)
        total -= float(pos_weight * label * p_log + (1 - label) * not_p_log)
    return total / len(x)


def numeric_gradient(theta: FloatArray, x: FloatArray, y: FloatArray, pos_weight: float) -> FloatArray:
    """Of `loss`, by central differences."""
    step, gradient = 1e-5, np.zeros_like(theta)
    for i in range(len(theta)):
        shift = np.zeros_like(theta)
        shift[i] = step
        rise = loss(theta + shift, x, y, pos_weight) - loss(theta - shift, x, y, pos_weight)
        gradient[i] = rise / (2 * step)
    return gradient


def gradient(theta: FloatArray, x: FloatArray, y: FloatArray, pos_weight: FloatArray) -> FloatArray:
    """Of the `loss` of each of C probes, `[C, d + 1]`, from dense labels."""
    inputs = np.hstack([x, np.ones((len(x), 1))])
    p = 1 / (1 + np.exp(-inputs @ theta.T))
    return ((1 - y) * p - pos_weight * y * (1 - p)).T @ inputs / len(x)


def train(
    theta: FloatArray,
    x: FloatArray,
    y: FloatArray,
    epochs: list[list[NDArray[np.int64]]],
    lr: float,
    lr_end: float,
    decay: float,
    joint: int,
) -> FloatArray:
    """Adam over the given batches of each epoch; `joint` divides the loss, `decay` is L2 in the gradient."""
    n_fired = y.sum(0)
    pos_weight = (len(x) - n_fired) / n_fired
    mean, square, step = np.zeros_like(theta), np.zeros_like(theta), 0
    for epoch, batches in enumerate(epochs):
        rate = lr * (lr_end / lr) ** (epoch / len(epochs))
        for batch in batches:
            step += 1
            g = gradient(theta, x[batch], y[batch], pos_weight) / joint + decay * theta
            mean = 0.9 * mean + 0.1 * g
            square = 0.999 * square + 0.001 * g**2
            corrected = np.sqrt(square / (1 - 0.999**step)) + 1e-8
            theta = theta - rate * mean / (1 - 0.9**step) / corrected
    return theta


def auroc(score: FloatArray, y: FloatArray) -> float:
    """Of all pairs of a positive and a negative, the share in which the positive has the larger score."""
    wins = [
        (a > b) + 0.5 * (a == b)
        for a in score[y == 1].tolist()
        for b in score[y == 0].tolist()
    ]  # fmt: skip
    return sum(wins) / len(wins)


def cosine(a: FloatArray, b: FloatArray) -> float:
    return float(a @ b / math.sqrt((a @ a) * (b @ b)))


def rank(direction: FloatArray, decoder: FloatArray, i: int) -> int:
    """1 plus the number of rows with a larger cosine."""
    cosines = [cosine(direction, row) for row in decoder]
    return 1 + sum(c > cosines[i] for c in cosines)
