"""Spurious correlation removal by the book (docs/spec/probing.md#scr): token by token, in float64, nothing pooled."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from oracles.sparse_probing import ablate, largest, mean_difference, mean_over_tokens

FloatArray = NDArray[np.float64]


def score(before: float, after: float, best: float) -> float:
    if best - before < 0.001:
        return 0.0
    return (after - before) / (best - before)


def features(
    effective: FloatArray, decoder: FloatArray, w: FloatArray, rows: list[int], own: list[bool], n: int
) -> list[int]:
    """The n features with the largest effect on a probe, those without any left out."""
    difference = mean_difference(effective[rows], own)
    effect = np.array([abs(m * sum(d * w)) for m, d in zip(difference, decoder, strict=True)])
    return [i for i in largest(effect, n) if effect[i] > 0]


def subtrees(parent: list[int], features: list[int]) -> list[int]:
    """Some features, and all that are below one of them."""

    def above(feature: int) -> list[int]:
        return [] if parent[feature] < 0 else [parent[feature], *above(parent[feature])]

    return [i for i in range(len(parent)) if {i, *above(i)} & {*features}]


def accuracy(pooled: FloatArray, w: FloatArray, b: float, texts: list[int], answer: list[bool]) -> float:
    right = [(float(sum(pooled[t] * w)) + b > 0) == is_own for t, is_own in zip(texts, answer, strict=True)]
    return sum(right) / len(right)


def after_ablation(
    x: list[FloatArray],
    f: list[FloatArray],
    scale: list[FloatArray],
    decoder: FloatArray,
    removed: list[int],
    w: FloatArray,
    b: float,
    texts: list[int],
    answer: list[bool],
) -> float:
    return accuracy(mean_over_tokens(ablate(x, f, scale, decoder, removed)), w, b, texts, answer)
