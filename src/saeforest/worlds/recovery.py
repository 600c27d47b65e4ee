"""How much of a known tree an SAE has found: features, edges, absorption (docs/spec/synthetic.md#recovery).

True features are `g` of `m`, with directions `G [m, d]` and a true forest; latents are `i` of `F`, with decoder rows
`D [F, d]` and a learned forest, from the SAE itself or inferred. Only latents that fire on the sample count. Each
true feature gets at most one latent by the assignment that maximises the summed cosine; it is *matched* where that
cosine reaches a bound. A value that is undefined (no learned edge, a feature that never fires) is None, never NaN.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.sparse import csc_array
from torch import Tensor

from ..errors import InputError
from ..sparse_code import SparseCode
from ..structure.forest import ROOT, Forest
from .world import Sample, World

MATCHED, LOOSELY_MATCHED = 0.8, 0.6
_TOP = 5


@dataclass(frozen=True)
class EdgeScores:
    """The learned edges against the true ones; both without edges from the root (docs/spec/synthetic.md#edges)."""

    cosine: float
    """From which cosine on a true feature counts as matched."""
    matched: int
    """True features with a latent."""
    true_edges: int
    learned_edges: int
    """Between latents that are alive."""
    learned_matched: int
    """Of these, between latents that are matched."""
    precision: float | None
    """Of the learned edges between matched latents, the share that are true."""
    precision_all: float | None
    """Of all learned edges between live latents; one to an unmatched latent is false."""
    recall: float | None
    """Of the true edges; one with an unmatched end is missed."""
    f1: float | None
    """Of precision and recall."""
    ancestor_precision: float | None
    """As `precision`, of pairs of an ancestor and a descendant: a skipped level costs nothing."""
    ancestor_recall: float | None
    ancestor_f1: float | None
    parent_accuracy: float | None
    """Of the matched features that have a true parent, the share whose latent hangs from the parent's latent."""
    root_rate: float | None
    """Of the same, the share whose latent hangs from the root."""


@dataclass(frozen=True)
class Absorption:
    """Parents that fall silent where a child fires, over true edges (docs/spec/synthetic.md#true-absorption)."""

    edges: int
    """Over how many edges: those whose child fires on the sample."""
    silent: float | None
    """Mean of `abs_pc`: how often the parent's latent is silent where parent and child are active."""
    silent_excess: float | None
    """Mean of `abs_pc - miss_p`, over edges that have both; `miss_p` is the same where no child of the parent is."""
    encoder_hole: float | None
    """Mean cosine of the parent's encoder row with the child's true direction; negative: absorption."""
    hedging: float | None
    """Mean cosine of the parent's decoder row with the child's true direction; positive: hedging."""


@dataclass(frozen=True)
class Recovery:
    """Every score of docs/spec/synthetic.md#recovery. `dataclasses.asdict` makes it plain; shares are from 0 to 1."""

    features: int
    """True features, m."""
    latents: int
    alive: int
    """Latents that fire on the sample."""
    mcc: float | None
    """Mean cosine over the min(m, alive) assigned pairs; a negative cosine is no recovery and counts as 0."""
    mcc_truth: float
    """The same sum over all m true features, so that a small dictionary cannot hide what it lacks."""
    mcc_abs: float | None
    """Mean |cosine| over the pairs that maximise it, as others report it."""
    mcc_abs_truth: float
    uniqueness: float | None
    """Different true features among the nearest (by cosine) of all live latents, a live latent."""
    latent_precision: float | None
    """Mean over live latents, each as a detector of the true feature of the largest |cosine|; 0 where undefined."""
    latent_recall: float | None
    latent_f1: float | None
    edges: EdgeScores
    """Matched from cosine 0.8 on."""
    edges_loose: EdgeScores
    """Matched from cosine 0.6 on."""
    absorption: Absorption
    hierarchy: float | None
    """Of the learned edges whose child is matched (0.8), the share on which both ends are among the five decoder rows
    nearest to the child's true direction."""
    hierarchy_pairs: int
    coverage_mean: float | None
    """S_cov of learned edges: of the samples on which the child fires, the share on which its parent does."""
    coverage_min: float | None
    coverage_edges: int
    """Learned edges whose child fires."""


def recover(
    world: World,
    sample: Sample,
    *,
    decoder: Float[Tensor, "F d"],
    encoder: Float[Tensor, "F d"],
    code: SparseCode,
    forest: Forest,
    threshold: float = 0.0,
) -> Recovery:
    """Scores an SAE of rows `decoder` and `encoder` and learned `forest` by its `code [n, k]` of a sample's `x`.

    A latent is active where it exceeds `threshold`. Raises InputError where code, forest and sample do not belong
    together.
    """
    if code.values.shape[:-1] != (len(sample),) or forest.d_sae != len(decoder):
        raise InputError(
            f"a code of shape {tuple(code.values.shape)} and a forest of {forest.d_sae} features, "
            f"for {len(sample)} samples and {len(decoder)} decoder rows"
        )
    code = SparseCode(code.values.detach().cpu(), code.ids.cpu())
    directions, decoder, encoder = (_unit(rows) for rows in (world.vectors, decoder, encoder))
    alive = code.fired(forest.d_sae, threshold) > 0
    cosine = decoder[alive] @ directions.T
    close = _assign(cosine.clamp(min=0), alive)
    far = _assign(cosine.abs(), alive)

    latent_on = _columns(code, forest.d_sae, threshold)
    truth_on = _columns(sample.code, world.m)
    detector = _detection(latent_on[:, _indices(alive)], truth_on, cosine)
    strict = close.at(MATCHED)
    hierarchy, pairs = _hierarchy(decoder, directions, forest, strict)
    coverage = _coverage(code, forest, threshold)
    return Recovery(
        features=world.m,
        latents=forest.d_sae,
        alive=int(alive.sum()),
        mcc=close.mean,
        mcc_truth=close.total / world.m,
        mcc_abs=far.mean,
        mcc_abs_truth=far.total / world.m,
        uniqueness=len(cosine.argmax(1).unique()) / len(cosine) if len(cosine) else None,
        latent_precision=detector[0],
        latent_recall=detector[1],
        latent_f1=detector[2],
        edges=_edge_scores(world.forest, forest, strict, alive, MATCHED),
        edges_loose=_edge_scores(world.forest, forest, close.at(LOOSELY_MATCHED), alive, LOOSELY_MATCHED),
        absorption=_absorption(world.forest, truth_on, latent_on, directions, decoder, encoder, strict),
        hierarchy=hierarchy,
        hierarchy_pairs=pairs,
        coverage_mean=_mean(coverage),
        coverage_min=float(coverage.min()) if len(coverage) else None,
        coverage_edges=len(coverage),
    )


# -- matching


class _Matching(NamedTuple):
    """The latent assigned to each true feature (-1: none), and how near it is."""

    latent: Int[Tensor, "m"]
    score: Float[Tensor, "m"]

    @property
    def total(self) -> float:
        return float(self.score.double().sum())

    @property
    def mean(self) -> float | None:
        return _mean(self.score[self.latent >= 0])

    def at(self, bound: float) -> Int[Tensor, "m"]:
        """The latent of each true feature matched at `bound` or nearer, -1 for the others."""
        return torch.where(self.score >= bound, self.latent, -1)


def _assign(score: Float[Tensor, "alive m"], alive: Bool[Tensor, "F"]) -> _Matching:
    """The one-to-one assignment of the largest summed score."""
    rows, columns = (torch.from_numpy(side) for side in linear_sum_assignment(score.numpy(), maximize=True))
    m = score.shape[1]
    found = _Matching(torch.full((m,), -1), torch.zeros(m))
    found.latent[columns] = alive.nonzero().flatten()[rows]
    found.score[columns] = score[rows, columns]
    return found


def _unit(rows: Float[Tensor, "r d"]) -> Float[Tensor, "r d"]:
    return F.normalize(rows.detach().cpu().float(), dim=1)


def _mean(values: Tensor) -> float | None:
    return float(values.double().mean()) if len(values) else None


# -- who is active where, as sparse columns of 0 and 1


def _columns(code: SparseCode, width: int, threshold: float = 0.0) -> csc_array:
    """`[n, width]`: 1 where a feature is active."""
    on = code.active(threshold)
    rows = on.nonzero(as_tuple=True)[0].numpy()
    ones = np.ones(len(rows), dtype=np.int32)
    return csc_array((ones, (rows, code.ids[on].numpy())), shape=(len(code.values), width))


def _indices(mask: Bool[Tensor, "F"]) -> NDArray[np.int64]:
    return mask.nonzero().flatten().numpy()


def _count(columns: csc_array) -> Float[Tensor, "c"]:
    return torch.from_numpy(np.asarray(columns.sum(axis=0), dtype=np.float64))


def _detection(
    latent_on: csc_array, truth_on: csc_array, cosine: Float[Tensor, "alive m"]
) -> tuple[float | None, float | None, float | None]:
    """Mean precision, recall and F1 of live latents, each as a detector of its nearest true feature."""
    if not len(cosine):
        return None, None, None
    wanted = truth_on[:, cosine.abs().argmax(1).numpy()]
    hits, fired, present = _count(latent_on.multiply(wanted)), _count(latent_on), _count(wanted)
    return (
        _mean(hits / fired.clamp(min=1)),
        _mean(hits / present.clamp(min=1)),
        _mean(2 * hits / (fired + present).clamp(min=1)),
    )


# -- edges


def _edge_scores(
    truth: Forest, learned: Forest, latent: Int[Tensor, "m"], alive: Bool[Tensor, "F"], cosine: float
) -> EdgeScores:
    matched = torch.zeros_like(alive)
    matched[latent[latent >= 0]] = True
    among_live = _within(learned.edges, alive)
    among_matched = _within(learned.edges, matched)
    true_found = _both_known(latent[truth.edges])
    hits = _shared(true_found, among_matched, learned.d_sae)
    precision, recall, f1 = _precision_recall_f1(hits, among_matched.shape[1], truth.edges.shape[1])

    true_pairs, learned_pairs = _ancestor_pairs(truth), _within(_ancestor_pairs(learned), matched)
    ancestor_hits = _shared(_both_known(latent[true_pairs]), learned_pairs, learned.d_sae)
    ancestors = _precision_recall_f1(ancestor_hits, learned_pairs.shape[1], true_pairs.shape[1])

    true_parent, child = truth.edges[:, latent[truth.edges[1]] >= 0]
    chosen = learned.parent[latent[child]]
    return EdgeScores(
        cosine=cosine,
        matched=int(matched.sum()),
        true_edges=truth.edges.shape[1],
        learned_edges=among_live.shape[1],
        learned_matched=among_matched.shape[1],
        precision=precision,
        precision_all=hits / among_live.shape[1] if among_live.shape[1] else None,
        recall=recall,
        f1=f1,
        ancestor_precision=ancestors[0],
        ancestor_recall=ancestors[1],
        ancestor_f1=ancestors[2],
        # An unmatched parent's latent is -1 as the root is: hanging from the root must not pass for hanging from it.
        parent_accuracy=_mean((chosen == latent[true_parent]) & (chosen != ROOT)),
        root_rate=_mean(chosen == ROOT),
    )


def _within(pairs: Int[Tensor, "2 a"], allowed: Bool[Tensor, "F"]) -> Int[Tensor, "2 b"]:
    return pairs[:, allowed[pairs].all(0)]


def _both_known(pairs: Int[Tensor, "2 a"]) -> Int[Tensor, "2 b"]:
    return pairs[:, (pairs >= 0).all(0)]


def _shared(a: Int[Tensor, "2 a"], b: Int[Tensor, "2 b"], width: int) -> int:
    """How many pairs both have."""
    return int(torch.isin(a[0] * width + a[1], b[0] * width + b[1]).sum())


def _precision_recall_f1(
    hits: int, learned: int, true: int
) -> tuple[float | None, float | None, float | None]:
    return (
        hits / learned if learned else None,
        hits / true if true else None,
        2 * hits / (learned + true) if true else None,
    )


def _ancestor_pairs(forest: Forest) -> Int[Tensor, "2 pairs"]:
    """All (ancestor, descendant) pairs, without the root."""
    pairs, above, below = [forest.edges], *forest.edges
    while len(above):
        above = forest.parent[above]
        below, above = below[above != ROOT], above[above != ROOT]
        pairs.append(torch.stack([above, below]))
    return torch.cat(pairs, 1)


# -- absorption, hierarchy, coverage


def _absorption(
    truth: Forest,
    truth_on: csc_array,
    latent_on: csc_array,
    directions: Float[Tensor, "m d"],
    decoder: Float[Tensor, "F d"],
    encoder: Float[Tensor, "F d"],
    latent: Int[Tensor, "m"],
) -> Absorption:
    parent, child = truth.edges[:, latent[truth.edges[0]] >= 0]
    reader = latent[parent]
    parents_on, readers_on = truth_on[:, parent.numpy()], latent_on[:, reader.numpy()]

    both = parents_on.multiply(truth_on[:, child.numpy()])
    lone = parents_on - parents_on.multiply(_some_child_on(truth, truth_on)[:, parent.numpy()])
    silent, missed = _silence(both, readers_on), _silence(lone, readers_on)
    measured = ~silent.isnan()
    excess = silent - missed
    along = (encoder[reader] * directions[child]).sum(1)
    return Absorption(
        edges=int(measured.sum()),
        silent=_mean(silent[measured]),
        silent_excess=_mean(excess[~excess.isnan()]),
        encoder_hole=_mean(along[encoder[reader].any(1)]),
        hedging=_mean((decoder[reader] * directions[child]).sum(1)),
    )


def _some_child_on(truth: Forest, truth_on: csc_array) -> csc_array:
    """`[n, m]`: 1 where a child of the feature is active."""
    parent, child = truth.edges.numpy()
    above = csc_array(
        (np.ones(len(child), dtype=np.int32), (child, parent)), shape=(truth.d_sae, truth.d_sae)
    )
    children = csc_array(truth_on @ above)
    children.data[:] = 1
    return children


def _silence(where: csc_array, readers_on: csc_array) -> Float[Tensor, "e"]:
    """How often each column of `readers_on` is 0 where that of `where` is 1; NaN where it never is."""
    return 1 - _count(where.multiply(readers_on)) / _count(where)


def _hierarchy(
    decoder: Float[Tensor, "F d"],
    directions: Float[Tensor, "m d"],
    learned: Forest,
    latent: Int[Tensor, "m"],
) -> tuple[float | None, int]:
    """The top-5 rule with the child's true direction (docs/spec/synthetic.md#true-hierarchy), and the number of pairs.

    Ranks are among all latents, dead ones too. All learned edges with a matched child are pairs, none is sampled.
    """
    feature = torch.full((learned.d_sae,), -1)
    feature[latent[latent >= 0]] = (latent >= 0).nonzero().flatten()
    pairs = learned.edges[:, feature[learned.edges[1]] >= 0]
    cosine = directions[feature[pairs[1]]] @ decoder.T
    nearer = [(cosine > cosine.gather(1, end[:, None])).sum(1) for end in pairs]
    return _mean((nearer[0] < _TOP) & (nearer[1] < _TOP)), pairs.shape[1]


def _coverage(code: SparseCode, learned: Forest, threshold: float) -> Float[Tensor, "e"]:
    """S_cov of every learned edge whose child fires."""
    fired = code.fired(learned.d_sae, threshold)
    with_parent = code.ids[code.with_parent(learned.parent, threshold)].bincount(minlength=learned.d_sae)
    measured = (learned.parent != ROOT) & (fired > 0)
    return with_parent[measured].double() / fired[measured].double()
