"""How many children each parent gets, and which dead children move (Tree SAE, Algorithms 1 and 2).

The candidate parents of a layer have the indices `0..m-1` for the features of earlier layers, and `m` for the root.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..structure.forest import ROOT

Growth = Literal["double", "add"]
Count = Literal["all", "living"]


def greedy_allocation(
    capacity: Float[Tensor, "m"], eligible: Bool[Tensor, "m"], n_children: int, *, min_last: int = 0
) -> Int[Tensor, "m"]:
    """Numbers of children that maximize the smallest payoff `capacity[p] / children[p]` (Algorithm 1, Eq. 10).

    Children are given out one at a time, to the parent that would have the largest payoff with one more child; ties go
    to the lower index. Parents that are not eligible or have no capacity get none. If no parent has capacity, the
    children are spread evenly over the eligible parents. `min_last` children are given to the last candidate (the
    root) beforehand. Runs in O((m + n) log m) (docs/spec/tree-sae.md#eq-10).
    """
    children = torch.zeros(len(capacity), dtype=torch.int64)
    children[-1] = min(min_last, n_children)
    left = n_children - int(children[-1])
    heap = [
        (-c / (k + 1), p)
        for p, (c, k, ok) in enumerate(
            zip(capacity.tolist(), children.tolist(), eligible.tolist(), strict=True)
        )
        if ok and c > 0
    ]
    if not heap:
        return _spread_evenly(children, eligible, left)
    heapq.heapify(heap)
    capacities, counts = capacity.tolist(), children.tolist()
    for _ in range(left):
        p = heap[0][1]
        counts[p] += 1
        heapq.heapreplace(heap, (-capacities[p] / (counts[p] + 1), p))
    return torch.tensor(counts)


def _spread_evenly(children: Int[Tensor, "m"], eligible: Bool[Tensor, "m"], n: int) -> Int[Tensor, "m"]:
    receivers = eligible.nonzero().flatten()
    share, remainder = divmod(n, len(receivers))
    children[receivers] += share
    children[receivers[:remainder]] += 1
    return children


def reassign_dead(
    parent: Int[Tensor, "s"], dead: Bool[Tensor, "s"], quota: Int[Tensor, "m"], *, count: Count = "all"
) -> Int[Tensor, "s"]:
    """New parents for the features of one layer: parents above their quota give dead children to parents below it.

    In `parent` the root is -1; `quota[-1]` is the root's quota. Donors and receivers are matched in index order, the
    root last, and children that are alive never move (Algorithm 2; docs/spec/tree-sae.md#reassignment). With
    `count="living"`, as in the paper's text, only living children count toward the quota, and every dead child may be
    moved.
    """
    root = len(quota) - 1
    index = torch.where(parent == ROOT, root, parent)
    counted = index if count == "all" else index[~dead]
    excess = torch.bincount(counted, minlength=root + 1) - quota

    # Rank every dead child among the dead children of its parent: the first `excess` of them may move.
    candidates = dead.nonzero().flatten()
    candidates = candidates[index[candidates].argsort(stable=True)]
    donors = index[candidates]
    first = torch.searchsorted(donors, donors)
    surplus = excess[donors] if count == "all" else len(donors)
    movers = candidates[torch.arange(len(donors)) - first < surplus]

    slots = torch.repeat_interleave(torch.arange(root + 1), (-excess).clamp(min=0))
    n = min(len(movers), len(slots))
    moved = index.clone()
    moved[movers[:n]] = slots[:n]
    return torch.where(moved == root, ROOT, moved)


class ReallocationSteps:
    """The steps (counted from 1) after which to reallocate: `first`, then at growing intervals, all before `until`.

    After each step the interval doubles (growth "double", the authors' code) or grows by two steps ("add", the other
    reading of the paper), up to `cap`. With `first=0` there are none (docs/spec/tree-sae.md#schedule).

    Steps are computed on demand, so the run may have any length.
    """

    def __init__(self, first: int, growth: Growth, cap: int, until: int) -> None:
        self._first, self._growth, self._cap, self._until = first, growth, cap, until
        # The position of the search: the previous member, the current one, and the interval between them.
        self._before, self._step, self._interval = 0, first, first

    def __iter__(self) -> Iterator[int]:
        step, interval = self._first, self._first
        while 0 < step < self._until:
            yield step
            interval = self._longer(interval)
            step += interval

    def __contains__(self, step: int) -> bool:
        if self._first < 1 or step >= self._until:
            return False
        if step <= self._before:
            self._before, self._step, self._interval = 0, self._first, self._first
        while self._step < step:
            interval = self._longer(self._interval)
            # Once the interval has stopped growing, jump over all the members in between at once.
            n = max((step - self._step) // interval, 1) if interval == self._interval else 1
            self._step, self._interval = self._step + n * interval, interval
            self._before = self._step - interval
        return self._step == step

    def _longer(self, interval: int) -> int:
        return min(interval * 2 if self._growth == "double" else interval + 2, self._cap)
