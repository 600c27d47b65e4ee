"""What a command line has printed, and what it has written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

#: What a finished run holds, and the measures of the set fast.
FINISHED = {"config.yaml", "model.json", "log.jsonl", "allocations.jsonl", "sae"}
FAST = {"reconstruction", "cross_entropy", "sparsity", "dead", "coverage", "cooccurrence"}


@dataclass
class Said:
    status: int
    out: str
    err: str


Call = Callable[..., Said]
