"""The Hierarchy metric: of the children found for sampled parents, how many are hierarchical (Tree SAE, 5.2; SPEC 5.2).

Parents are drawn from the most frequent half of all features; a procedure names children of each. A pair is a hit where

    rank of d_c <= 5  and  rank of d_p <= 5   among the cosines of all decoder rows with d*_c (Eq. 5; `probes`)

and a procedure's score is hits / pairs, pooled over all pairs; with several seeds, the mean of the scores of each.

    tree                n children in the forest, n = min(5, children by MCS, children in the forest)
    mcs                 the n children of the largest binary MCS, which is the root of the coverage. Of a flat SAE, or
                        where the forest has no edges, the same as
    mcs_unconditional   up to 5 children by MCS of every parent
    tree_unconditional  up to 5 children in the forest, however many MCS has

A child counts where it fires on `min_count` activations, and not on all of them: then it has no direction. A flat SAE's
forest was inferred, by a condition much like the one tested, so there the paper's numbers are those by MCS; they are
also what `error_rate` is 1 minus (figure 2c), elsewhere `tree`.

None of these shows that a tree was learned: a child of a Tree SAE fires only where its parent does, so every direction
of the child points along the parent, and a tree that was never trained scores as high (docs/measures.md).

In a tree, `tree` and `mcs` leave out all parents without children, so they are not to be compared with what a flat SAE
has. `mcs_unconditional` leaves out none, and neither does the precision of equally many best pairs (by coverage, then
n_c): `matched_tree` of tree_unconditional and `matched_mcs` of mcs_unconditional, of both as many as the smaller has;
`curve` of any number, over the distinct pairs of all seeds. Of a tree both are nearly the same pairs: the coverage of
its edges is 1.
`lda_...` is the score by directions that need no training. `HierarchyConfig.reference()` is the authors' own reading.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float64, Int
from numpy.typing import NDArray
from torch import Tensor

from ..errors import UserError, require
from ..seeds import seeded
from ..structure.forest import ROOT
from ..structure.pairs import scores_memory
from .bootstrap import FloatArray, Formula, estimate, interval_method
from .columns import HIERARCHY, Column
from .composition import cosines_memory
from .mcs import VARIANTS, Variant
from .probes import Probes, probes_memory
from .reconstruction_score import PairNearness, pair_nearness
from .record import Record, undefined
from .spec import Size, Study
from .subject import Subject

Procedure = Literal["tree", "mcs", "mcs_unconditional", "tree_unconditional"]
PROCEDURES: tuple[Procedure, ...] = get_args(Procedure)

#: Those that need children in the forest; "mcs" and "error_rate" only where the SAE learned it.
_OF_FOREST = (
    "tree", "tree_unconditional", "tree_parents_share", "matched_tree", "matched_mcs", "mean_over_parents_tree",
    "s_res_tree", "lda_tree",
)  # fmt: skip
_OF_OWN_TREE = ("mcs", "mean_over_parents_mcs", "error_rate")
# The precision curve has so many points from n to 10 n, the same for every SAE.
_CURVE_POINTS = 6


@dataclass(frozen=True)
class HierarchyConfig:
    """Which pairs are judged, and how. The defaults are SPEC 5.2's recommendation.

    Raises UserError for a value out of its range.
    """

    parents: int = 100
    """Parents drawn by each seed."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """One sample of parents each; the score is the mean over them."""
    sampling: Literal["without", "with"] = "without"
    """with: a parent may be drawn several times, and then counts as often."""
    dense_share: float = 0.5
    """Parents are drawn from this share of all features, the most frequent."""
    children: int = 5
    """The most children of a parent."""
    min_count: int = 100
    """A child fires on so many tokens or more."""
    filter_before_topk: bool = True
    """True: rarer children are left out before the best by MCS are taken. False: after `top_before_filter` were
    taken, of which most or all may be rare, for a child that fired once has the largest MCS there is."""
    top_before_filter: int = 20
    """Children by MCS that are taken where `filter_before_topk` is false."""
    order: Literal["frequency", "index"] = "frequency"
    """Which children of the forest are taken where there are more: the most frequent, or those of the lowest index."""
    top: int = 5
    """The worst rank of a hit."""
    rank_curve: int = 20
    """Children by MCS of each parent in `rank_curve` (the paper's figure 13); 0: none."""
    variants: tuple[Variant, ...] = VARIANTS
    """Variants of MCS that are compared (figure 16)."""

    def __post_init__(self) -> None:
        least = {"parents": 1, "children": 1, "min_count": 1, "top": 1, "rank_curve": 0}
        least["top_before_filter"] = self.children
        for name, smallest in least.items():
            if (value := getattr(self, name)) < smallest:
                raise UserError(f"hierarchy.{name} = {value}: expected {smallest} or more")
        if not 0 < self.dense_share <= 1:
            raise UserError(f"hierarchy.dense_share = {self.dense_share}: expected more than 0, at most 1")
        if not self.seeds:
            raise UserError("hierarchy.seeds = (): expected one or more")
        for name, given, known in (
            ("sampling", [self.sampling], ("without", "with")),
            ("order", [self.order], ("frequency", "index")),
            ("variants", self.variants, VARIANTS),
        ):
            for word in given:
                if word not in known:
                    raise UserError(f"hierarchy.{name} = {word!r}: expected one of {', '.join(known)}")

    @classmethod
    def reference(cls) -> HierarchyConfig:
        """The authors' published reading: SPEC 5.2, column "Ref code". They drew once, and fixed no seed."""
        return cls(
            parents=2000,
            seeds=(0,),
            sampling="with",
            filter_before_topk=False,
            order="index",
            # Their probes share an L2 that grows with their number: none are trained beside those that are scored.
            rank_curve=0,
            variants=(),
        )


def hierarchy(subject: Subject, config: HierarchyConfig) -> Record:
    """All children of all procedures are given directions together: training their probes is what takes the time."""
    sample = _draw(subject, config)
    chosen = _choose(subject, config, sample)
    judged = _judge(subject, config, sample, chosen)
    table = {name: _Table(judged, rows, len(sample.parents)) for name, rows in judged.rows.items()}
    gated = subject.sae.gated and torch.equal(subject.sae.forest.parent, subject.forest.parent)
    covered = bool((judged.coverage[judged.rows["tree_unconditional"]] == 1).all())
    require(covered or not gated, "hierarchy", "coverage 1 of every pair of a Tree SAE")

    own_tree = _own_tree(subject)
    ratios = _ratios(table, _has_edges(subject) and bool(_children(subject, config).any()))
    error_rate_of: Procedure = "tree" if own_tree else "mcs"
    found = estimate(_formula(sample, judged, ratios, error_rate_of), len(sample.parents))
    for name, score in found.value.items():
        least = -1 if name.startswith("s_res") else 0
        require(score is None or least <= score <= 1 + 1e-6, "hierarchy", f"{least} <= {name} <= 1")

    tokens = len(subject.rows)
    procedures = {name: table[name] for name in PROCEDURES}
    return Record(
        "hierarchy",
        found.value,
        found.interval,
        unit="fraction",
        tokens=tokens,
        settings={
            **subject.settings,
            "config": asdict(config),
            "probe": asdict(subject.probes.config),
            "interval_method": interval_method("sampled parents, each with all its children"),
        },
        detail={
            "null": undefined(found.value, _why(subject, config, found.value), tokens),
            "units": {name: "cosine" for name in found.value if name.startswith("s_res")},
            "tree_conditional": own_tree,
            "error_rate_of": error_rate_of,
            "parents": {
                "asked": config.parents,
                "candidates": sample.candidates,
                "by_seed": [sample.parents.repeat_interleave(times).tolist() for times in sample.times],
            },
            "by_seed": {name: _by_seed(sample, ratio) for name, ratio in ratios.items()},
            "counts": {name: _counts(sample, of) for name, of in procedures.items()},
            "curve": {
                "tree": _precision_curve(judged, "tree_unconditional"),
                "mcs": _precision_curve(judged, "mcs_unconditional"),
            },
            "variants": _variants(sample, config, table),
            "rank_curve": _rank_curve(judged, config),
            "pairs": _pair_list(sample, judged),
        },
    )


def _has_edges(subject: Subject) -> bool:
    return bool((subject.forest.parent != ROOT).any())


def _own_tree(subject: Subject) -> bool:
    """Whether the SAE learned a tree: then MCS is given as many children of a parent as the tree has."""
    return _has_edges(subject) and not subject.sae.flat


class _Sample(NamedTuple):
    """parents: all that were drawn, each once. times: how often each seed drew them. candidates: drawn from so many."""

    parents: Int[Tensor, "u"]
    times: Int[Tensor, "seeds u"]
    candidates: int

    @property
    def first(self) -> list[int]:
        """Which of the parents the first seed drew."""
        return self.times[0].nonzero().flatten().tolist()


def _draw(subject: Subject, config: HierarchyConfig) -> _Sample:
    n = subject.pairs.marginals.n
    candidates = n.sort(descending=True, stable=True).indices[: max(int(config.dense_share * len(n)), 1)]
    draws: list[Tensor] = []
    for seed in config.seeds:
        generator = seeded(seed, "hierarchy", "parents")
        if config.sampling == "with":
            draws.append(torch.randint(len(candidates), (config.parents,), generator=generator))
        else:
            draws.append(torch.randperm(len(candidates), generator=generator)[: config.parents])
    times = torch.stack([torch.bincount(candidates[draw], minlength=len(n)) for draw in draws])
    parents = times.sum(0).nonzero().flatten()
    return _Sample(parents, times[:, parents], len(candidates))


def _children(subject: Subject, config: HierarchyConfig) -> Bool[Tensor, "d_sae"]:
    """The features that may be a child: they fire often enough, and not always."""
    every = torch.arange(subject.sae.d_sae)
    return (subject.pairs.marginals.n >= config.min_count) & subject.probes.defined(every)


#: Children by name of the procedure and, with it, of each sampled parent.
_Chosen = dict[str, list[list[int]]]


def _choose(subject: Subject, config: HierarchyConfig, sample: _Sample) -> _Chosen:
    """The children of each sampled parent by PROCEDURES; of the first seed's also by the variants and for figure 13."""
    may, most = _children(subject, config), config.children
    tree = [[c for c in subject.forest.children(p) if may[c]] for p in sample.parents.tolist()]
    if config.order == "frequency":
        n = subject.pairs.marginals.n.tolist()
        tree = [sorted(children, key=lambda c: (-n[c], c)) for children in tree]
    ranked = _by_mcs(subject, config, "mcs_binary", sample.parents, max(most, config.rank_curve), may)
    equal = [min(most, len(a), len(b)) for a, b in zip(tree, ranked, strict=True)]
    allowed = [len(children) if _own_tree(subject) else most for children in tree]
    chosen: _Chosen = {
        "tree": [children[:n] for children, n in zip(tree, equal, strict=True)],
        "mcs": [children[: min(most, n)] for children, n in zip(ranked, allowed, strict=True)],
        "mcs_unconditional": [children[:most] for children in ranked],
        "tree_unconditional": [children[:most] for children in tree],
        "rank_curve": [[] for _ in ranked],
    }
    for u in sample.first:
        if config.rank_curve and len(ranked[u]) >= config.rank_curve:
            chosen["rank_curve"][u] = ranked[u][: config.rank_curve]
    parents = sample.parents[sample.first]
    for variant in config.variants:
        chosen[variant] = [[] for _ in ranked]
        for u, children in zip(
            sample.first, _by_mcs(subject, config, variant, parents, most, may), strict=True
        ):
            chosen[variant][u] = children[: allowed[u]]
    return chosen


def _by_mcs(
    subject: Subject,
    config: HierarchyConfig,
    variant: Variant,
    parents: Int[Tensor, "b"],
    top: int,
    may: Bool[Tensor, "d_sae"],
) -> list[list[int]]:
    if config.filter_before_topk:
        # Features that always fire take no one's place.
        always = int((subject.pairs.marginals.n >= config.min_count).sum() - may.sum())
        found = subject.pairs.top_children(variant, parents, top + always, config.min_count)
    else:
        found = subject.pairs.top_children(variant, parents, config.top_before_filter, min_count=1)
    return [[c for c in children if c != -1 and may[c]][:top] for children in found.ids.tolist()]


class _Judged(NamedTuple):
    """All distinct pairs; `rows`, by procedure, says which of them are its, in the order they were chosen.

    parent: its place in the sample.
    """

    rows: dict[str, NDArray[np.int64]]
    parent: NDArray[np.int64]
    child: NDArray[np.int64]
    n: NDArray[np.int64]
    coverage: FloatArray
    near: PairNearness
    hit: FloatArray
    lda_hit: FloatArray


def _judge(subject: Subject, config: HierarchyConfig, sample: _Sample, chosen: _Chosen) -> _Judged:
    d_sae = subject.sae.d_sae
    keys = {
        name: np.array([u * d_sae + c for u, children in enumerate(lists) for c in children], dtype=np.int64)
        for name, lists in chosen.items()
    }
    key = np.unique(np.concatenate(list(keys.values())))
    place, child = (torch.from_numpy(part) for part in np.divmod(key, d_sae))
    near = _nearness(subject, subject.probes, sample.parents[place], child)
    near_lda = near
    if subject.probes.config.method != "lda":
        by_lda = Probes(
            subject.x, subject.pairs, replace(subject.probes.config, method="lda"), subject.probes.device
        )
        near_lda = _nearness(subject, by_lda, sample.parents[place], child)
    hit, lda_hit = (
        (torch.maximum(found.rank_child, found.rank_parent) <= config.top).double().numpy()
        for found in (near, near_lda)
    )
    return _Judged(
        rows={name: np.searchsorted(key, of) for name, of in keys.items()},
        parent=place.numpy(),
        child=child.numpy(),
        n=subject.pairs.marginals.n[child].numpy(),
        coverage=_coverage(subject, sample, place, child).numpy(),
        near=near,
        hit=hit,
        lda_hit=lda_hit,
    )


def _nearness(
    subject: Subject, probes: Probes, parent: Int[Tensor, "m"], child: Int[Tensor, "m"]
) -> PairNearness:
    if not len(child):
        nothing = torch.zeros(0)
        return PairNearness(nothing, nothing, nothing.long(), nothing.long())
    children, row = child.unique(return_inverse=True)
    decoder = F.normalize(subject.sae.W_dec.detach().float())
    return pair_nearness(probes.directions(children)[row], decoder, parent, child)


def _coverage(
    subject: Subject, sample: _Sample, place: Int[Tensor, "m"], child: Int[Tensor, "m"]
) -> Float64[Tensor, "m"]:
    found, first = torch.zeros(len(child), dtype=torch.float64), 0
    for block, score in subject.pairs.scores("coverage", sample.parents, "parent"):
        mine = (place >= first) & (place < first + len(block))
        found[mine] = score[place[mine] - first, child[mine]]
        first += len(block)
    return found


class _Table:
    """Sums over the pairs of a procedure, by sampled parent: `[u]` each."""

    def __init__(self, judged: _Judged, rows: NDArray[np.int64], n_parents: int) -> None:
        def total(values: NDArray[Any]) -> FloatArray:
            return np.bincount(judged.parent[rows], values[rows], n_parents).astype(np.float64)

        self.pairs = total(np.ones_like(judged.hit))
        self.hits, self.lda_hits = total(judged.hit), total(judged.lda_hit)
        self.s_res = total(judged.near.score.numpy())
        self.has = (self.pairs > 0).astype(np.float64)
        self.share = self.hits / np.maximum(self.pairs, 1)


class _Ratio(NamedTuple):
    """By sampled parent: sums over those drawn are taken of both, and divided."""

    of: FloatArray
    by: FloatArray


def _ratios(table: Mapping[str, _Table], may_have_children: bool) -> dict[str, _Ratio]:
    tree, mcs, plain = table["tree"], table["mcs"], table["mcs_unconditional"]
    wide = table["tree_unconditional"]
    return {
        **{name: _Ratio(table[name].hits, table[name].pairs) for name in PROCEDURES},
        "tree_parents_share": _Ratio(wide.has, np.full_like(wide.has, may_have_children)),
        "mean_over_parents_tree": _Ratio(tree.share, tree.has),
        "mean_over_parents_mcs": _Ratio(mcs.share, mcs.has),
        "mean_over_parents_mcs_unconditional": _Ratio(plain.share, plain.has),
        "s_res_tree": _Ratio(tree.s_res, tree.pairs),
        "s_res_mcs_unconditional": _Ratio(plain.s_res, plain.pairs),
        "lda_tree": _Ratio(tree.lda_hits, tree.pairs),
        "lda_mcs_unconditional": _Ratio(plain.lda_hits, plain.pairs),
    }


def _of_seeds(sample: _Sample, ratio: _Ratio, weights: FloatArray) -> FloatArray:
    """The ratio by seed, `[b, seeds]`; NaN where a seed drew nothing that has one."""
    times = sample.times.double().numpy()
    return weights @ (times * ratio.of).T / (weights @ (times * ratio.by).T)


def _by_seed(sample: _Sample, ratio: _Ratio) -> list[float | None]:
    with np.errstate(invalid="ignore"):
        found = _of_seeds(sample, ratio, np.ones((1, len(sample.parents))))[0]
    return [float(score) if np.isfinite(score) else None for score in found]


def _formula(
    sample: _Sample, judged: _Judged, ratios: Mapping[str, _Ratio], error_rate_of: Procedure
) -> Formula:
    matched = {"matched_tree": _best_first(judged, "tree_unconditional")}
    matched["matched_mcs"] = _best_first(judged, "mcs_unconditional")

    def formula(weights: FloatArray) -> dict[str, FloatArray]:
        found: dict[str, FloatArray] = {}
        for name, ratio in ratios.items():
            by_seed = _of_seeds(sample, ratio, weights)
            defined = np.isfinite(by_seed)
            found[name] = np.where(defined, by_seed, 0).sum(1) / defined.sum(1)
        drawn = {name: weights[:, judged.parent[rows]] for name, rows in matched.items()}
        n = np.minimum(*(times.sum(1) for times in drawn.values()))[:, None]
        for name, rows in matched.items():
            before = drawn[name].cumsum(1) - drawn[name]
            taken = np.clip(n - before, 0, drawn[name])
            found[name] = taken @ judged.hit[rows] / n[:, 0]
        found["error_rate"] = 1 - found[error_rate_of]
        return found

    return formula


def _best_first(judged: _Judged, procedure: Procedure) -> NDArray[np.int64]:
    rows = judged.rows[procedure]
    keys = (judged.child[rows], judged.parent[rows], -judged.n[rows], -judged.coverage[rows])
    return rows[np.lexsort(keys)]


def _precision_curve(judged: _Judged, procedure: Procedure) -> list[list[float]]:
    """[n, precision of the best n pairs], for n up to all pairs."""
    hits = judged.hit[_best_first(judged, procedure)].cumsum()
    steps = range(int(_CURVE_POINTS * np.log10(max(len(hits), 1))) + 1)
    points = {round(10 ** (step / _CURVE_POINTS)) for step in steps} | {len(hits)}
    return [[n, float(hits[n - 1] / n)] for n in sorted(points) if 0 < n <= len(hits)]


def _counts(sample: _Sample, of: _Table) -> dict[str, list[int]]:
    times = sample.times.numpy()
    return {
        "pairs": (times @ of.pairs).astype(int).tolist(),
        "parents": (times @ of.has).astype(int).tolist(),
    }


def _variants(sample: _Sample, config: HierarchyConfig, table: Mapping[str, _Table]) -> dict[str, Any]:
    """Figure 16, of the first seed's parents."""
    first = sample.first
    once = _Sample(sample.parents[first], sample.times[:1, first], sample.candidates)
    ratios = {name: _Ratio(table[name].hits[first], table[name].pairs[first]) for name in config.variants}

    def score(weights: FloatArray) -> dict[str, FloatArray]:
        return {name: _of_seeds(once, ratio, weights)[:, 0] for name, ratio in ratios.items()}

    found = estimate(score, len(first))
    pairs = {name: int(ratio.by @ once.times[0].double().numpy()) for name, ratio in ratios.items()}
    return {
        name: {"value": found.value[name], "interval": found.interval[name], "pairs": pairs[name]}
        for name in config.variants
    }


def _rank_curve(judged: _Judged, config: HierarchyConfig) -> dict[str, Any]:
    """Figure 13: by rank among a parent's children by MCS, the means over the parents that have so many."""
    rows = judged.rows["rank_curve"].reshape(-1, max(config.rank_curve, 1))
    if not len(rows):
        return {"parents": 0, "cos_parent": [], "hit": []}
    return {
        "parents": len(rows),
        "cos_parent": judged.near.cos_parent.numpy()[rows].mean(0, dtype=np.float64).tolist(),
        "hit": judged.hit[rows].mean(0).tolist(),
    }


def _pair_list(sample: _Sample, judged: _Judged) -> list[dict[str, Any]]:
    """The first seed's."""
    first = set(sample.first)
    procedures: Sequence[Procedure] = ("tree", "mcs_unconditional")
    return [
        {
            "procedure": procedure,
            "parent": int(sample.parents[judged.parent[row]]),
            "child": int(judged.child[row]),
            "n": int(judged.n[row]),
            "coverage": float(judged.coverage[row]),
            "cos_parent": float(judged.near.cos_parent[row]),
            "cos_child": float(judged.near.cos_child[row]),
            "rank_parent": int(judged.near.rank_parent[row]),
            "rank_child": int(judged.near.rank_child[row]),
            "s_res": float(judged.near.score[row]),
        }
        for procedure in procedures
        for row in judged.rows[procedure]
        if int(judged.parent[row]) in first
    ]


def _why(subject: Subject, config: HierarchyConfig, value: Mapping[str, float | None]) -> dict[str, str]:
    measured = f"{config.min_count} or more, but not all, of the {len(subject.rows):,} measured tokens"
    if not bool(_children(subject, config).any()):
        return dict.fromkeys(value, f"no feature fired on {measured}: measure more text, or lower min_count")
    no_mcs = f"no sampled parent fires together with another feature that fired on {measured}"
    no_tree = f"no sampled parent has a child in the forest that fired on {measured}"
    if not _has_edges(subject):
        no_tree = "the forest has no edges"
    of_forest = _OF_FOREST + (_OF_OWN_TREE if _own_tree(subject) else ())
    return dict.fromkeys(value, no_mcs) | dict.fromkeys(of_forest, no_tree)


def _memory(size: Size) -> int:
    # Directions by LDA stand beside the probes: a float64 mean for every feature.
    by_lda = 8 * size.d_sae * size.d_in + cosines_memory(size.d_sae)
    by_mcs = scores_memory(size.d_sae, ("mcs_correlation",))
    return size.decoder + max(by_mcs, by_lda, probes_memory(size.n_tokens, size.d_in, size.n_probes))


SPEC = Study(
    name="hierarchy",
    needs=frozenset({"firings", "activations", "probes", "forest"}),
    sets=("paper",),
    config=HierarchyConfig,
    readings={"ref_tree_sae": HierarchyConfig.reference()},
    run=hierarchy,
    columns=(
        Column(HIERARCHY, "tree", "by its forest", "↑"),
        Column(HIERARCHY, "mcs", "by MCS, as in the paper", "↑"),
        Column(HIERARCHY, "mcs_unconditional", "by MCS, any parents", "↑"),
        Column(HIERARCHY, "matched_tree", "n best, by its forest", "↑"),
        Column(HIERARCHY, "matched_mcs", "n best, by MCS", "↑"),
    ),
    memory=_memory,
)
