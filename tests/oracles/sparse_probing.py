"""Sparse probing and TPP by the book (docs/spec/probing.md): token by token, in float64, nothing precomputed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]


def mean_over_tokens(tokens: list[FloatArray]) -> FloatArray:
    """One row for each text, of its tokens' rows."""
    return np.array([sum(list(text)) / len(text) for text in tokens])


def mean_difference(x: FloatArray, own: list[bool]) -> FloatArray:
    yes = [row for row, is_own in zip(x, own, strict=True) if is_own]
    no = [row for row, is_own in zip(x, own, strict=True) if not is_own]
    return sum(yes, np.zeros(x.shape[1])) / len(yes) - sum(no, np.zeros(x.shape[1])) / len(no)


def largest(score: FloatArray, k: int) -> list[int]:
    return sorted(range(len(score)), key=lambda i: (-score[i], i))[:k]


def ablate(
    x: list[FloatArray],
    f: list[FloatArray],
    scale: list[FloatArray],
    decoder: FloatArray,
    features: list[int],
) -> list[FloatArray]:
    """x - decode(f) + decode(f without the features), of every token of every text."""
    out = []
    for x_text, f_text, s_text in zip(x, f, scale, strict=True):
        rows = []
        for x_t, f_t, s_t in zip(x_text, f_text, s_text, strict=True):
            without = f_t.copy()
            without[features] = 0
            rows.append(x_t - s_t * (f_t @ decoder) + s_t * (without @ decoder))
        out.append(np.array(rows))
    return out


def accuracy(pooled: FloatArray, w: FloatArray, b: float, rows: list[int], own: list[bool]) -> float:
    said = [float(pooled[row] @ w) + b > 0 for row in rows]
    return sum(s == o for s, o in zip(said, own, strict=True)) / len(rows)


def tpp(drop: list[list[float]]) -> float:
    total = 0.0
    for c, row in enumerate(drop):
        others = [d for other, d in enumerate(row) if other != c]
        total += row[c] - sum(others) / len(others)
    return total / len(drop)


def train_probe(
    x: FloatArray, y: FloatArray, batches: list[list[int]], lr: float, l1: float
) -> tuple[FloatArray, float]:
    """AdamW (0.9, 0.999, 1e-8, decay 0.01) from zero, on mean logistic loss + l1 * sum |w|."""
    theta, m, v = np.zeros(x.shape[1] + 1), np.zeros(x.shape[1] + 1), np.zeros(x.shape[1] + 1)
    for step, batch in enumerate(batches, 1):
        u = np.hstack([x[batch], np.ones((len(batch), 1))])
        gradient = u.T @ (1 / (1 + np.exp(-u @ theta)) - y[batch]) / len(batch)
        gradient[:-1] += l1 * np.sign(theta[:-1])
        theta = theta - lr * 0.01 * theta
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        theta = theta - lr * (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.999**step)) + 1e-8)
    return theta[:-1], float(theta[-1])
