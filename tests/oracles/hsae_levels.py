"""How well the levels of an HSAE agree, slow and by definition (docs/spec/hierarchy.md#levels)."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from .allocation import ROOT, BoolArray

Pair = tuple[int, int, float]


def hamming(
    active: BoolArray, parent: ArrayLike, sizes: Sequence[int], all_parents: bool = True
) -> list[float]:
    """Errors per token of each level but the last, when a feature is predicted by whether any child is active.

    active [n,F]; parent [F]. A feature without children is predicted inactive, or, without ``all_parents``,
    left out. A level that has no parent at all then has 0 errors.
    """
    parents = np.array(parent, dtype=np.int64)
    n = len(active)
    result: list[float] = []
    start = 0
    for size in sizes[:-1]:
        errors = 0
        for i in range(start, start + size):
            children = [j for j in range(len(parents)) if parents[j] == i]
            if not children and not all_parents:
                continue
            for t in range(n):
                predicted = any(bool(active[t, j]) for j in children)
                errors += int(predicted != bool(active[t, i]))
        result.append(errors / n)
        start += size
    return result


def conditional(active: BoolArray, parent: ArrayLike, sizes: Sequence[int]) -> tuple[list[Pair], list[Pair]]:
    """P(parent|child) and P(child|parent) of the assigned pairs, each as (parent, child, value) by child.

    active [n,F]; parent [F]. A pair whose condition never holds is left out of that list.
    """
    parents = np.array(parent, dtype=np.int64)
    parent_given_child: list[Pair] = []
    child_given_parent: list[Pair] = []
    for j in range(sizes[0], sum(sizes)):
        i = int(parents[j])
        if i == ROOT:
            continue
        n_both = sum(1 for row in active if row[i] and row[j])
        n_child = sum(1 for row in active if row[j])
        n_parent = sum(1 for row in active if row[i])
        if n_child > 0:
            parent_given_child.append((i, j, n_both / n_child))
        if n_parent > 0:
            child_given_parent.append((i, j, n_both / n_parent))
    return parent_given_child, child_given_parent
