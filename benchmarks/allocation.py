"""How long one reallocation takes at the size of the paper's largest layer: median and spread of 5.

    .venv/bin/python benchmarks/allocation.py

24,576 children over 13,824 features and the root; then the dead half of them move to their new parents.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

from saeforest.saes.allocation import greedy_allocation, reassign_dead

PARENTS, CHILDREN, TIMES = 13_824, 24_576, 5


def main() -> None:
    rng = torch.Generator().manual_seed(0)
    capacity = torch.rand(PARENTS + 1, dtype=torch.float64, generator=rng)
    eligible = torch.ones(PARENTS + 1, dtype=torch.bool)
    parent = torch.randint(-1, PARENTS, (CHILDREN,), generator=rng)
    dead = torch.rand(CHILDREN, generator=rng) < 0.5
    quota = greedy_allocation(capacity, eligible, CHILDREN)
    report("greedy_allocation", lambda: greedy_allocation(capacity, eligible, CHILDREN))
    report("reassign_dead", lambda: reassign_dead(parent, dead, quota))
    report("reassign_dead, living", lambda: reassign_dead(parent, dead, quota, count="living"))


def report(name: str, work: Callable[[], object]) -> None:
    seconds: list[float] = []
    for _ in range(TIMES):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    spread = f"{min(seconds) * 1e3:.1f} to {max(seconds) * 1e3:.1f} ms"
    print(f"{name:24} median {statistics.median(seconds) * 1e3:6.1f} ms of {TIMES}, {spread}")


if __name__ == "__main__":
    main()
