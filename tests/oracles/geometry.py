"""Slow float64 versions of what `geometry` and `landscape` measure, from their definitions.

f: `[n, d_sae]` values of the features on every activation, 0 where they don't fire; u: `[n, d]` the activations.
"""

import math

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

FloatArray = NDArray[np.float64]


def cosine(a: FloatArray, b: FloatArray) -> float:
    return sum(float(x) * float(y) for x, y in zip(a, b, strict=True)) / (math.hypot(*a) * math.hypot(*b))


def overlap(f: FloatArray, children: list[int]) -> float:
    """Share of the activations on which any child fires where two or more do."""
    firing = [sum(row[c] > 0 for c in children) for row in f]
    return sum(k >= 2 for k in firing) / sum(k >= 1 for k in firing)


def chosen(f: FloatArray, parent: list[int], min_count: int, n: int) -> list[int]:
    ranked = []
    for p in range(len(parent)):
        children = usable_children(f, parent, p, min_count)
        if 3 <= len(children) <= 8:
            n_any = sum(any(row[c] > 0 for c in children) for row in f)
            ranked.append((overlap(f, children), -n_any, p))
    return [p for _, _, p in sorted(ranked)[:n]]


def usable_children(f: FloatArray, parent: list[int], p: int, min_count: int) -> list[int]:
    return [c for c in range(len(parent)) if parent[c] == p and sum(row[c] > 0 for row in f) >= min_count]


def family(
    f: FloatArray, u: FloatArray, encoder: FloatArray, children: list[int]
) -> tuple[dict[int, float], dict[int, bool], float]:
    """Of every child with points of its own: its cosine, and whether it agrees; and the explained share."""
    points, label = [], []
    for row, x in zip(f, u, strict=True):
        values = [row[c] for c in children]
        if max(values) > 0:
            points.append(x)
            label.append(children[values.index(max(values))])
    data = np.array(points)
    data = data - data.mean(0)
    _, s, v = np.linalg.svd(data, full_matrices=False)
    first, second = v[0], v[1]

    def project(x: FloatArray) -> FloatArray:
        return np.array([x @ first, x @ second])

    centroid = {
        c: np.mean([project(x) for x, own in zip(data, label, strict=True) if own == c], axis=0)
        for c in children
        if c in label
    }
    cosines = {c: {o: cosine(project(encoder[c]), centroid[o]) for o in centroid} for c in centroid}
    return (
        {c: cosines[c][c] for c in centroid},
        {c: all(cosines[c][c] > cosines[c][o] for o in centroid if o != c) for c in centroid},
        float((s[0] ** 2 + s[1] ** 2) / (s**2).sum()),
    )


def sibling_cosines(
    f: FloatArray, decoder: FloatArray, parent: list[int], layer: list[int], min_count: int
) -> tuple[list[float], list[float]]:
    """Of each family in one layer: mean cosine over pairs of siblings, and of siblings with all others of the layer."""
    on = [i for i in range(len(parent)) if sum(row[i] > 0 for row in f) >= min_count]
    siblings, unrelated = [], []
    for p, own in sorted({(parent[i], layer[i]) for i in on if parent[i] >= 0}):
        members = [i for i in on if parent[i] == p and layer[i] == own]
        if len(members) < 2:
            continue
        siblings.append(
            float(np.mean([cosine(decoder[a], decoder[b]) for a in members for b in members if a != b]))
        )
        others = [i for i in on if layer[i] == own and i not in members]
        if others:
            unrelated.append(
                float(np.mean([cosine(decoder[a], decoder[b]) for a in members for b in others]))
            )
    return siblings, unrelated


def mean_sibling_cosines(
    f: FloatArray, decoder: FloatArray, parent: list[int], layer: list[int], min_count: int
) -> dict[int, float]:
    """Of each feature with siblings in its layer, the mean cosine of their decoder rows with its own."""
    on = [i for i in range(len(parent)) if sum(row[i] > 0 for row in f) >= min_count and parent[i] >= 0]
    found = {}
    for i in on:
        others = [j for j in on if j != i and (parent[j], layer[j]) == (parent[i], layer[i])]
        if others:
            found[i] = float(np.mean([cosine(decoder[i], decoder[j]) for j in others]))
    return found


def directions(s_p: float, s_c: float, k: float) -> tuple[FloatArray, FloatArray, FloatArray]:
    """d_p, d_c and d*: three unit vectors with these cosines."""
    d_p = np.array([1.0, 0, 0])
    d_c = np.array([k, math.sqrt(1 - k * k), 0])
    y = (s_c - k * s_p) / d_c[1]
    return d_p, d_c, np.array([s_p, y, math.sqrt(1 - s_p**2 - y**2)])


def vector_losses(
    a: float, b: float, d_p: FloatArray, d_c: FloatArray, concept: FloatArray
) -> tuple[float, float]:
    """L1 and L2 as the paper first writes them, with vectors."""
    whole = float(np.sum((a * d_p + b * d_c - concept) ** 2))
    return float(np.sum((a * d_p - concept) ** 2)) + whole, whole


def least(s_p: float, s_c: float, k: float) -> tuple[float, float]:
    """L1 and L2 minimized over alpha and beta numerically."""
    vectors = directions(s_p, s_c, k)
    l1, l2 = (
        minimize(lambda ab, i=i: vector_losses(ab[0], ab[1], *vectors)[i], [0.3, 0.3], tol=1e-12).fun
        for i in (0, 1)
    )
    return float(l1), float(l2)
