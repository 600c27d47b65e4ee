"""The hierarchy metric and MCS by their definitions (docs/spec/hierarchy.md), slow and in float64.

a: `[n, F]` values of the features, with everything at or below the threshold set to 0; parent: of each feature.
"""

import math
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from . import pairs
from .pairs import FloatArray, score

VARIANTS = ("mcs_binary", "mcs_binary_scaled", "mcs_correlation", "mcs_correlation_scaled")
KINDS = ("coverage", *VARIANTS)


# ---- masked cosine similarity


def mcs(a: FloatArray, decoder: FloatArray, parent: list[int], min_count: int) -> dict[str, list[float]]:
    """The numbers that each value is the mean of."""
    n = firings(a)
    features = range(a.shape[1])
    children = [c for c in features if n[c] >= min_count]
    edges = [(parent[c], c) for c in children if parent[c] >= 0]
    found = {
        kind: [max(score(kind, a, p, c) for p in features if p != c) for c in children] for kind in KINDS
    }
    found |= {f"edges_{kind}": [score(kind, a, p, c) for p, c in edges] for kind in KINDS}
    covering = [(p, c) for c in features for p in features if p != c and n[c] and covers(a, p, c)]
    found["k_all_pairs_any"] = [k(decoder, p, c) for p, c in covering]
    found["k_all_pairs"] = [k(decoder, p, c) for p, c in covering if n[c] >= min_count]
    found["k_edges"] = [k(decoder, p, c) for p, c in edges if covers(a, p, c)]
    everyone = [(p, c) for c in children for p in features if p != c]
    for name, of in (("k_all_pairs_98", everyone), ("k_edges_98", edges)):
        found[name] = [k(decoder, p, c) for p, c in of if score("coverage", a, p, c) >= 0.98]
    return found


def firings(a: FloatArray) -> list[int]:
    return [sum(row[i] > 0 for row in a) for i in range(a.shape[1])]


def covers(a: FloatArray, p: int, c: int) -> bool:
    return all(row[p] > 0 for row in a if row[c] > 0)


def k(decoder: FloatArray, p: int, c: int) -> float:
    return abs(pairs.cosine_of(list(decoder[p]), list(decoder[c])))


# ---- the Hierarchy metric


@dataclass(frozen=True)
class Pair:
    parent: int
    child: int
    n: int
    coverage: float
    cos_parent: float
    cos_child: float
    rank_parent: int
    rank_child: int
    hit: bool
    lda_hit: bool
    mean_hit: bool
    rank: int
    lda_rank: int
    mean_rank: int


Chosen = dict[str, dict[int, list[Pair]]]
Strata = tuple[int, ...]


def choose(
    a: FloatArray,
    decoder: FloatArray,
    directions: FloatArray,
    lda: FloatArray,
    difference: FloatArray,
    parent: list[int],
    sampled: list[int],
    *,
    own_tree: bool,
    children: int,
    min_count: int,
    filter_before_topk: bool,
    top_before_filter: int,
    order: str,
    top: int,
    **_: Any,
) -> Chosen:
    """The judged pairs of each parent by each procedure, and by every variant of MCS."""
    n = firings(a)

    def usable(c: int) -> bool:
        return n[c] >= min_count and n[c] < len(a)

    def judge(p: int, c: int) -> Pair:
        ranks, cosines, hits = [], [], []
        for d in (directions[c], lda[c], difference[c]):
            cosine = [pairs.cosine_of(list(row), list(d)) for row in decoder]
            rank = [1 + sum(other > cosine[i] for other in cosine) for i in (p, c)]
            ranks.append(rank)
            cosines.append([cosine[p], cosine[c]])
            hits.append(max(rank) <= top)
        return Pair(p, c, n[c], score("coverage", a, p, c), *cosines[0], *ranks[0], *hits, *map(max, ranks))

    def by_mcs(kind: str, p: int) -> list[int]:
        least = min_count if filter_before_topk else 1
        scored = [(score(kind, a, p, c), c) for c in range(len(n)) if c != p and n[c] >= least]
        ranked = [c for s, c in sorted(scored, key=lambda x: (-np.float32(x[0]), -n[x[1]], x[1])) if s > 0]
        if not filter_before_topk:
            ranked = ranked[:top_before_filter]
        return [c for c in ranked if usable(c)]

    def in_tree(p: int) -> list[int]:
        found = [c for c in range(len(n)) if parent[c] == p and usable(c)]
        return sorted(found, key=lambda c: -n[c]) if order == "frequency" else found

    chosen: Chosen = {}
    for p in sampled:
        tree, ranked = in_tree(p), by_mcs("mcs_binary", p)
        equal = min(children, len(tree), len(ranked))
        lists = {
            "tree": tree[:equal],
            "mcs": ranked[: equal if own_tree else children],
            "mcs_unconditional": ranked[:children],
            "tree_unconditional": tree[:children],
            "all_mcs": ranked,
        }
        for kind in VARIANTS:
            found = by_mcs(kind, p)
            lists[f"variant_{kind}"] = found[: min(children, len(tree)) if own_tree else children]
        for name, cs in lists.items():
            chosen.setdefault(name, {})[p] = [judge(p, c) for c in cs]
    return chosen


def values(
    chosen: Chosen, draws: list[list[int]], own_tree: bool, times: dict[int, int], strata: Strata, least: int
) -> dict[str, float]:
    """Every value; `times`: how often each parent counts (1, but in a resample). NaN where there is nothing."""

    def over_seeds(one: Any) -> float:
        found = [one([p for p in draw for _ in range(times[p])]) for draw in draws]
        return mean([v for v in found if not math.isnan(v)])

    def pooled(name: str, of: Any) -> float:
        return over_seeds(lambda ps: mean([float(of(pair)) for p in ps for pair in chosen[name][p]]))

    def by_parent(name: str) -> float:
        of = chosen[name]
        return over_seeds(lambda ps: mean([mean([float(x.hit) for x in of[p]]) for p in ps if of[p]]))

    found = {
        name: pooled(name, lambda x: x.hit)
        for name in ("tree", "mcs", "mcs_unconditional", "tree_unconditional")
    }
    wide = chosen["tree_unconditional"]
    found["tree_parents_share"] = over_seeds(lambda ps: mean([float(bool(wide[p])) for p in ps]))
    for name in ("tree", "mcs", "mcs_unconditional"):
        found[f"mean_over_parents_{name}"] = by_parent(name)
    for name in ("tree", "mcs_unconditional"):
        found[f"s_res_{name}"] = pooled(name, lambda x: min(x.cos_parent, x.cos_child))
        found[f"lda_{name}"] = pooled(name, lambda x: x.lda_hit)
        found[f"mean_{name}"] = pooled(name, lambda x: x.mean_hit)
    for name, of, hit in STRATIFIED:
        found[f"{name}_stratified"] = stratified(chosen[of], draws, times, hit, strata, least)
    found["error_rate"] = 1 - found["tree" if own_tree else "mcs"]
    return found


#: Values that are given by stratum: name, procedure, and which hit counts.
STRATIFIED = (
    ("tree", "tree", "hit"),
    ("mcs", "mcs", "hit"),
    ("mcs_unconditional", "mcs_unconditional", "hit"),
    ("lda_tree", "tree", "lda_hit"),
    ("lda_mcs_unconditional", "mcs_unconditional", "lda_hit"),
)


def by_stratum(
    of: dict[int, list[Pair]], draws: list[list[int]], times: dict[int, int], hit: str, strata: Strata
) -> list[list[float]]:
    """The hits, 0 or 1, of the pairs in each stratum, over all draws."""
    found: list[list[float]] = [[] for _ in strata]
    for drawn in [p for draw in draws for p in draw for _ in range(times[p])]:
        for pair in of[drawn]:
            below = [i for i, least in enumerate(strata) if pair.n >= least]
            if below:
                found[max(below)].append(float(getattr(pair, hit)))
    return found


def stratified(
    of: dict[int, list[Pair]],
    draws: list[list[int]],
    times: dict[int, int],
    hit: str,
    strata: Strata,
    least: int,
) -> float:
    """The mean of the strata's shares; NaN if a stratum with children that fire `least` times is empty."""
    every = by_stratum(of, draws, times, hit, strata)
    ends = [*strata[1:], math.inf]
    return float(np.mean([mean(hits) for hits, end in zip(every, ends, strict=True) if end > least]))


def best_first(of: dict[int, list[Pair]], times: dict[int, int]) -> list[Pair]:
    every = sorted(chain(*of.values()), key=lambda x: (-x.coverage, -x.n, x.parent, x.child))
    return [pair for pair in every for _ in range(times[pair.parent])]


def mean(numbers: list[float]) -> float:
    return sum(numbers) / len(numbers) if numbers else math.nan
