"""Pair scores and inferred forests, slow and in float64, by their definitions (docs/spec/hierarchy.md#mcs, Eq. 4, 5).

a: `[n, F]` values of the features on every token, with everything at or below the threshold set to 0.
"""

import math

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]


def score(kind: str, a: FloatArray, p: int, c: int) -> float:
    """Of parent p and child c, 0 where they never fire together or the score is 0/0."""
    on = [t for t in range(len(a)) if a[t, c] > 0]
    both = [t for t in on if a[t, p] > 0]
    if not both:
        return 0.0
    parent_max, child_max = max(a[:, p]), max(a[:, c])
    x = [float(a[t, p]) for t in on]
    y = [float(a[t, c]) for t in on]
    if kind == "coverage":
        return len(both) / len(on)
    if kind in ("mcs_binary", "mcs_binary_scaled"):
        cosine = cosine_of([float(v > 0) for v in x], [1.0] * len(on))
        return cosine * (min(1.0, parent_max) / parent_max if kind == "mcs_binary_scaled" else 1.0)
    if kind in ("mcs_correlation", "mcs_correlation_scaled"):
        scale = min(child_max, parent_max) / parent_max
        return cosine_of(x, y) * (scale if kind == "mcs_correlation_scaled" else 1.0)
    assert kind == "pearson"
    if len(set(x)) == 1 or len(set(y)) == 1:
        return 0.0
    return cosine_of([v - sum(x) / len(x) for v in x], [v - sum(y) / len(y) for v in y])


def cosine_of(x: list[float], y: list[float]) -> float:
    return sum(u * v for u, v in zip(x, y, strict=True)) / math.sqrt(
        sum(u * u for u in x) * sum(v * v for v in y)
    )


def lda_direction(u: FloatArray, on: NDArray[np.bool_], ridge: float) -> FloatArray:
    covariance = np.cov(u.T, bias=True)
    regular = covariance + ridge * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
    w = np.linalg.solve(regular, u[on].mean(0) - u[~on].mean(0))
    return w / np.linalg.norm(w)


def may_be_parent(p: int, c: int, n: list[int], layer: list[int], order: str) -> bool:
    if order == "layers":
        return layer[p] < layer[c]
    return n[p] > n[c] or (n[p] == n[c] and p < c)


def best(candidates: list[tuple[float, int, int]]) -> int:
    """Of (score, firings, id): the best score in float32; of equals the rarest, then the lowest id. -1: none."""
    ranked = sorted((-float(np.float32(s)), n, i) for s, n, i in candidates)
    return ranked[0][2] if ranked else -1


def infer(
    kind: str, a: FloatArray, *, least: float, min_count: int, order: str, layer: list[int]
) -> list[int]:
    """The parent of every feature by a score alone."""
    n = [int((a[:, i] > 0).sum()) for i in range(a.shape[1])]
    parent = []
    for c in range(a.shape[1]):
        scored = [
            (score(kind, a, p, c), n[p], p) for p in range(a.shape[1]) if may_be_parent(p, c, n, layer, order)
        ]
        passing = [s for s in scored if np.float32(s[0]) >= np.float32(least)]
        parent.append(best(passing) if n[c] >= min_count else -1)
    return parent


def infer_by_reconstruction(
    a: FloatArray,
    u: FloatArray,
    decoder: FloatArray,
    *,
    least: float,
    min_count: int,
    min_reconstruction: float,
    ridge: float,
    order: str,
    layer: list[int],
) -> tuple[list[int], list[float]]:
    """The parent of every feature by coverage and Eq. 5, and S_res of the two; u: what the SAE reconstructs."""
    n = [int((a[:, i] > 0).sum()) for i in range(a.shape[1])]
    parent, s_res = [], []
    for c in range(a.shape[1]):
        found: list[tuple[float, int, int]] = []
        cosine = np.zeros(len(decoder))
        if min_count <= n[c] < len(a):
            cosine = decoder @ lda_direction(u, a[:, c] > 0, ridge)
            for p in range(a.shape[1]):
                covers = may_be_parent(p, c, n, layer, order) and score("coverage", a, p, c) >= least
                if covers and min(cosine[c], cosine[p]) >= min_reconstruction:
                    found.append((float(cosine[p]), n[p], p))
        parent.append(best(found))
        s_res.append(min(float(cosine[c]), float(cosine[parent[-1]])) if found else 0.0)
    return parent, s_res
