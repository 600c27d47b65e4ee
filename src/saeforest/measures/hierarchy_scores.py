"""The values of the measure `hierarchy`, computed from its scored pairs: ratios of hits, curves and a list of pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from .bootstrap import Estimate, FloatArray, Formula, estimate
from .hierarchy_pairs import PROCEDURES, HierarchyConfig, Procedure, Sample, ScoredPairs
from .record import EdgeScores

#: Lower limits of the strata by how often a child fires; each ends where the next begins.
STRATA = (20, 50, 100, 300, 1000)
#: Values that are also given by stratum: a procedure, and whether hits are those by LDA.
_STRATIFIED: dict[str, tuple[Procedure, bool]] = {
    "tree": ("tree", False),
    "mcs": ("mcs", False),
    "mcs_unconditional": ("mcs_unconditional", False),
    "lda_tree": ("tree", True),
    "lda_mcs_unconditional": ("mcs_unconditional", True),
}
# Points of the precision curve per factor of 10 in n, the same n for every SAE.
_CURVE_POINTS = 6


class ByParent:
    """Sums over a procedure's pairs for each sampled parent: `[u]` each."""

    def __init__(self, scored: ScoredPairs, rows: NDArray[np.int64], n_parents: int) -> None:
        def total(values: NDArray[Any]) -> FloatArray:
            return np.bincount(scored.parent[rows], values[rows], n_parents).astype(np.float64)

        self.pairs = total(np.ones_like(scored.hit))
        self.hits, self.lda_hits, self.mean_hits = map(total, (scored.hit, scored.lda_hit, scored.mean_hit))
        self.s_res = total(scored.near.score.numpy())
        self.has = (self.pairs > 0).astype(np.float64)
        self.share = self.hits / np.maximum(self.pairs, 1)


def edge_scores_of(scored: ScoredPairs) -> dict[str, EdgeScores]:
    """Scores of the forest's edges among the pairs, each edge once however many seeds drew its parent.

    For a share of hits, the score is the larger rank of the two rows, with a minus: the hits are those above a limit.
    """
    of = {
        "tree": ("tree", -scored.rank),
        "tree_unconditional": ("tree_unconditional", -scored.rank),
        "lda_tree": ("tree", -scored.lda_rank),
        "mean_tree": ("tree", -scored.mean_rank),
        "s_res_tree": ("tree", scored.near.score.numpy()),
    }
    return {
        name: EdgeScores(
            torch.from_numpy(scored.child[rows := scored.rows[procedure]]),
            torch.from_numpy(score[rows].astype(np.float64)),
        )
        for name, (procedure, score) in of.items()
    }


class Ratio(NamedTuple):
    """A value that is sum(of) / sum(by) over the drawn parents: `[u]` each, one entry for each sampled parent."""

    of: FloatArray
    by: FloatArray


def ratios_of(table: Mapping[str, ByParent], may_have_children: bool) -> dict[str, Ratio]:
    """All values that are ratios of sums, by name.

    may_have_children: whether the forest has edges and any feature can be a child; if not, `tree_parents_share` is 0/0.
    """
    tree, mcs, plain = table["tree"], table["mcs"], table["mcs_unconditional"]
    wide = table["tree_unconditional"]
    return {
        **{name: Ratio(table[name].hits, table[name].pairs) for name in PROCEDURES},
        "tree_parents_share": Ratio(wide.has, np.full_like(wide.has, may_have_children)),
        "mean_over_parents_tree": Ratio(tree.share, tree.has),
        "mean_over_parents_mcs": Ratio(mcs.share, mcs.has),
        "mean_over_parents_mcs_unconditional": Ratio(plain.share, plain.has),
        "s_res_tree": Ratio(tree.s_res, tree.pairs),
        "s_res_mcs_unconditional": Ratio(plain.s_res, plain.pairs),
        "lda_tree": Ratio(tree.lda_hits, tree.pairs),
        "lda_mcs_unconditional": Ratio(plain.lda_hits, plain.pairs),
        "mean_tree": Ratio(tree.mean_hits, tree.pairs),
        "mean_mcs_unconditional": Ratio(plain.mean_hits, plain.pairs),
    }


def _of_seeds(sample: Sample, ratio: Ratio, weights: FloatArray) -> FloatArray:
    """The ratio for each seed, `[b, seeds]`; NaN where it is 0/0."""
    times = sample.times.double().numpy()
    return weights @ (times * ratio.of).T / (weights @ (times * ratio.by).T)


def by_seed(sample: Sample, ratio: Ratio) -> list[float | None]:
    """The measured ratio for each seed; None where it is 0/0."""
    with np.errstate(invalid="ignore"):
        found = _of_seeds(sample, ratio, np.ones((1, len(sample.parents))))[0]
    return [float(score) if np.isfinite(score) else None for score in found]


def _by_stratum(sample: Sample, scored: ScoredPairs, name: str) -> Ratio:
    """Hits and pairs of each sampled parent in each stratum, `[u, strata]`, over all seeds."""
    procedure, by_lda = _STRATIFIED[name]
    rows = scored.rows[procedure]
    stratum = np.searchsorted(STRATA, scored.n[rows], side="right") - 1
    rows, stratum = rows[stratum >= 0], stratum[stratum >= 0]
    shape = (len(sample.parents), len(STRATA))
    cell = scored.parent[rows] * len(STRATA) + stratum
    times = sample.times.sum(0).double().numpy()[:, None]

    def total(of: FloatArray) -> FloatArray:
        summed = np.bincount(cell, of[rows], minlength=shape[0] * shape[1]).astype(np.float64)
        return times * summed.reshape(shape)

    return Ratio(total(scored.lda_hit if by_lda else scored.hit), total(np.ones_like(scored.hit)))


def strata_of(sample: Sample, scored: ScoredPairs) -> dict[str, list[dict[str, Any]]]:
    """The share of hits by how often the child fires, pooled over seeds, for strata that have pairs."""
    found: dict[str, list[dict[str, Any]]] = {}
    ends = (*STRATA[1:], None)
    for name in _STRATIFIED:
        hits, pairs = (of.sum(0) for of in _by_stratum(sample, scored, name))
        found[name] = [
            {"from": first, "below": end, "pairs": int(pairs[i]), "score": float(hits[i] / pairs[i])}
            for i, (first, end) in enumerate(zip(STRATA, ends, strict=True))
            if pairs[i]
        ]
    return found


def left_out_of(sample: Sample, scored: ScoredPairs) -> dict[str, int]:
    """How many pairs are in no stratum, because their child fires too rarely, pooled over seeds as in `strata_of`."""
    times = sample.times.sum(0).numpy()
    found: dict[str, int] = {}
    for name, (procedure, _) in _STRATIFIED.items():
        rows = scored.rows[procedure]
        found[name] = int(times[scored.parent[rows][scored.n[rows] < STRATA[0]]].sum())
    return found


def formula_of(
    sample: Sample, scored: ScoredPairs, ratios: Mapping[str, Ratio], error_rate_of: Procedure, min_count: int
) -> Formula:
    """All values of the record as a formula of the weights of sampled parents (see `bootstrap`).

    min_count: how often a child must fire, which decides the strata that `..._stratified` averages.
    """
    strata = {name: _by_stratum(sample, scored, name) for name in _STRATIFIED}
    used = [end > min_count for end in (*STRATA[1:], np.inf)]

    def formula(weights: FloatArray) -> dict[str, FloatArray]:
        found: dict[str, FloatArray] = {}
        for name, ratio in ratios.items():
            by_seed = _of_seeds(sample, ratio, weights)
            defined = np.isfinite(by_seed)
            found[name] = np.where(defined, by_seed, 0).sum(1) / defined.sum(1)
        for name, of in strata.items():
            found[f"{name}_stratified"] = (weights @ of.of / (weights @ of.by))[:, used].mean(1)
        found["error_rate"] = 1 - found[error_rate_of]
        return found

    return formula


def _best_first(scored: ScoredPairs, procedure: Procedure) -> NDArray[np.int64]:
    rows = scored.rows[procedure]
    keys = (scored.child[rows], scored.parent[rows], -scored.n[rows], -scored.coverage[rows])
    return rows[np.lexsort(keys)]


def precision_curve(scored: ScoredPairs, procedure: Procedure) -> list[list[float]]:
    """Entries [n, precision of the best n pairs], with n up to the number of all pairs."""
    hits = scored.hit[_best_first(scored, procedure)].cumsum()
    steps = range(int(_CURVE_POINTS * np.log10(max(len(hits), 1))) + 1)
    points = {round(10 ** (step / _CURVE_POINTS)) for step in steps} | {len(hits)}
    return [[n, float(hits[n - 1] / n)] for n in sorted(points) if 0 < n <= len(hits)]


def counts_of(sample: Sample, of: ByParent, seeds: int | None = None) -> dict[str, list[int]]:
    """Numbers of pairs, and of parents with pairs, for each seed, or for the first `seeds` of them."""
    times = sample.times[:seeds].numpy()
    return {
        "pairs": (times @ of.pairs).astype(int).tolist(),
        "parents": (times @ of.has).astype(int).tolist(),
    }


def variants_of(
    sample: Sample, config: HierarchyConfig, table: Mapping[str, ByParent], units: str
) -> Estimate:
    """The paper's Figure 16: the score by each MCS variant, on the first seed's parents.

    units: name of these parents as resampled units.
    """
    first = sample.first
    once = Sample(sample.parents[first], sample.times[:1, first], sample.candidates)
    ratios = {name: Ratio(table[name].hits[first], table[name].pairs[first]) for name in config.variants}

    def score(weights: FloatArray) -> dict[str, FloatArray]:
        return {f"variant_{name}": _of_seeds(once, ratio, weights)[:, 0] for name, ratio in ratios.items()}

    return estimate(score, len(first), units)


def rank_curve_of(scored: ScoredPairs, config: HierarchyConfig) -> dict[str, Any]:
    """The paper's Figure 13: means by a child's rank in MCS, over parents with at least `rank_curve` children."""
    rows = scored.rows["rank_curve"].reshape(-1, max(config.rank_curve, 1))
    if not len(rows):
        return {"parents": 0, "cos_parent": [], "hit": []}
    return {
        "parents": len(rows),
        "cos_parent": scored.near.cos_parent.numpy()[rows].mean(0, dtype=np.float64).tolist(),
        "hit": scored.hit[rows].mean(0).tolist(),
    }


def pair_list(sample: Sample, scored: ScoredPairs) -> list[dict[str, Any]]:
    """The pairs of the first seed's parents, as entries of the record."""
    first = set(sample.first)
    procedures: Sequence[Procedure] = ("tree", "mcs_unconditional")
    return [
        {
            "procedure": procedure,
            "parent": int(sample.parents[scored.parent[row]]),
            "child": int(scored.child[row]),
            "n": int(scored.n[row]),
            "coverage": float(scored.coverage[row]),
            "cos_parent": float(scored.near.cos_parent[row]),
            "cos_child": float(scored.near.cos_child[row]),
            "rank_parent": int(scored.near.rank_parent[row]),
            "rank_child": int(scored.near.rank_child[row]),
            "s_res": float(scored.near.score[row]),
        }
        for procedure in procedures
        for row in scored.rows[procedure]
        if int(scored.parent[row]) in first
    ]
