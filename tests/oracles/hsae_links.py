"""How the levels of an HSAE are linked, slow and in float64, with gradients derived by hand (docs/spec/hsae.md).

f [F]: the values of all features on one token; D [F,d]: decoder rows.
"""

import math
from dataclasses import dataclass

import numpy as np

from .allocation import ROOT, FloatArray, IntArray


def cosines(parents: FloatArray, children: FloatArray) -> FloatArray:
    """[P,C] cosines of the rows of parents [P,d] and children [C,d]; 0 where a row is zero."""
    result = np.zeros((len(parents), len(children)))
    for i, a in enumerate(parents):
        for j, b in enumerate(children):
            norms = math.sqrt(float(a @ a)) * math.sqrt(float(b @ b))
            result[i, j] = (a @ b) / norms if norms > 0.0 else 0.0
    return result


def assign(similarity: FloatArray, unassigned: float, max_children: int | None = None) -> IntArray:
    """[C]: the parent (0 .. P-1, or -1) of each child of one pair of levels, from similarity [P,C].

    A child that finds every parent closed has no accepted pair. It has no parent, counts as less similar
    than all others, and so is among the share of unassigned children. Pairs with similarity -inf are forbidden.
    """
    n_parents, n_children = similarity.shape
    parent = np.full(n_children, ROOT, dtype=np.int64)
    best = np.full(n_children, -np.inf)
    if max_children is None:
        for j in range(n_children):
            for i in range(n_parents):
                if similarity[i, j] > best[j]:  # strictly: a tie stays with the lowest parent
                    best[j] = similarity[i, j]
                    parent[j] = i
    else:
        pairs = [
            (-similarity[i, j], j, i)
            for i in range(n_parents)
            for j in range(n_children)
            if similarity[i, j] > -np.inf
        ]
        room = [max_children] * n_parents
        for negative, j, i in sorted(pairs):
            if parent[j] == ROOT and room[i] > 0:
                parent[j] = i
                best[j] = -negative
                room[i] -= 1
    lowest = sorted(range(n_children), key=lambda j: (best[j], j))
    for j in lowest[: math.floor(unassigned * n_children)]:
        parent[j] = ROOT
    return parent


# ---- what children write in the place of their parent -----------------------------------------------------


@dataclass
class Gradients:
    """Of one token: by the values, f [F], and by the decoder rows, D [F,d]."""

    f: FloatArray
    D: FloatArray


def stand_in(f: FloatArray, D: FloatArray, i: int, children: list[int], projected: bool) -> FloatArray:
    """[d]: the sum of the children's vectors, or of their projections on the row of feature i."""
    total = np.zeros(D.shape[1])
    for j in children:
        total += f[j] * (D[j] @ D[i]) * D[i] if projected else f[j] * D[j]
    return total


def through_stand_in(
    f: FloatArray, D: FloatArray, i: int, children: list[int], projected: bool, grad: FloatArray
) -> Gradients:
    """The gradients of what has the gradient grad [d] by the stand-in."""
    result = Gradients(np.zeros_like(f), np.zeros_like(D))
    for j in children:
        if projected:
            along = D[j] @ D[i]
            result.f[j] += along * (D[i] @ grad)
            result.D[j] += f[j] * (D[i] @ grad) * D[i]
            result.D[i] += f[j] * ((D[i] @ grad) * D[j] + along * grad)
        else:
            result.f[j] += D[j] @ grad
            result.D[j] += f[j] * grad
    return result


def constraint(
    f: FloatArray, D: FloatArray, i: int, children: list[int], projected: bool
) -> tuple[float, Gradients]:
    """The squared distance of feature i to its children on one token, and its gradients.

    Either between the vector f_i D_i and the sum of the children's, or between f_i and what they write along D_i.
    """
    result = Gradients(np.zeros_like(f), np.zeros_like(D))
    if projected:
        gap = f[i] - sum(f[j] * (D[j] @ D[i]) for j in children)
        result.f[i] += 2.0 * gap
        for j in children:
            result.f[j] -= 2.0 * gap * (D[j] @ D[i])
            result.D[j] -= 2.0 * gap * f[j] * D[i]
            result.D[i] -= 2.0 * gap * f[j] * D[j]
        return float(gap**2), result
    vector = f[i] * D[i] - stand_in(f, D, i, children, False)
    result.f[i] += D[i] @ (2.0 * vector)
    result.D[i] += f[i] * 2.0 * vector
    for j in children:
        result.f[j] -= D[j] @ (2.0 * vector)
        result.D[j] -= f[j] * 2.0 * vector
    return float((vector**2).sum()), result
