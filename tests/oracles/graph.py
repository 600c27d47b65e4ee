"""Graphs of features and the numbers of their families, slow and in float64 (docs/spec/hierarchy.md#graph).

a: `[n, F]` values of the features on every token, with everything at or below the threshold set to 0.
An edge is a pair (parent, child).
"""

import math
from itertools import combinations

import numpy as np

from .pairs import FloatArray, cosine_of, score

Edges = list[tuple[int, int]]
FEW = 10  # correlations and ratios need so many tokens


# ---- the graph --------------------------------------------------------------------------------------------


def evidence(kind: str, a: FloatArray, p: int, c: int) -> float:
    """That p is above c."""
    if kind == "conditional":
        return score("coverage", a, p, c)
    if kind == "mcs":
        return score("mcs_correlation", a, p, c)
    total = sum(float(row[c]) for row in a)
    return sum(float(row[c]) for row in a if row[p] > 0) / total if total > 0 else 0.0


def implied(kind: str, a: FloatArray, above: float, below: float, min_count: int) -> Edges:
    n = [int((a[:, i] > 0).sum()) for i in range(a.shape[1])]
    frequent = [i for i in range(a.shape[1]) if n[i] >= min_count]
    return [
        (p, c)
        for c in frequent
        for p in frequent
        if p != c and evidence(kind, a, p, c) > above and evidence(kind, a, c, p) < below
    ]


def strongest(kind: str, a: FloatArray, edges: Edges) -> Edges:
    """One parent for each child."""
    n = [int((a[:, i] > 0).sum()) for i in range(a.shape[1])]
    best: dict[int, tuple[float, int, int]] = {}
    for p, c in edges:
        rank = (-float(np.float32(evidence(kind, a, p, c))), n[p], p)
        best[c] = min(best.get(c, rank), rank)
    return sorted((rank[2], c) for c, rank in best.items())


def reaches(edges: Edges, start: int, end: int) -> bool:
    """Whether a path of one or more edges leads from one feature down to another."""
    seen: set[int] = set()
    todo = [start]
    while todo:
        at = todo.pop()
        for p, c in edges:
            if p == at and c not in seen:
                seen.add(c)
                todo.append(c)
    return end in seen


def without_cycles(edges: Edges) -> Edges:
    return [(p, c) for p, c in edges if not reaches(edges, c, p)]


def reduced(edges: Edges) -> Edges:
    return [
        (p, c)
        for p, c in edges
        if not any(q != c and reaches(edges, q, c) for other, q in edges if other == p)
    ]


def pruned(edges: Edges, d_sae: int, max_children: float, min_descendants: int) -> Edges:
    crowded = [i for i in range(d_sae) if len([c for p, c in edges if p == i]) > max_children * d_sae]
    left = [(p, c) for p, c in edges if p not in crowded and c not in crowded]
    topmost = [i for i in range(d_sae) if not any(c == i for _, c in left)]
    stay: set[int] = set()
    for root in topmost:
        below = [i for i in range(d_sae) if reaches(left, root, i)]
        if len(below) >= min_descendants:
            stay |= {root, *below}
    return [(p, c) for p, c in left if p in stay and c in stay]


def depth(edges: Edges, feature: int) -> int:
    """Edges on the longest path from above."""
    return max((1 + depth(edges, p) for p, c in edges if c == feature), default=0)


# ---- the numbers of edges and families --------------------------------------------------------------------


def pearson(x: FloatArray, y: FloatArray) -> float:
    if len(x) < FEW or len(set(x)) == 1 or len(set(y)) == 1:
        return math.nan
    return cosine_of(list(x - x.mean()), list(y - y.mean()))


def ranks(x: FloatArray) -> FloatArray:
    """Equal values share the mean of their ranks."""
    return np.array([sum(float(v < u) + 0.5 * float(v == u) for v in x) for u in x])


def spearman(x: FloatArray, y: FloatArray) -> float:
    return pearson(ranks(x), ranks(y))


def of_edge(a: FloatArray, p: int, c: int, children: list[int]) -> dict[str, float]:
    """children: all those of p, of which c is one."""
    n_c, n_p = int((a[:, c] > 0).sum()), int((a[:, p] > 0).sum())
    both = (a[:, p] > 0) & (a[:, c] > 0)
    alone = (a[:, p] > 0) & ~(a[:, children] > 0).any(1)
    x, y = a[both, p], a[both, c]
    enough = len(x) >= FEW
    taken = enough and alone.sum() >= FEW
    return {
        "p_parent_child": both.sum() / n_c,
        "p_parent_child_weighted": evidence("weighted", a, p, c),
        "child_rate": n_c / n_p,
        "mcs": score("mcs_correlation", a, p, c),
        "pearson": pearson(x, y),
        "spearman": spearman(x, y),
        "parent_larger": float((x > y).mean()) if enough else math.nan,
        "child_parent_ratio": float((y / x).mean()) if enough else math.nan,
        "soft_absorption": 1 - float(x.mean() / a[alone, p].mean()) if taken else math.nan,
    }


def of_family(a: FloatArray, p: int, children: list[int]) -> dict[str, float]:
    on = a[:, p] > 0
    below = a[:, children]
    some = (below > 0).any(1)
    found = {
        "coverage_by_children": float((some & on).sum() / on.sum()),
        "children_active": float((below[on] > 0).sum(1).mean()),
        "children_active_share": float((below[on] > 0).mean()),
    }
    for name, value in (("sum", below.sum(1)), ("max", below.max(1))):
        found[f"pearson_{name}"] = pearson(a[some, p], value[some])
        found[f"spearman_{name}"] = spearman(a[some, p], value[some])
    return found


def mean_cosine(rows: FloatArray) -> float:
    """The mean over pairs of rows."""
    return float(np.mean([cosine_of(list(x), list(y)) for x, y in combinations(rows, 2)]))


def most_alike(rows: FloatArray, seed: int, size: int) -> float:
    """The mean cosine of a group: one row and those nearest to it."""
    others = [i for i in range(len(rows)) if i != seed]
    others.sort(key=lambda i: -cosine_of(list(rows[seed]), list(rows[i])))
    return mean_cosine(rows[[seed, *others[: size - 1]]])
