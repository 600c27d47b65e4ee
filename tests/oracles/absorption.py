"""Absorption, slow and in float64, written from docs/spec/absorption.md alone."""

import math

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]


def letter_probe(
    x: FloatArray,
    letter: list[int],
    weight: FloatArray,
    bias: FloatArray,
    epochs: list[list[list[int]]],
    weight_decay: float,
    l1: float,
) -> tuple[FloatArray, FloatArray]:
    """Adam on 26 logistic probes: `weight [width, 26]` and `bias` are the start, `epochs` the rows of every step."""
    y = np.eye(26)[letter]
    pos_weight = [(len(y) - n) / max(n, 1) for n in y.sum(0)]
    parameters = [weight.copy(), bias.copy()]
    first = [np.zeros_like(p) for p in parameters]
    second = [np.zeros_like(p) for p in parameters]
    step, rate = 0, 1e-2
    for steps in epochs:
        for rows in steps:
            step += 1
            scores = x[rows] @ parameters[0] + parameters[1]
            sigmoid = 1 / (1 + np.exp(-scores))
            # d/ds of -(v y log sigmoid + (1 - y) log(1 - sigmoid))
            slope = (1 - y[rows]) * sigmoid - np.array(pos_weight) * y[rows] * (1 - sigmoid)
            slope /= slope.size
            gradients = [x[rows].T @ slope + l1 / 26 * np.sign(parameters[0]), slope.sum(0)]
            for p, g, m, v in zip(parameters, gradients, first, second, strict=True):
                g = g + weight_decay * p
                m[:] = 0.9 * m + 0.1 * g
                v[:] = 0.999 * v + 0.001 * g**2
                p -= rate * (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.999**step)) + 1e-8)
        rate *= (1e-5 / 1e-2) ** (1 / len(epochs))
    return parameters[0], parameters[1]


def f1(predicted: list[bool], truth: list[bool]) -> float:
    hits = sum(p and t for p, t in zip(predicted, truth, strict=True))
    wrong = sum(p != t for p, t in zip(predicted, truth, strict=True))
    return 2 * hits / (2 * hits + wrong) if hits + wrong else 0.0


def balanced_logistic(x: FloatArray, y: list[bool]) -> tuple[FloatArray, float]:
    """L2-regularized logistic regression with C = 1 and balanced class weights, by Newton's method."""
    inputs = np.hstack([x, np.ones((len(x), 1))])
    target = np.array(y, dtype=float)
    n_positive = target.sum()
    weights = np.where(target == 1, len(y) / (2 * n_positive), len(y) / (2 * (len(y) - n_positive)))
    ridge = np.eye(inputs.shape[1])
    ridge[-1, -1] = 0
    beta = np.zeros(inputs.shape[1])

    def loss(b: FloatArray) -> float:
        s = inputs @ b
        return float(weights @ (np.logaddexp(0, s) - target * s) + b @ ridge @ b / 2)

    for _ in range(100):
        p = 1 / (1 + np.exp(-inputs @ beta))
        gradient = inputs.T @ (weights * (p - target)) + ridge @ beta
        hessian = inputs.T @ (inputs * (weights * p * (1 - p))[:, None]) + ridge
        move, size = np.linalg.solve(hessian, gradient), 1.0
        while loss(beta - size * move) > loss(beta) and size > 1e-10:
            size /= 2
        beta = beta - size * move
    return beta[:-1], float(beta[-1])


def n_main(f1_by_k: list[float], jump: float = 0.03) -> int:
    """The largest k up to which each probe's F1 exceeds the one before it by more than the jump."""
    for k in range(1, len(f1_by_k)):
        if f1_by_k[k] <= f1_by_k[k - 1] + jump:
            return k
    return len(f1_by_k)


def absorption(
    f: FloatArray, x: FloatArray, w: FloatArray, decoder: FloatArray, mains: list[int]
) -> tuple[float, bool]:
    """The fraction and whether absorption is full, for one word `x` with the dense activations `f [F]`."""
    w = w / math.sqrt(w @ w)
    cosines = [float(w @ d / math.sqrt(d @ d)) for d in decoder]
    projection = float(x @ w)
    p = [value * c for value, c in zip(f, cosines, strict=True)]
    main = sum(p[i] for i in mains)
    absorbers = [p[i] for i in range(len(f)) if i not in mains and cosines[i] >= 0.1 and p[i] > 0]
    absorbed = sum(sorted(absorbers)[-3:])

    if projection <= 0 or main >= projection or absorbed / projection < 0.4:
        fraction = 0.0
    elif main <= 0:
        fraction = 1.0
    else:
        a = min(absorbed, projection - main)
        fraction = min(max(a / (a + main), 0), 1)

    top = int(np.argmax(p))
    silent = all(f[i] < 1e-8 for i in mains)
    full = silent and cosines[top] >= 0.025 and projection > 0 and p[top] / projection >= 0.4
    return fraction, full


def max_cosines(rows: FloatArray) -> list[float]:
    found = []
    for i, a in enumerate(rows):
        others = [a @ b / math.sqrt((a @ a) * (b @ b)) for j, b in enumerate(rows) if j != i]
        found.append(max(others))
    return found
