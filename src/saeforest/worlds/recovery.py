"""How much of a known tree an SAE has recovered (docs/spec/synthetic.md#recovery): features, edges, and absorption.

There are `m` true features with directions `G [m, d]` and a true forest, and `F` latents with decoder rows `D [F, d]`
and a learned forest, the SAE's own or inferred. Only latents that fire on the sample are considered. Each true feature
is assigned at most one latent, so that the sum of cosines is maximal; it is *matched* if its cosine reaches a bound.
An undefined value (no learned edge, a feature that never fires) is None, never NaN.
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
from ..structure.forest import Forest
from .edges import EdgeScores, edge_scores, named_scores
from .nulls import means, shuffles
from .world import Sample, World

MATCHED, LOOSELY_MATCHED = 0.8, 0.6
_TOP = 5


@dataclass(frozen=True)
class Absorption:
    """How often parents are silent when a child fires: means over true edges whose parent is matched.

    See docs/spec/synthetic.md#true-absorption.
    """

    edges: int
    """Number of edges that are averaged over: those whose child fires on the sample."""
    silent: float | None
    """Mean of `abs_pc`: how often the parent's latent is silent when parent and child are active."""
    silent_excess: float | None
    """Mean of `abs_pc - miss_p` over edges that have both; `miss_p` is how often the parent's latent is silent when the
    parent is active but none of its children."""
    encoder_hole: float | None
    """Mean cosine between the parent's encoder row and the child's true direction; negative values mean absorption."""
    hedging: float | None
    """Mean cosine between the parent's decoder row and the child's true direction; positive values mean hedging."""


@dataclass(frozen=True)
class Recovery:
    """All recovery scores (docs/spec/synthetic.md#recovery). Fractions are from 0 to 1.

    `dataclasses.asdict` turns it into a plain dict.
    """

    features: int
    """Number of true features, m."""
    latents: int
    """Number of latents, F."""
    alive: int
    """Number of latents that fire on the sample."""
    mcc: float | None
    """Mean cosine over the min(m, alive) assigned pairs; a negative cosine counts as 0."""
    mcc_truth: float
    """Sum of these cosines divided by m, so that missing features count as 0."""
    mcc_abs: float | None
    """Mean |cosine| over the assignment that maximizes it, as in other work."""
    mcc_abs_truth: float
    """Sum of these |cosines| divided by m."""
    uniqueness: float | None
    """Number of distinct true features that are nearest (by cosine) to a live latent, divided by the live latents."""
    latent_precision: float | None
    """Mean precision of live latents as detectors of the true feature with the largest |cosine|; 0 if undefined."""
    latent_recall: float | None
    """Mean recall of live latents as such detectors."""
    latent_f1: float | None
    """Mean F1 of live latents as such detectors."""
    edges: EdgeScores
    """Scores of edges with features matched at a cosine of 0.8 or more."""
    edges_loose: EdgeScores
    """Scores of edges with features matched at a cosine of 0.6 or more."""
    absorption: Absorption
    hierarchy: float | None
    """Fraction of the learned edges with a matched child (0.8) whose two ends are both among the five decoder rows
    nearest to the child's true direction."""
    hierarchy_mean: float | None
    """The same with the mean direction of the child's concept on the sample, over children that fire on some of it but
    not on all."""
    hierarchy_pairs: int
    """Number of learned edges with a matched child."""
    coverage_mean: float | None
    """Mean of S_cov over learned edges: the fraction of the samples on which the child fires where its parent fires."""
    coverage_min: float | None
    """Minimum of S_cov over learned edges."""
    coverage_edges: int
    """Number of learned edges whose child fires."""
    shuffled: dict[str, float | None]
    """The null of every score that depends on the forest, by the names of `named_scores`: its mean over shuffles of the
    parents, with the same latents, matching and code (docs/spec/synthetic.md#nulls)."""


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
    """Score how much of a world's tree an SAE has recovered.

    decoder, encoder: rows of the SAE. code: `[n, k]` its code of `sample.x`. forest: its own or an inferred one.
    threshold: a latent is active if its value exceeds this.

    Raises InputError if code, forest and sample do not fit together.
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
    strict, loose = close.at(MATCHED), close.at(LOOSELY_MATCHED)
    by_own = _TopFive(decoder, directions, strict)
    by_mean = _TopFive(decoder, _mean_directions(sample, truth_on), strict)

    def of(learned: Forest) -> dict[str, float | None]:
        coverage = _coverage(latent_on, learned)
        return named_scores(
            edge_scores(world.spec, learned, strict, alive, MATCHED),
            edge_scores(world.spec, learned, loose, alive, LOOSELY_MATCHED),
        ) | {
            "hierarchy": by_own(learned)[0],
            "hierarchy_mean": by_mean(learned)[0],
            "coverage_mean": _mean(coverage),
            "coverage_min": _least(coverage),
        }

    coverage = _coverage(latent_on, forest)
    hierarchy, pairs = by_own(forest)
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
        edges=edge_scores(world.spec, forest, strict, alive, MATCHED),
        edges_loose=edge_scores(world.spec, forest, loose, alive, LOOSELY_MATCHED),
        absorption=_absorption(world.spec.edges, truth_on, latent_on, directions, decoder, encoder, strict),
        hierarchy=hierarchy,
        hierarchy_mean=by_mean(forest)[0],
        hierarchy_pairs=pairs,
        coverage_mean=_mean(coverage),
        coverage_min=_least(coverage),
        coverage_edges=len(coverage),
        shuffled=means([of(learned) for learned in shuffles(forest, world.seed)]),
    )


# -- matching


class _Matching(NamedTuple):
    """The latent assigned to each true feature (-1 for none), and the score of the pair."""

    latent: Int[Tensor, "m"]
    score: Float[Tensor, "m"]

    @property
    def total(self) -> float:
        return float(self.score.double().sum())

    @property
    def mean(self) -> float | None:
        return _mean(self.score[self.latent >= 0])

    def at(self, bound: float) -> Int[Tensor, "m"]:
        """The latent of each true feature whose score is at least `bound`; -1 for the others."""
        return torch.where(self.score >= bound, self.latent, -1)


def _assign(score: Float[Tensor, "alive m"], alive: Bool[Tensor, "F"]) -> _Matching:
    """The one-to-one assignment with the largest sum of scores."""
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


def _least(values: Tensor) -> float | None:
    return float(values.min()) if len(values) else None


# -- which features are active on which samples, as sparse columns of 0 and 1


def _columns(code: SparseCode, width: int, threshold: float = 0.0) -> csc_array:
    """`[n, width]` with 1 where a feature is active."""
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
    """Mean precision, recall and F1 of live latents as detectors of their nearest true features."""
    if not len(cosine):
        return None, None, None
    wanted = truth_on[:, cosine.abs().argmax(1).numpy()]
    hits, fired, present = _count(latent_on.multiply(wanted)), _count(latent_on), _count(wanted)
    return (
        _mean(hits / fired.clamp(min=1)),
        _mean(hits / present.clamp(min=1)),
        _mean(2 * hits / (fired + present).clamp(min=1)),
    )


# -- absorption, hierarchy, coverage


def _absorption(
    edges: Int[Tensor, "2 e"],
    truth_on: csc_array,
    latent_on: csc_array,
    directions: Float[Tensor, "m d"],
    decoder: Float[Tensor, "F d"],
    encoder: Float[Tensor, "F d"],
    latent: Int[Tensor, "m"],
) -> Absorption:
    parent, child = edges[:, latent[edges[0]] >= 0]
    reader = latent[parent]
    parents_on, readers_on = truth_on[:, parent.numpy()], latent_on[:, reader.numpy()]

    both = parents_on.multiply(truth_on[:, child.numpy()])
    lone = parents_on - parents_on.multiply(
        _some_child_on(edges, truth_on, len(directions))[:, parent.numpy()]
    )
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


def _some_child_on(edges: Int[Tensor, "2 e"], truth_on: csc_array, m: int) -> csc_array:
    """`[n, m]` with 1 where some child of the feature is active."""
    parent, child = edges.numpy()
    above = csc_array((np.ones(len(child), dtype=np.int32), (child, parent)), shape=(m, m))
    children = csc_array(truth_on @ above)
    children.data[:] = 1
    return children


def _silence(where: csc_array, readers_on: csc_array) -> Float[Tensor, "e"]:
    """How often each column of `readers_on` is 0 when that of `where` is 1; NaN if the latter never is."""
    return 1 - _count(where.multiply(readers_on)) / _count(where)


class _TopFive:
    """The top-5 rule by given directions of true features (docs/spec/synthetic.md#true-hierarchy).

    directions: a row of NaN stands for a feature without a direction. latent: the latent of each true feature.

    Called with a forest, it returns the fraction of hits among the learned edges whose child is matched and has a
    direction, and their number. Ranks are among all latents, dead ones included.
    """

    def __init__(
        self, decoder: Float[Tensor, "F d"], directions: Float[Tensor, "m d"], latent: Int[Tensor, "m"]
    ) -> None:
        features = ((latent >= 0) & ~directions.isnan().any(1)).nonzero().flatten()
        self._row = torch.full((len(decoder),), -1)
        self._row[latent[features]] = torch.arange(len(features))
        self._cosine = directions[features] @ decoder.T

    def __call__(self, learned: Forest) -> tuple[float | None, int]:
        pairs = learned.edges[:, self._row[learned.edges[1]] >= 0]
        cosine = self._cosine[self._row[pairs[1]]]
        nearer = [(cosine > cosine.gather(1, end[:, None])).sum(1) for end in pairs]
        return _mean((nearer[0] < _TOP) & (nearer[1] < _TOP)), pairs.shape[1]


def _mean_directions(sample: Sample, truth_on: csc_array) -> Float[Tensor, "m d"]:
    """Unit directions of the mean where a feature is active less the mean where it is not; NaN where one is missing."""
    n = _count(truth_on)[:, None]
    sums = torch.from_numpy(np.asarray(truth_on.T @ sample.x.double().numpy()))
    others = sample.x.double().sum(0) - sums
    return F.normalize(sums / n - others / (len(sample) - n)).float()


def _coverage(latent_on: csc_array, learned: Forest) -> Float[Tensor, "e"]:
    """`[e]` S_cov of every learned edge whose child fires."""
    fired = _count(latent_on)
    parent, child = learned.edges[:, fired[learned.edges[1]] > 0]
    both = latent_on[:, parent.numpy()].multiply(latent_on[:, child.numpy()])
    return _count(both) / fired[child]
