"""Activation coverage of the forest's edges, with the gate and without it (docs/spec/hierarchy.md#eq-4).

With the gate: the fraction of a child's tokens on which its parent fires too,

    S_cov(p, c) = #{t: f_p(t) > threshold and f_c(t) > threshold} / #{t: f_c(t) > threshold}

In a Tree SAE every edge has coverage 1 by construction (Eq. 6), so this says nothing about what was learned. Without
the gate, where U_c are the tokens on which the child's own detector is on (`own_detectors`):

    ungated(p, c) = P(p active in its own right | U_c)
    lift(p, c)    = log2 of (n + P(p)) / (|U_c| + 1) / P(p),   n = #{t in U_c: p active},  P(p) = share of all tokens

The lift compares with the parent's own frequency. The added token, on which the parent is active as often as anywhere,
keeps it finite, and near 0 for children that say little.

Edges from the root have no coverage. Children that never fired have none either, and those that fired on fewer than
`min_count` tokens have none without the gate.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64, Int
from torch import Tensor

from ..errors import InputError, require
from .bootstrap import FloatArray, estimate, interval_method, units_of_sae
from .columns import EDGES, Column
from .own_detectors import detector_thresholds, own_detectors, own_detectors_memory, without_gate
from .record import EdgeScores, Record, undefined
from .spec import Study
from .subject import Subject

_WORST = 10
_UNGATED = ("ungated", "lift", "ungated_above_half", "ungated_above_nine_tenths")


@dataclass(frozen=True)
class CoverageConfig:
    """Which edges are measured without the gate.

    Raises InputError for a value out of its range.
    """

    min_count: int = 20
    """Minimum number of tokens that a child must fire on to be measured without the gate. The threshold of its
    detector is the median of its values there."""

    def __post_init__(self) -> None:
        if self.min_count < 2:
            raise InputError(f"coverage.min_count = {self.min_count}: expected 2 or more")


def coverage(subject: Subject, config: CoverageConfig) -> Record:
    """The record "coverage"."""
    forest, pairs, tokens = subject.forest, subject.pairs, len(subject.rows)
    fired = pairs.marginals.n
    edges = forest.edges
    parent, child = edges[:, fired[edges[1]] > 0]
    covered = (pairs.together(parent, child).double() / fired[child].double()).numpy()
    require(bool(((covered >= 0) & (covered <= 1)).all()), "coverage", "0 <= S_cov <= 1")
    if subject.sae.gated and torch.equal(subject.sae.forest.parent, forest.parent):
        require(bool((covered == 1).all()), "coverage", "S_cov = 1 on every edge of a Tree SAE")

    alone = _without_gate(subject, parent, child, config)
    measured = alone["ungated"].isfinite().numpy()
    # Children share their parent's firings, so parents are resampled, each with all its children.
    families, family = np.unique(parent.numpy(), return_inverse=True)
    total, n_edges = np.bincount(family, covered), np.bincount(family)
    ungated_edges = np.bincount(family, measured)
    totals = {n: np.bincount(family, np.where(measured, column, 0)) for n, column in alone.items()}

    def means(weights: FloatArray) -> dict[str, FloatArray]:
        without = {name: weights @ column / (weights @ ungated_edges) for name, column in totals.items()}
        return {"mean": weights @ total / (weights @ n_edges), **without}

    found = estimate(means, len(families), units_of_sae("parents", subject.sae, families))
    value = {
        "min": float(covered.min()) if len(covered) else None,
        "mean": found.value["mean"],
        "edges_measured": len(child),
        "edges_unmeasured": edges.shape[1] - len(child),
        **{name: found.value[name] for name in _UNGATED},
        "edges_ungated": int(measured.sum()),
    }
    scores = {"mean": EdgeScores(child, torch.from_numpy(covered))}
    scores |= {n: EdgeScores(child[measured], alone[n][measured]) for n in ("ungated", "lift")}
    worst = [e for e in np.argsort(covered, kind="stable")[:_WORST] if covered[e] < 1]
    method = f"{interval_method('parents')}; min, edges_...: none"
    return Record(
        "coverage",
        value,
        {**dict.fromkeys(value), **found.interval},
        unit="fraction",
        tokens=tokens,
        settings={**subject.settings, "config": asdict(config), "interval_method": method},
        detail={
            "null": undefined(value, _why(subject, config, value), tokens),
            "units": {"lift": "log2", **{name: "edges" for name in value if name.startswith("edges_")}},
            "ungated_by_layer": _by_layer(subject, child, alone),
            "lift_median": float(np.median(alone["lift"][measured])) if measured.any() else None,
            "worst_edges": [
                {
                    "parent": int(parent[e]),
                    "child": int(child[e]),
                    "coverage": float(covered[e]),
                    "fired": int(fired[child[e]]),
                }
                for e in worst
            ],
        },
        replicates=found.replicates,
        edge_scores=scores,
    )


def _without_gate(
    subject: Subject, parent: Int[Tensor, "e"], child: Int[Tensor, "e"], config: CoverageConfig
) -> dict[str, Float64[Tensor, "e"]]:
    """The values of each edge without the gate; NaN if its child fires too rarely, or its detector is never on."""
    columns = {name: torch.full((len(child),), torch.nan, dtype=torch.float64) for name in _UNGATED}
    above = detector_thresholds(subject.pairs, child, config.min_count)
    frequent = above.isfinite().nonzero().flatten()
    if not len(frequent):
        return columns
    parent, child = parent[frequent], child[frequent]
    on, with_parent, active = own_detectors(subject.sae, subject.x, parent, child, above[frequent])
    base = active[parent].double() / len(subject.x)
    ungated, lift = without_gate(on, with_parent, base)
    found = (ungated, lift, ungated > 0.5, ungated > 0.9)
    for name, column in zip(_UNGATED, found, strict=True):
        columns[name][frequent] = torch.where(on > 0, column.double(), torch.nan)
    return columns


def _by_layer(
    subject: Subject, child: Int[Tensor, "e"], alone: dict[str, Float64[Tensor, "e"]]
) -> list[dict[str, Any]]:
    """The means without the gate by the layer of the child; in a forest without layers, by its number of ancestors."""
    forest = subject.forest
    layer = forest.level[child]
    measured = alone["ungated"].isfinite()
    listed = []
    for i in layer[measured].unique().tolist():
        mine = measured & (layer == i)
        means = {name: float(column[mine].mean()) for name, column in alone.items()}
        listed.append({"layer": i, "edges": int(mine.sum()), **means})
    return listed


def _why(subject: Subject, config: CoverageConfig, value: dict[str, float | None]) -> dict[str, str]:
    if not subject.forest.edges.shape[1]:
        return dict.fromkeys(value, "the forest has no edges: every feature hangs from the root")
    rare = f"no edge has a child that fired on {config.min_count} or more of the measured tokens"
    never = "the child of every edge never fired on the measured tokens"
    return {**dict.fromkeys(_UNGATED, rare), "min": never, "mean": never}


SPEC = Study(
    name="coverage",
    needs=frozenset({"firings", "activations", "forest"}),
    sets=("fast", "paper", "truth"),
    config=CoverageConfig,
    run=coverage,
    nulls=("mean", *_UNGATED),
    detail_of_nulls=("ungated_by_layer",),
    columns=(
        Column(EDGES, "ungated", "coverage without the gate", "↑"),
        Column(EDGES, "ungated_above_half", "edges above 0.5", "↑"),
        Column(EDGES, "lift", "lift, log2", "↑"),
    ),
    memory=lambda size: size.decoder + own_detectors_memory(size.d_sae, size.n_tokens),
    version=3,
)
