"""The reconstruction score of the forest's edges: do parent and child both point along the child's concept?

    S_res(p, c) = min(d*_c . d_c, d*_c . d_p)          Tree SAE, Eq. 5

d*_c is the unit direction of the child's concept (probes.py), and d_c and d_p are the unit decoder rows of child and
parent. Coverage alone is not enough: a feature that fires nearly everywhere covers every other feature but has nothing
to do with it (the paper's "PCA feature"). Its d*_c . d_p is near 0, however high the coverage. The record also has the
ranks of both rows among all decoder rows by cosine with d*_c; an edge is a hit if both are among the first 5
(docs/spec/hierarchy.md#hierarchy-metric). The values are repeated with the LDA direction, which needs no training.

Both conditions are needed (the paper's App. F): `near_not_covering` is the fraction of edges on which the nearest other
decoder row to d*_c belongs to a feature that fires on less than half of the child's tokens.

For some parents, `focus` holds the data of the paper's Figures 1 and 10 to 12: for each child with high coverage, in
the forest or not, a histogram of all decoder rows' cosines with the child's direction, and those of child and parent.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float32, Float64, Int
from torch import Tensor

from ..errors import InputError
from ..saes import SAE
from .bootstrap import Estimate, FloatArray, estimate, interval_method, units_of_sae
from .columns import HIERARCHY, Column
from .composition import cosines_memory
from .probes import Probes, probes_memory
from .record import EdgeScores, Record, undefined
from .spec import Size, Study
from .subject import Subject

#: Rank within which both rows must lie for a hit.
TOP = 5
# Cosines of a block of directions with all decoder rows are computed at once, at most this many entries.
_BLOCK_ENTRIES = 1 << 24
_BINS = 100
# Number of densest features among which one to show in detail is sought.
_DENSEST = 32
# A feature that is nearer to a child's direction than any other, but with less coverage than this, is not its parent.
_COVERING = 0.5


@dataclass(frozen=True)
class ReconstructionScoreConfig:
    """Which edges are scored, and which parents are shown in detail."""

    min_count: int = 100
    """Minimum number of tokens that a child must fire on. The concept directions of rarer features are noise."""
    max_pairs: int = 500
    """Maximum number of edges to score. If the forest has more, they are drawn at random."""
    seed: int = 0
    """Random seed for drawing the edges."""
    parents: tuple[int, ...] = ()
    """Parent features to show in detail. By default, the parent with the most scored children and the densest feature
    that covers another."""
    children: int = 10
    """Number of children to show for each of these parents, those with the highest coverage."""
    min_coverage: float = 0.9
    """Minimum activation coverage of a child by its parent for the child to be shown."""

    def __post_init__(self) -> None:
        ranges = [
            ("min_count", self.min_count, self.min_count >= 1, "1 or more"),
            ("max_pairs", self.max_pairs, self.max_pairs >= 1, "1 or more"),
            ("seed", self.seed, 0 <= self.seed < 2**63, "0 to 2**63 - 1"),
            ("children", self.children, self.children >= 1, "1 or more"),
            ("min_coverage", self.min_coverage, 0 < self.min_coverage <= 1, "more than 0, and 1 or less"),
        ]
        for name, value, holds, expected in ranges:
            if not holds:
                raise InputError(f"reconstruction_score.{name} = {value}: expected {expected}")


class PairNearness(NamedTuple):
    """Cosines and ranks of a pair's decoder rows with the direction of the child's concept: `[b]` each.

    A row's rank is 1 plus the number of decoder rows, including dead ones, with a larger cosine.
    """

    cos_child: Float32[Tensor, "b"]
    cos_parent: Float32[Tensor, "b"]
    rank_child: Int[Tensor, "b"]
    rank_parent: Int[Tensor, "b"]

    @property
    def score(self) -> Float32[Tensor, "b"]:
        """S_res (Eq. 5)."""
        return torch.minimum(self.cos_child, self.cos_parent)

    @property
    def worst_rank(self) -> Int[Tensor, "b"]:
        """The larger of the two ranks: a pair is a hit if it is small enough."""
        return torch.maximum(self.rank_child, self.rank_parent)

    @property
    def hit(self) -> Bool[Tensor, "b"]:
        """Whether child and parent are both among the TOP decoder rows by cosine."""
        return self.worst_rank <= TOP


def pair_nearness(
    directions: Float[Tensor, "b d_in"],
    decoder: Float[Tensor, "d_sae d_in"],
    parents: Int[Tensor, "b"],
    children: Int[Tensor, "b"],
) -> PairNearness:
    """Cosines and ranks for pairs of a parent and a child, computed on the decoder's device and returned on the CPU.

    directions: unit direction of each pair's child.
    decoder:    unit decoder rows.
    """
    found: list[tuple[Tensor, ...]] = []
    for part in torch.arange(len(children)).split(max(_BLOCK_ENTRIES // max(len(decoder), 1), 1)):
        cosine = directions[part].to(decoder.device, torch.float32) @ decoder.float().T
        of_child, of_parent = (cosine.gather(1, i[part, None].to(cosine.device)) for i in (children, parents))
        ranks = (1 + (cosine > own).sum(1) for own in (of_child, of_parent))
        found.append((of_child[:, 0].cpu(), of_parent[:, 0].cpu(), *(rank.cpu() for rank in ranks)))
    return PairNearness(*(torch.cat(column) for column in zip(*found, strict=True)))


def nearest_others(
    directions: Float[Tensor, "b d_in"], decoder: Float[Tensor, "d_sae d_in"], children: Int[Tensor, "b"]
) -> Int[Tensor, "b"]:
    """For each child, the other feature whose decoder row has the largest cosine with the child's direction.

    directions: unit direction of each child. decoder: unit decoder rows, at least two.
    """
    found = [torch.zeros(0, dtype=torch.int64)]
    for part in torch.arange(len(children)).split(max(_BLOCK_ENTRIES // max(len(decoder), 1), 1)):
        cosine = directions[part].to(decoder.device, torch.float32) @ decoder.float().T
        cosine.scatter_(1, children[part, None].to(cosine.device), -torch.inf)
        found.append(cosine.argmax(1).cpu())
    return torch.cat(found)


def reconstruction_score(subject: Subject, config: ReconstructionScoreConfig) -> Record:
    """The record "reconstruction_score", over edges whose child fires `min_count` times or more.

    Raises InputError if `config.parents` names a feature that the SAE does not have.
    """
    d_sae = subject.forest.d_sae
    for p in config.parents:
        if not 0 <= p < d_sae:
            raise InputError(f"reconstruction_score.parents: feature {p}: expected 0 to {d_sae - 1}")
    edges = subject.forest.edges
    measurable = subject.probes.defined(edges[1]) & (subject.pairs.marginals.n[edges[1]] >= config.min_count)
    measurable = edges[:, measurable]
    drawn = torch.randperm(measurable.shape[1], generator=torch.Generator().manual_seed(config.seed))
    parents, children = measurable[:, drawn[: config.max_pairs].sort().values]
    focus = [_focus(p, subject, config) for p in config.parents or _automatic(measurable[0], subject, config)]
    # Train all probes together, so that they share the passes over the activations.
    subject.probes.directions(torch.cat([children, *(f.children for f in focus)]))
    pairs, found, scores = _scored(parents, children, subject)
    if edges.shape[1]:
        why = f"no edge has a child that fires {config.min_count} times or more, but not on all activations"
    else:
        why = "the forest has no edges: every feature hangs from the root"
    return Record(
        "reconstruction_score",
        found.value,
        found.interval,
        unit="cosine",
        tokens=len(subject.rows),
        settings={
            **subject.settings,
            "config": asdict(config),
            "probe": asdict(subject.probes.config),
            "interval_method": interval_method("parents"),
        },
        detail={
            "null": undefined(found.value, dict.fromkeys(found.value, why), len(subject.rows)),
            "units": dict.fromkeys(("hits", "coverage", "near_not_covering"), "fraction"),
            "edges": {"all": edges.shape[1], "measurable": measurable.shape[1], "measured": len(children)},
            "pairs": pairs,
            "focus": [_shown(f, subject, config) for f in focus],
        },
        replicates=found.replicates,
        edge_scores={name: EdgeScores(children, score.double()) for name, score in scores.items()},
    )


def _scored(
    parents: Int[Tensor, "b"], children: Int[Tensor, "b"], subject: Subject
) -> tuple[list[dict[str, Any]], Estimate, dict[str, Float[Tensor, "b"]]]:
    """The edges one by one, the means over them, and the scores by which edges are compared with those of a null."""
    decoder = F.normalize(subject.sae.W_dec.detach().float())
    trained = subject.probes.directions(children)
    computed = trained
    if len(children) and subject.probes.config.method != "lda":
        config = replace(subject.probes.config, method="lda")
        computed = Probes(subject.x, subject.pairs, config).directions(children)
    near, near_lda = (pair_nearness(d, decoder, parents, children) for d in (trained, computed))
    nearest = nearest_others(trained, decoder, children)
    scored = [
        score.gather(1, torch.stack([parents[rows], nearest[rows]], 1))
        for rows, score in _with_rows(subject.pairs.scores("coverage", children))
    ]
    coverage, of_nearest = torch.cat([torch.zeros(0, 2, dtype=torch.float64), *scored]).T
    columns = {
        "parent": parents,
        "child": children,
        "n": subject.pairs.marginals.n[children],
        "coverage": coverage,
        **near._asdict(),
        "nearest_other": nearest,
        "coverage_by_nearest_other": of_nearest,
        "s_res": near.score,
        "s_res_lda": near_lda.score,
        "auroc": subject.probes.quality(children).auroc,
    }
    means = {
        **{name: columns[name] for name in ("s_res", "cos_child", "cos_parent")},
        "hits": near.hit,
        "coverage": coverage,
        "near_not_covering": of_nearest < _COVERING,
        "lda_s_res": near_lda.score,
        "lda_cosine": (trained * computed).sum(1),
    }
    scores = {
        "s_res": near.score,
        "hits": -near.worst_rank.double(),
        "near_not_covering": -of_nearest,
        "lda_s_res": near_lda.score,
    }
    return _entries(columns), _means(parents, means, subject.sae), scores


def _with_rows(
    blocks: Iterator[tuple[Int[Tensor, "b"], Float64[Tensor, "b d_sae"]]],
) -> Iterator[tuple[slice, Float64[Tensor, "b d_sae"]]]:
    """Blocks of scores, each with the rows that it covers."""
    first = 0
    for features, score in blocks:
        yield slice(first, first + len(features)), score
        first += len(features)


def _entries(columns: Mapping[str, Tensor]) -> list[dict[str, Any]]:
    rows = zip(*(column.tolist() for column in columns.values()), strict=True)
    return [dict(zip(columns, row, strict=True)) for row in rows]


def _means(parents: Int[Tensor, "b"], columns: Mapping[str, Tensor], sae: SAE) -> Estimate:
    """Means over edges. Children share their parent's firings, so parents are resampled with all their children."""
    families, family = np.unique(parents.numpy(), return_inverse=True)
    edges = np.bincount(family)
    totals = {name: np.bincount(family, column.double().numpy()) for name, column in columns.items()}

    def formula(weights: FloatArray) -> dict[str, FloatArray]:
        return {name: weights @ total / (weights @ edges) for name, total in totals.items()}

    return estimate(formula, len(families), units_of_sae("parents", sae, families))


# ---- parents shown in detail


class _Focus(NamedTuple):
    """A parent to show in detail, with the children to show and their coverage."""

    parent: int
    children: Int[Tensor, "b"]
    coverage: Float64[Tensor, "b"]


def _focus(parent: int, subject: Subject, config: ReconstructionScoreConfig) -> _Focus:
    """The parent's children with the highest coverage, in the forest or not."""
    top = subject.pairs.top_children("coverage", torch.tensor([parent]), config.children, config.min_count)
    ids, coverage = top.ids[0], top.score[0]
    shown = (coverage >= config.min_coverage) & subject.probes.defined(ids)
    return _Focus(parent, ids[shown], coverage[shown])


def _automatic(
    edge_parents: Int[Tensor, "e"], subject: Subject, config: ReconstructionScoreConfig
) -> tuple[int, ...]:
    """The parent with the most measurable children, and the densest feature that has a child to show."""
    largest = [int(edge_parents.bincount().argmax())] if len(edge_parents) else []
    n = subject.pairs.marginals.n
    densest = n.sort(descending=True, stable=True).indices[:_DENSEST]
    for p in densest[n[densest] > 0].tolist():
        if len(_focus(p, subject, config).children):
            return tuple(dict.fromkeys([*largest, p]))
    return tuple(largest)


def _shown(focus: _Focus, subject: Subject, config: ReconstructionScoreConfig) -> dict[str, Any]:
    """One entry of `detail["focus"]`."""
    parent, children, coverage = focus
    decoder = F.normalize(subject.sae.W_dec.detach().float())
    directions = subject.probes.directions(children)
    near = pair_nearness(directions, decoder, torch.full_like(children, parent), children)
    entries = _entries(
        {
            "child": children,
            "n": subject.pairs.marginals.n[children],
            "coverage": coverage,
            **near._asdict(),
            "s_res": near.score,
        }
    )
    for entry, direction in zip(entries, directions, strict=True):
        cosine = (decoder.float() @ direction.to(decoder.device)).cpu().numpy()
        counts, edges = np.histogram(cosine.clip(-1, 1), bins=_BINS, range=(-1, 1))
        entry["histogram"] = {"edges": edges.tolist(), "counts": counts.tolist()}
    n = int(subject.pairs.marginals.n[parent])
    shown = {"parent": parent, "density": n / max(len(subject.rows), 1), "children": entries}
    if not entries:
        shown["why"] = (
            f"no feature that fires {config.min_count} times or more, and not on all activations, "
            f"is covered to {config.min_coverage:g} or more"
        )
    return shown


def _memory(size: Size) -> int:
    probes = probes_memory(size.n_tokens, size.d_in, size.n_probes)
    return size.decoder + max(cosines_memory(size.d_sae), probes)


SPEC = Study(
    name="reconstruction_score",
    needs=frozenset({"firings", "activations", "probes", "forest"}),
    transcoders=False,  # it compares decoder rows with input activations
    sets=("paper", "truth"),
    config=ReconstructionScoreConfig,
    run=reconstruction_score,
    nulls=("s_res", "hits", "near_not_covering", "lda_s_res"),
    columns=(Column(HIERARCHY, "s_res", "S_res of its edges", "↑"),),
    memory=_memory,
    version=4,
)
