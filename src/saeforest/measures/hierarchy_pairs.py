"""The pairs that the measure `hierarchy` scores: sampled parents, the children each procedure chooses, and hits."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float64, Int
from numpy.typing import NDArray
from torch import Tensor

from ..errors import InputError
from ..seeds import seeded
from ..structure.forest import ROOT
from .bootstrap import FloatArray
from .mcs import VARIANTS, Variant
from .probes import Probes
from .reconstruction_score import PairNearness, pair_nearness
from .subject import Subject

Procedure = Literal["tree", "mcs", "mcs_unconditional", "tree_unconditional"]
PROCEDURES: tuple[Procedure, ...] = get_args(Procedure)


@dataclass(frozen=True)
class HierarchyConfig:
    """Which parent-child pairs are scored, and how (docs/spec/hierarchy.md#hierarchy-metric).

    Raises InputError for a value out of its range.
    """

    parents: int = 100
    """Number of parents that each seed draws."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Random seeds for drawing parents. Each draws one sample; the score is the mean over the samples."""
    sampling: Literal["without", "with"] = "without"
    """Whether parents are drawn with or without replacement."""
    dense_share: float = 0.5
    """Fraction of all features, the most frequent ones, from which parents are drawn."""
    children: int = 5
    """Maximum number of children scored for each parent."""
    min_count: int = 100
    """Minimum number of tokens that a child must fire on."""
    filter_before_topk: bool = True
    """Apply `min_count` before choosing the best children by MCS. If false, take the best `top_before_filter` first
    and filter those: most of them may then be too rare, since a feature that fired once can have the largest MCS."""
    top_before_filter: int = 20
    """Number of children by MCS to take before filtering, if `filter_before_topk` is false."""
    order: Literal["frequency", "index"] = "frequency"
    """Which children to score if a parent has more than `children`: the most frequent, or those of lowest index."""
    top: int = 5
    """Rank, among all decoder rows by cosine with the child's direction, within which parent and child must both lie
    for a hit."""
    rank_curve: int = 20
    """Number of children by MCS of each parent in the rank curve (the paper's Figure 13); 0 for no curve."""
    variants: tuple[Variant, ...] = VARIANTS
    """MCS variants to compare (the paper's Figure 16)."""

    def __post_init__(self) -> None:
        least = {"parents": 1, "children": 1, "min_count": 1, "top": 1, "rank_curve": 0}
        least["top_before_filter"] = self.children
        for name, smallest in least.items():
            if (value := getattr(self, name)) < smallest:
                raise InputError(f"hierarchy.{name} = {value}: expected {smallest} or more")
        if not 0 < self.dense_share <= 1:
            raise InputError(f"hierarchy.dense_share = {self.dense_share}: expected more than 0, at most 1")
        if not self.seeds:
            raise InputError("hierarchy.seeds = (): expected one or more")
        for name, given, known in (
            ("sampling", [self.sampling], ("without", "with")),
            ("order", [self.order], ("frequency", "index")),
            ("variants", self.variants, VARIANTS),
        ):
            for word in given:
                if word not in known:
                    raise InputError(f"hierarchy.{name} = {word!r}: expected one of {', '.join(known)}")

    @classmethod
    def reference(cls) -> HierarchyConfig:
        """Settings of the authors' published code (docs/spec/hierarchy.md#hierarchy-metric), which fixes no seed."""
        return cls(
            parents=2000,
            seeds=(0,),
            sampling="with",
            filter_before_topk=False,
            order="index",
            # In their code L2 grows with the number of probes trained together, so only scored pairs get probes.
            rank_curve=0,
            variants=(),
        )


def has_edges(subject: Subject) -> bool:
    """Whether any feature has a parent other than the root."""
    return bool((subject.forest.parent != ROOT).any())


def own_tree(subject: Subject) -> bool:
    """Whether the SAE learned its tree. If so, MCS chooses only as many children for a parent as the tree has."""
    return has_edges(subject) and subject.sae.has_forest


class Sample(NamedTuple):
    """Sampled parents.

    parents:    `[u]` every parent that any seed drew, once.
    times:      `[seeds, u]` how often each seed drew each parent.
    candidates: number of features that parents were drawn from.
    """

    parents: Int[Tensor, "u"]
    times: Int[Tensor, "seeds u"]
    candidates: int

    @property
    def first(self) -> list[int]:
        """Indices in `parents` of those that the first seed drew."""
        return self.times[0].nonzero().flatten().tolist()


def draw_parents(subject: Subject, config: HierarchyConfig) -> Sample:
    """Draw parents from the most frequent features, once for each seed."""
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
    return Sample(parents, times[:, parents], len(candidates))


def possible_children(subject: Subject, config: HierarchyConfig) -> Bool[Tensor, "d_sae"]:
    """Which features can be a child: those that fire at least `min_count` times but not always."""
    every = torch.arange(subject.sae.d_sae)
    return (subject.pairs.marginals.n >= config.min_count) & subject.probes.defined(every)


#: For each procedure, the children of each sampled parent.
Chosen = dict[str, list[list[int]]]


def choose_children(subject: Subject, config: HierarchyConfig, sample: Sample) -> Chosen:
    """Choose children of each sampled parent by each of the PROCEDURES.

    Parents that the first seed drew also get children by each MCS variant (Figure 16), and for the rank curve
    (Figure 13) if they have enough.
    """
    may, most = possible_children(subject, config), config.children
    tree = [[c for c in subject.forest.children(p) if may[c]] for p in sample.parents.tolist()]
    if config.order == "frequency":
        n = subject.pairs.marginals.n.tolist()
        tree = [sorted(children, key=lambda c: (-n[c], c)) for children in tree]
    ranked = _by_mcs(subject, config, "mcs_binary", sample.parents, max(most, config.rank_curve), may)
    equal = [min(most, len(a), len(b)) for a, b in zip(tree, ranked, strict=True)]
    allowed = [len(children) if own_tree(subject) else most for children in tree]
    chosen: Chosen = {
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
        # Features that always fire are dropped below: ask for as many more.
        always = int((subject.pairs.marginals.n >= config.min_count).sum() - may.sum())
        found = subject.pairs.top_children(variant, parents, top + always, config.min_count)
    else:
        found = subject.pairs.top_children(variant, parents, config.top_before_filter, min_count=1)
    return [[c for c in children if c != -1 and may[c]][:top] for children in found.ids.tolist()]


class ScoredPairs(NamedTuple):
    """All distinct pairs of a parent and a child, and how each was scored: `[m]` each.

    rows:         for each procedure, the indices of its pairs, in the order they were chosen.
    parent:       index of the parent in `Sample.parents`.
    child:        feature id.
    n:            number of activations on which the child fires.
    coverage:     fraction of these on which the parent fires too.
    near:         cosines and ranks of both decoder rows with the child's direction.
    rank, lda_rank, mean_rank: the larger rank of the two rows: by the probe's direction, by that of LDA, and by the
                  mean difference.
    hit, lda_hit, mean_hit: 1 for a hit, where this rank is small enough, else 0.
    """

    rows: dict[str, NDArray[np.int64]]
    parent: NDArray[np.int64]
    child: NDArray[np.int64]
    n: NDArray[np.int64]
    coverage: FloatArray
    near: PairNearness
    rank: NDArray[np.int64]
    lda_rank: NDArray[np.int64]
    mean_rank: NDArray[np.int64]
    hit: FloatArray
    lda_hit: FloatArray
    mean_hit: FloatArray


def score_pairs(subject: Subject, config: HierarchyConfig, sample: Sample, chosen: Chosen) -> ScoredPairs:
    """Score every distinct pair of all procedures once."""
    d_sae = subject.sae.d_sae
    keys = {
        name: np.array([u * d_sae + c for u, children in enumerate(lists) for c in children], dtype=np.int64)
        for name, lists in chosen.items()
    }
    key = np.unique(np.concatenate(list(keys.values())))
    place, child = (torch.from_numpy(part) for part in np.divmod(key, d_sae))
    near = _nearness(subject, subject.probes, sample.parents[place], child)

    def rank_by(method: Literal["lda", "mean_difference"]) -> NDArray[np.int64]:
        if subject.probes.config.method == method:
            return near.worst_rank.numpy()
        of_method = replace(subject.probes.config, method=method)
        probes = Probes(subject.x, subject.pairs, of_method, subject.probes.device)
        return _nearness(subject, probes, sample.parents[place], child).worst_rank.numpy()

    rank, lda_rank, mean_rank = near.worst_rank.numpy(), rank_by("lda"), rank_by("mean_difference")
    hit, lda_hit, mean_hit = ((r <= config.top).astype(np.float64) for r in (rank, lda_rank, mean_rank))
    return ScoredPairs(
        rows={name: np.searchsorted(key, of) for name, of in keys.items()},
        parent=place.numpy(),
        child=child.numpy(),
        n=subject.pairs.marginals.n[child].numpy(),
        coverage=_coverage(subject, sample, place, child).numpy(),
        near=near,
        rank=rank,
        lda_rank=lda_rank,
        mean_rank=mean_rank,
        hit=hit,
        lda_hit=lda_hit,
        mean_hit=mean_hit,
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
    subject: Subject, sample: Sample, place: Int[Tensor, "m"], child: Int[Tensor, "m"]
) -> Float64[Tensor, "m"]:
    found, first = torch.zeros(len(child), dtype=torch.float64), 0
    for block, score in subject.pairs.scores("coverage", sample.parents, "parent"):
        mine = (place >= first) & (place < first + len(block))
        found[mine] = score[place[mine] - first, child[mine]]
        first += len(block)
    return found
