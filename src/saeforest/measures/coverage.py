"""Activation coverage of the forest's edges: the fraction of a child's tokens on which its parent fires too.

    S_cov(p, c) = #{t: f_p(t) > threshold and f_c(t) > threshold} / #{t: f_c(t) > threshold}

Edges from the root, and children that never fired, have no coverage and are left out. In a Tree SAE every edge has
coverage 1 by construction (Eq. 6).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from ..errors import require
from ..saes import SAE
from ..structure.forest import Forest
from .bootstrap import FloatArray, estimate, interval_method
from .measure import EvalBatch, Measure
from .record import Record, undefined
from .spec import Streaming

_WORST = 10


class Coverage(Measure):
    """Coverage of each edge, and the minimum and mean over edges."""

    def __init__(self, sae: SAE, forest: Forest) -> None:
        self.threshold = sae.config.activation_threshold
        self.forest = forest
        self.parent = forest.parent.to(sae.device)
        self.gated = sae.gated and torch.equal(sae.forest.parent, forest.parent)
        self.fired = torch.zeros(forest.d_sae, dtype=torch.int64)
        self.with_parent = torch.zeros(forest.d_sae, dtype=torch.int64)
        self.tokens = 0

    def update(self, batch: EvalBatch) -> None:
        d_sae = self.forest.d_sae
        both = batch.code.ids[batch.code.with_parent(self.parent, self.threshold)]
        self.with_parent += torch.bincount(both, minlength=d_sae).cpu()
        self.fired += batch.code.fired(d_sae, self.threshold).cpu()
        self.tokens += len(batch)

    def record(self, settings: Mapping[str, Any]) -> Record:
        parent, child = self.forest.edges
        measured = self.fired[child] > 0
        parent, child = parent[measured], child[measured]
        coverage = (self.with_parent[child].double() / self.fired[child].double()).numpy()
        require(bool(((coverage >= 0) & (coverage <= 1)).all()), "coverage", "0 <= S_cov <= 1")
        if self.gated:
            require(bool((coverage == 1).all()), "coverage", "S_cov = 1 on every edge of a Tree SAE")

        # Children share their parent's firings, so parents are resampled, each with all its children.
        families, family = np.unique(parent.numpy(), return_inverse=True)
        total, edges = np.bincount(family, coverage), np.bincount(family)

        def mean(weights: FloatArray) -> dict[str, FloatArray]:
            return {"mean": weights @ total / (weights @ edges)}

        found = estimate(mean, len(families))
        value = {
            "min": float(coverage.min()) if len(coverage) else None,
            "mean": found.value["mean"],
            "edges_measured": int(measured.sum()),
            "edges_unmeasured": int((~measured).sum()),
        }
        if len(measured):
            why = "the child of every edge never fired on the measured tokens"
        else:
            why = "the forest has no edges: every feature hangs from the root"
        worst = [e for e in np.argsort(coverage, kind="stable")[:_WORST] if coverage[e] < 1]
        return Record(
            "coverage",
            value,
            {**dict.fromkeys(value), **found.interval},
            unit="fraction",
            tokens=self.tokens,
            settings={**settings, "interval_method": interval_method("parents") + "; min: none"},
            detail={
                "null": undefined(value, {"min": why, "mean": why}, self.tokens),
                "units": {"edges_measured": "edges", "edges_unmeasured": "edges"},
                "worst_edges": [
                    {
                        "parent": int(parent[e]),
                        "child": int(child[e]),
                        "coverage": float(coverage[e]),
                        "fired": int(self.fired[child[e]]),
                    }
                    for e in worst
                ],
            },
        )


SPEC = Streaming(
    name="coverage",
    needs=frozenset({"text", "forest"}),
    sets=("fast", "paper"),
    make=lambda subject, _config: Coverage(subject.sae, subject.forest),
)
