"""Matching the features of two SAEs, and their edges, beside what chance gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ...seeds import seeded
from ...structure.forest import ROOT, Forest
from ...structure.shuffled import shuffled_within_levels
from ..answers.compare import Shared
from ..answers.whole import NullValue

#: Cosines of decoder rows from which two features match.
THRESHOLDS = (0.5, 0.7, 0.9)
SHUFFLES = 200
# Rows that are compared at once, and those that a null is measured on.
_ROWS, _SAMPLE = 2048, 4096


@dataclass(frozen=True)
class Compared:
    """An SAE to be compared: its decoder rows of length 1, its forest, and which features fire."""

    rows: Float[Tensor, "f d"]
    forest: Forest
    alive: Bool[Tensor, "f"]


class Nearest(NamedTuple):
    """For each feature of one SAE, the nearest of another: its cosine, and which one it is."""

    cos: Float[Tensor, "f"]
    id: Int[Tensor, "f"]


def nearest(own: Float[Tensor, "a d"], other: Float[Tensor, "b d"]) -> tuple[Nearest, Nearest]:
    """For each row of `own` the nearest row of `other`, and the other way round; of equals, the first.

    Rows have length 1.
    """
    ahead = [torch.empty(0), torch.empty(0, dtype=torch.int64)]
    back = Nearest(torch.full((len(other),), -2.0), torch.zeros(len(other), dtype=torch.int64))
    for start in range(0, len(own), _ROWS):
        cos = own[start : start + _ROWS] @ other.T
        ahead = [torch.cat(pair) for pair in zip(ahead, cos.max(1), strict=True)]
        best = cos.max(0)
        nearer = best.values > back.cos
        back = Nearest(
            torch.where(nearer, best.values, back.cos), torch.where(nearer, best.indices + start, back.id)
        )
    return Nearest(*ahead), back


def alike(rows: Float[Tensor, "n d"], n: int, generator: torch.Generator) -> Float[Tensor, "n_drawn d"]:
    """`n` random directions, normally distributed with the second moments of the rows, of length 1."""
    moments = (rows.T @ rows).double() / len(rows)
    # What keeps the matrix invertible where there are fewer rows than dimensions changes no cosine that is shown.
    moments += 1e-6 * moments.diagonal().mean() * torch.eye(len(moments), dtype=torch.float64)
    root = torch.linalg.cholesky(moments)
    drawn = torch.randn(n, len(moments), generator=generator, dtype=torch.float64) @ root.T
    return F.normalize(drawn, dim=1).to(rows.dtype)


def by_chance(
    own: Float[Tensor, "a d"], random: Float[Tensor, "b d"], generator: torch.Generator
) -> Float[Tensor, "sampled"]:
    """The largest cosines with random directions, of a sample of at most 4,096 rows."""
    sample = own[torch.randperm(len(own), generator=generator)[:_SAMPLE]]
    return nearest(sample, random)[0].cos


def kept_edges(own: Int[Tensor, "a"], other: Int[Tensor, "b"], match: Int[Tensor, "a"]) -> Bool[Tensor, "a"]:
    """Whether each feature has a parent, and the match of that is the parent of the feature's match.

    own, other: parents of the features of the two SAEs. match: for each feature of the first, one of the second.
    """
    return (own != ROOT) & (match[own.clamp(min=0)] == other[match])


def kept_by_chance(own: Int[Tensor, "a"], other: Forest, match: Int[Tensor, "a"]) -> Float[Tensor, "a"]:
    """The probability that each edge is kept if the other forest's parents are shuffled within their layers.

    After a shuffle, a feature has as its parent that of any other feature of its layer, with equal probability.
    """
    above, level = other.parent, other.level
    n_levels = int(level.max()) + 1
    has = above != ROOT
    in_level = torch.bincount(level[has], minlength=n_levels)
    children = torch.bincount(above[has] * n_levels + level[has], minlength=len(above) * n_levels)
    wanted = match[own.clamp(min=0)]
    at = level[match]
    share = children[wanted * n_levels + at] / in_level[at].clamp(min=1)
    return torch.where((own != ROOT) & has[match], share, 0.0)


def shared(own: Compared, other: Compared, found: Nearest, seed: int) -> tuple[Shared, ...]:
    """How much of one SAE the other one has too, by threshold. found: the nearest of the other for each feature."""
    random = alike(other.rows, max(int(other.alive.sum()), 1), seeded(seed, "random directions"))
    null_cos = by_chance(own.rows[own.alive], random, seeded(seed, "sample"))
    parent = own.forest.parent
    edge = (parent != ROOT) & own.alive & own.alive[parent.clamp(min=0)]
    kept = kept_edges(parent, other.forest.parent, found.id)
    expected = kept_by_chance(parent, other.forest, found.id)
    both = [edge & (torch.minimum(found.cos, found.cos[parent.clamp(min=0)]) >= t) for t in THRESHOLDS]
    shares = torch.empty(SHUFFLES, len(THRESHOLDS), dtype=torch.float64)
    for i in range(SHUFFLES):
        shuffled = shuffled_within_levels(other.forest, seeded(seed, "parents", i))
        again = kept_edges(parent, shuffled, found.id)
        shares[i] = torch.tensor([again[pairs].double().mean() for pairs in both])
    return tuple(
        Shared(
            threshold=least,
            n_features=int(own.alive.sum()),
            matched=_mean(found.cos[own.alive] >= least) or 0.0,
            matched_chance=_mean(null_cos >= least) or 0.0,
            n_edges=int(edge.sum()),
            n_both=int(pairs.sum()),
            kept=_mean(kept[pairs]),
            kept_chance=NullValue(_mean(expected[pairs]), _middle(share)),
        )
        for least, pairs, share in zip(THRESHOLDS, both, shares.T, strict=True)
    )


def _mean(values: Tensor) -> float | None:
    return float(values.double().mean()) if len(values) else None


def _middle(values: Float[Tensor, "n"]) -> tuple[float, float] | None:
    """Where the middle 95% of the values lie."""
    if bool(values.isnan().any()):
        return None
    low, high = torch.quantile(values, torch.tensor([0.025, 0.975], dtype=values.dtype)).tolist()
    return low, high
