"""Masked cosine similarity (MCS): evidence for a parent in the features' firings alone (Tree SAE, App. I).

The scores of a parent p and a child c are those of `pairs`: the activation coverage and MCS in four variants
(docs/spec/hierarchy.md#mcs), on binary firings or on values, scaled or not. The children are the features that fired
`min_count` times or more:

    coverage, mcs_...              mean over children of the best score with any other feature as the parent
    edges_coverage, edges_mcs_...  mean over the forest's edges of the score of parent and child

The paper's App. H argues that the decoder rows of a pair end up nearly orthogonal. Its Table 4 is the mean of
|k| = |cos(d_p, d_c)| over all ordered pairs with coverage 1, i.e. n_pc = n_c (docs/spec/hierarchy.md#decoder-cosine):

    k_all_pairs      over pairs with n_c >= min_count
    k_all_pairs_any  over pairs with n_c >= 1
    k_edges          over the forest's edges with n_c >= min_count
    k_..._98         the same with coverage of at least 0.98, for SAEs in which hardly any pair has coverage 1
    k_random         expected |k| of two random directions in d dimensions: Gamma(d/2) / (sqrt(pi) Gamma((d+1)/2))
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64, Int
from torch import Tensor

from ..errors import InputError, require
from ..progress import progress
from ..structure.forest import ROOT
from ..structure.pairs import Score, scores_memory
from .bootstrap import FloatArray, Formula, estimate, interval_method, units_of_sae
from .columns import FLAT, Column
from .record import EdgeScores, Interval, Record, Replicates, undefined
from .spec import Study
from .subject import Subject

Variant = Literal["mcs_binary", "mcs_binary_scaled", "mcs_correlation", "mcs_correlation_scaled"]
VARIANTS: tuple[Variant, ...] = get_args(Variant)

_KINDS: tuple[Score, ...] = ("coverage", *VARIANTS)
# Number of pairs whose cosines are computed at once.
_PAIRS = 1 << 12
# Coverage of pairs that count as nearly certain, as in the paper's Figures 11 and 12.
_NEARLY = 0.98


@dataclass(frozen=True)
class MCSConfig:
    """Which children are measured, and for which parents children are listed.

    Raises InputError for a value out of its range.
    """

    min_count: int = 100
    """Minimum number of tokens that a child must fire on. A rarer one scores 1 under any feature that happened to fire
    with it."""
    parents: tuple[int, ...] = ()
    """Parent features whose best children to list; none by default."""
    children: int = 5
    """Number of children to list for each of these parents."""

    def __post_init__(self) -> None:
        for name in ("min_count", "children"):
            if (value := getattr(self, name)) < 1:
                raise InputError(f"mcs.{name} = {value}: expected 1 or more")


def mcs(subject: Subject, config: MCSConfig) -> Record:
    """The record "mcs". Raises InputError if `config.parents` names a feature that the SAE does not have."""
    for parent in config.parents:
        if not 0 <= parent < subject.sae.d_sae:
            raise InputError(f"mcs.parents: feature {parent}: expected 0 to {subject.sae.d_sae - 1}")
    decoder = F.normalize(subject.sae.W_dec.detach().float().cpu())
    found = _scores(subject, decoder)
    n = subject.pairs.marginals.n
    frequent = n >= config.min_count
    linked = frequent & (subject.forest.parent != ROOT)
    certain, nearly = linked & (found.edge[0] == 1), linked & (found.edge[0] >= _NEARLY)
    if subject.sae.gated and torch.equal(subject.sae.forest.parent, subject.forest.parent):
        require(torch.equal(certain, linked), "mcs", "coverage 1 on every edge of a Tree SAE")
    k_edge, k_edge_98 = (
        _abs_cosine(decoder, subject.forest.parent[some], some.nonzero().flatten())
        for some in (certain, nearly)
    )

    value: dict[str, float | None] = {}
    interval: dict[str, Interval] = {}
    replicates: dict[str, Replicates] = {}
    by_parent = {f"edges_{kind}": (linked, found.edge[i, linked]) for i, kind in enumerate(_KINDS)}
    by_parent |= {"k_edges": (certain, k_edge), "k_edges_98": (nearly, k_edge_98)}
    parent = subject.forest.parent
    for name, formula, units in (
        *((kind, _mean_best(found.best[i, frequent]), frequent) for i, kind in enumerate(_KINDS)),
        *((name, _mean_by_parent(parent[of], s), of) for name, (of, s) in by_parent.items()),
        ("k_all_pairs", _mean_of_pairs(found.k_sum[frequent], found.k_pairs[frequent]), frequent),
        ("k_all_pairs_any", _mean_of_pairs(found.k_sum[n > 0], found.k_pairs[n > 0]), n > 0),
        ("k_all_pairs_98", _mean_of_pairs(found.k_sum_98[frequent], found.k_pairs_98[frequent]), frequent),
    ):
        of_parents = name in by_parent
        ids = parent[units].unique() if of_parents else units.nonzero().flatten()
        one = estimate(
            formula, len(ids), units_of_sae("parents" if of_parents else "children", subject.sae, ids)
        )
        value[name], interval[name] = one.value["mean"], one.interval["mean"]
        if "mean" in one.replicates:
            replicates[name] = one.replicates["mean"]
    for name, mean in value.items():
        require(mean is None or 0 <= mean <= 1 + 1e-6, "mcs", f"0 <= {name} <= 1")
    value["k_random"], interval["k_random"] = k_random(subject.sae.d_in), None

    tokens = len(subject.rows)
    return Record(
        "mcs",
        value,
        interval,
        unit="score",
        tokens=tokens,
        settings={
            **subject.settings,
            "config": asdict(config),
            "interval_method": f"{interval_method('children')}; edges_..., k_edges...: over parents; k_random: none",
        },
        detail={
            "null": undefined(value, _why(subject, config, frequent), tokens),
            "units": {n: "fraction" if n.endswith("coverage") else "cosine" for n in value if "mcs" not in n},
            "children": int(frequent.sum()),
            "edges": int(linked.sum()),
            "pairs": {
                "k_all_pairs": int(found.k_pairs[frequent].sum()),
                "k_all_pairs_any": int(found.k_pairs.sum()),
                "k_edges": int(certain.sum()),
                "k_all_pairs_98": int(found.k_pairs_98[frequent].sum()),
                "k_edges_98": int(nearly.sum()),
            },
            "top_children": _top_children(subject, config),
        },
        replicates=replicates,
        edge_scores={
            name: EdgeScores(some.nonzero().flatten(), score) for name, (some, score) in by_parent.items()
        },
    )


class _Scores(NamedTuple):
    """Scores of every feature as a child; 0 where it has no parent.

    best:    for each kind of score, that with its best parent.
    edge:    for each kind of score, that with its parent in the forest.
    k_sum:   sum of |k| over the features that fire whenever it does.
    k_pairs: number of these features.
    ..._98:  the same for features that fire on 98 % of its tokens or more.
    """

    best: Float64[Tensor, "kinds d_sae"]
    edge: Float64[Tensor, "kinds d_sae"]
    k_sum: Float64[Tensor, "d_sae"]
    k_pairs: Int[Tensor, "d_sae"]
    k_sum_98: Float64[Tensor, "d_sae"]
    k_pairs_98: Int[Tensor, "d_sae"]


def _scores(subject: Subject, decoder: Float[Tensor, "d_sae d_in"]) -> _Scores:
    best, edge = torch.zeros(2, len(_KINDS), len(decoder), dtype=torch.float64)
    k_sum = torch.zeros(2, len(decoder), dtype=torch.float64)
    k_pairs = torch.zeros(2, len(decoder), dtype=torch.int64)
    fired = (subject.pairs.marginals.n > 0).nonzero().flatten()
    with progress("scores of parents", len(fired), "features") as advance:
        for block, scores in subject.pairs.scores_of(_KINDS, fired):
            parent, row = subject.forest.parent[block], torch.arange(len(block))
            for i, kind in enumerate(_KINDS):
                score = scores[kind]
                score[row, block] = 0  # no feature is its own parent
                best[i, block] = score.amax(1)
                edge[i, block] = torch.where(parent == ROOT, 0, score[row, parent.clamp(min=0)])
            child, above = (scores["coverage"] >= _NEARLY).nonzero(as_tuple=True)
            k = _abs_cosine(decoder, above, block[child])
            certain = scores["coverage"][child, above] == 1
            for i, some in enumerate((certain, torch.ones_like(certain))):
                # Weighted counts of no pairs are int64.
                k_sum[i, block] = torch.bincount(child[some], k[some], minlength=len(block)).double()
                k_pairs[i, block] = torch.bincount(child[some], minlength=len(block))
            advance(len(block))
    return _Scores(best, edge, k_sum[0], k_pairs[0], k_sum[1], k_pairs[1])


def _abs_cosine(
    decoder: Float[Tensor, "d_sae d_in"], parent: Int[Tensor, "m"], child: Int[Tensor, "m"]
) -> Float64[Tensor, "m"]:
    parts = zip(parent.split(_PAIRS), child.split(_PAIRS), strict=True)
    cosines = [(decoder[p] * decoder[c]).sum(1).abs().double() for p, c in parts]
    return torch.cat([torch.zeros(0, dtype=torch.float64), *cosines])


def _mean_best(score: Float64[Tensor, "children"]) -> Formula:
    return _mean_of_pairs(score, torch.ones_like(score))


def _mean_by_parent(parent: Int[Tensor, "edges"], score: Float64[Tensor, "edges"]) -> Formula:
    """The mean over edges. Children share their parent's firings, so parents are resampled with all their children."""
    families, family = parent.unique(return_inverse=True)
    total = torch.bincount(family, score, minlength=len(families)).double()
    return _mean_of_pairs(total, torch.bincount(family, minlength=len(families)))


def _mean_of_pairs(total: Float64[Tensor, "units"], pairs: Tensor) -> Formula:
    """The mean over all pairs, given each unit's sum over its pairs and the number of its pairs."""

    def mean(weights: FloatArray) -> dict[str, FloatArray]:
        return {"mean": weights @ total.numpy() / (weights @ pairs.double().numpy())}

    return mean


def k_random(d: int) -> float:
    """Expected |cos| of two independent random directions in `d` dimensions."""
    return math.exp(math.lgamma(d / 2) - math.lgamma((d + 1) / 2)) / math.sqrt(math.pi)


def _why(subject: Subject, config: MCSConfig, frequent: Tensor) -> dict[str, str]:
    measured = f"{config.min_count} or more of the {len(subject.rows):,} measured tokens"
    few = f"no feature fired on {measured}: measure more text, or lower min_count"
    no_pair = "no feature fires whenever another does"
    if not bool((subject.forest.parent != ROOT).any()):
        no_edge = no_certain = no_nearly = "the forest has no edges"
    else:
        no_edge = f"the forest has no edge whose child fired on {measured}"
        no_certain = f"{no_edge}, and whose parent fired on all of these"
        no_nearly = f"{no_edge}, and whose parent fired on 98 % of these"
    if not bool(frequent.any()):
        return {**dict.fromkeys(_all_names(), few), "k_all_pairs_any": no_pair}
    return {
        **dict.fromkeys(_all_names(), no_edge),
        "k_all_pairs": f"{no_pair}, of those that fired on {measured}",
        "k_all_pairs_any": no_pair,
        "k_edges": no_certain,
        "k_all_pairs_98": f"no feature fires on 98 % of another's tokens, of those that fired on {measured}",
        "k_edges_98": no_nearly,
    }


def _all_names() -> list[str]:
    pairs = ("k_all_pairs", "k_all_pairs_any", "k_edges", "k_all_pairs_98", "k_edges_98")
    return [*_KINDS, *(f"edges_{kind}" for kind in _KINDS), *pairs]


def _top_children(subject: Subject, config: MCSConfig) -> list[dict[str, Any]]:
    """The best children of each of `config.parents` by binary MCS, which ranks them as coverage does."""
    parents = torch.tensor(config.parents, dtype=torch.int64)
    n = subject.pairs.marginals.n
    top = subject.pairs.top_children("mcs_binary", parents, config.children, config.min_count).ids
    listed = []
    for block, scores in subject.pairs.scores_of(_KINDS, parents, "parent"):
        for row, parent in enumerate(block.tolist()):
            children = [
                {"child": c, "n": int(n[c]), **{kind: float(scores[kind][row, c]) for kind in _KINDS}}
                for c in top[len(listed)].tolist()
                if c != -1
            ]
            listed.append({"parent": parent, "n": int(n[parent]), "children": children})
    return listed


SPEC = Study(
    name="mcs",
    needs=frozenset({"firings", "forest"}),
    sets=("paper", "truth"),
    nulls=(*(f"edges_{kind}" for kind in _KINDS), "k_edges", "k_edges_98"),
    config=MCSConfig,
    run=mcs,
    columns=(
        Column(FLAT, "k_all_pairs", "|k|", "↓"),
        Column(FLAT, "k_all_pairs_98", "|k| at coverage 0.98", "↓"),
    ),
    memory=lambda size: size.decoder + scores_memory(size.d_sae, _KINDS),
    version=3,
)
