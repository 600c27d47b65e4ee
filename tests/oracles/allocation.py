"""Slow, obvious reference for the dynamic allocation of children to parents (Tree SAE, Algorithms 1 and 2).

Written from docs/spec/tree-sae.md#allocation alone. Every list of candidate parents of a layer that starts at feature
``start`` has ``start + 1`` entries: entry ``p < start`` is feature ``p``, the last entry is the root. In the
parent vector itself the root is written ``-1``.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

ROOT = -1

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]
Move = tuple[int, int, int]


def greedy_allocation(
    capacity: FloatArray | Sequence[float],
    eligible: BoolArray | Sequence[bool],
    n_children: int,
    min_root: int = 0,
) -> IntArray:
    """Quotas [P] for ``n_children`` children: each next child goes where its payoff is largest.

    The payoff of the next child of parent p, which has k so far, is ``capacity[p] / (k + 1)``; ties go to the
    lowest index. Parents that are ineligible or have no capacity get nothing. The root (last entry) starts
    with ``min_root`` children. Where no eligible parent has capacity, the children that are left are spread
    evenly over the eligible parents, the remainder over the lowest indices.

    capacity: [P] non-negative; eligible: [P].
    """
    capacities = [float(value) for value in capacity]
    allowed = [bool(value) for value in eligible]
    n_parents = len(capacities)
    if len(allowed) != n_parents:
        raise ValueError("capacity and eligible differ in length")
    if not any(allowed):
        raise ValueError("no parent is eligible")

    quota = [0] * n_parents
    quota[-1] = min(min_root, n_children)
    left = n_children - quota[-1]

    candidates = [p for p in range(n_parents) if allowed[p] and capacities[p] > 0.0]
    if not candidates:
        takers = [p for p in range(n_parents) if allowed[p]]
        for place, p in enumerate(takers):
            quota[p] += left // len(takers)
            if place < left % len(takers):
                quota[p] += 1
        return np.array(quota, dtype=np.int64)

    for _ in range(left):
        best = candidates[0]
        for p in candidates[1:]:
            if capacities[p] / (quota[p] + 1) > capacities[best] / (quota[best] + 1):
                best = p
        quota[best] += 1
    return np.array(quota, dtype=np.int64)


def min_payoff(capacity: FloatArray | Sequence[float], quota: IntArray | Sequence[int]) -> float:
    """Smallest ``capacity[p] / quota[p]`` over the parents that have children; infinite if none has.

    capacity: [P]; quota: [P].
    """
    payoffs = [float(c) / int(k) for c, k in zip(capacity, quota, strict=True) if int(k) > 0]
    return min(payoffs) if payoffs else float("inf")


def compositions(total: int, parts: int) -> Iterator[tuple[int, ...]]:
    """Every way to write ``total`` as an ordered sum of ``parts`` non-negative integers."""
    if parts == 0:
        if total == 0:
            yield ()
        return
    for first in range(total + 1):
        for rest in compositions(total - first, parts - 1):
            yield (first, *rest)


def brute_force_best_payoff(
    capacity: FloatArray | Sequence[float],
    eligible: BoolArray | Sequence[bool],
    n_children: int,
    min_root: int = 0,
) -> float:
    """Largest possible smallest payoff over all ways to share out ``n_children`` (equation 10).

    Only eligible parents may have children, apart from the ``min_root`` that the root must have. Tiny cases.

    capacity: [P]; eligible: [P].
    """
    must_have = min(min_root, n_children)
    best = -float("inf")
    for quota in compositions(n_children, len(capacity)):
        if quota[-1] < must_have:
            continue
        extra = [*quota[:-1], quota[-1] - must_have]
        if any(k > 0 and not ok for k, ok in zip(extra, eligible, strict=True)):
            continue
        best = max(best, min_payoff(capacity, quota))
    return best


def reallocate_layer(
    parent: IntArray,
    start: int,
    size: int,
    quota: IntArray | Sequence[int],
    dead: BoolArray | Sequence[bool],
    count: str = "all",
) -> tuple[IntArray, list[Move]]:
    """Move dead children of one layer from parents over their quota to parents under theirs.

    parent: [F], -1 for the root; the layer is the features ``start .. start + size - 1``;
    quota: [start + 1], the root last; dead: [F]; count: which children a quota is compared with. With "all", a
    parent gives away dead children only as far as it is over its quota. With "living" (5.6, 27), what a parent lacks
    is living children, and every dead child of the layer is there to be moved, its own parent included.
    Returns the new parent vector [F] and the moves (feature, old parent, new parent), -1 for the root, in the
    order in which they were made. The vector given is left as it is.
    """
    if len(quota) != start + 1:
        raise ValueError("one quota per earlier feature, then the root's")
    if count not in ("all", "living"):
        raise ValueError("count must be 'all' or 'living'")
    new_parent = np.array(parent, dtype=np.int64)
    children: list[list[int]] = [[] for _ in range(start + 1)]
    for feature in range(start, start + size):
        place = start if parent[feature] == ROOT else int(parent[feature])
        children[place].append(feature)

    movers: list[int] = []
    for place in range(start + 1):
        dead_children = [feature for feature in children[place] if dead[feature]]
        excess = len(children[place]) - int(quota[place])
        if count == "living":
            movers.extend(dead_children)
        elif excess > 0:
            movers.extend(dead_children[:excess])

    slots: list[int] = []
    for place in range(start + 1):
        counted = [feature for feature in children[place] if count == "all" or not dead[feature]]
        shortage = int(quota[place]) - len(counted)
        if shortage > 0:
            slots.extend([ROOT if place == start else place] * shortage)

    moves: list[Move] = []
    for feature, new in zip(movers, slots, strict=False):
        if new != int(parent[feature]):
            moves.append((feature, int(parent[feature]), new))
        new_parent[feature] = new
    return new_parent, moves


def schedule(first: int, growth: str, cap: int, until: int) -> list[int]:
    """Steps (counted from 1, not above ``until``) after which the children are reallocated.

    The first event is at step ``first``. After each event the interval, ``first`` to begin with, doubles
    ("double") or grows by two ("add"), but not beyond ``cap``.
    """
    if growth not in ("double", "add"):
        raise ValueError(f"unknown growth {growth!r}")
    if first < 1:
        raise ValueError("the first event is at step 1 or later")
    events: list[int] = []
    step = first
    interval = first
    while step <= until:
        events.append(step)
        interval = interval * 2 if growth == "double" else interval + 2
        interval = min(interval, cap)
        step += interval
    return events
