"""The direction of every feature's concept, and its cosines with the decoder rows of child and parent (Eq. 5).

The Tree SAE paper finds the direction d*_c by training a logistic probe for each child. Here it is the LDA direction

    d*_c = (Sigma + lambda I)^-1 (mu_c - mu),

where mu_c is the mean of the activations on which c fires. This takes one mean for every feature and one covariance,
all from one pass over the data, and one linear solve, so it is affordable for all features. It is approximate: the
published numbers are those of the measure `hierarchy`. Using the covariance of all tokens rather than that within the
two classes, and mu rather than the mean of the other tokens, changes only the length of d*_c, not its direction.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Int
from torch import Tensor

from ..kernels import scatter_outer
from ..progress import progress
from .forest import ROOT

#: lambda, as a fraction of the mean variance. Compared with 32 probes trained as in the paper (a small Tree SAE on
#: SmolLM2-135M, 59k tokens): the mean S_res is 0.31 against 0.26, their correlation 0.60, and the criterion agrees on
#: 30 of the 32 edges. The cosine with the probes' directions, 0.63, falls to 0.56 at 0.01 (noise) and to 0.52 at 10.
RIDGE = 0.1
# Cosines are computed for blocks of features with all decoder rows, of about this many entries.
_BLOCK_ENTRIES = 1 << 24


class Moments:
    """Streaming moments in float64, of all activations and of those on which each feature fires."""

    def __init__(self, d_sae: int, d_in: int, device: torch.device) -> None:
        self.n = 0
        self.sum = torch.zeros(d_in, dtype=torch.float64, device=device)
        self.product = torch.zeros(d_in, d_in, dtype=torch.float64, device=device)
        self.fired_sum = torch.zeros(d_sae, d_in, dtype=torch.float64, device=device)

    def add(self, u: Float[Tensor, "n d_in"], ids: Int[Tensor, "n k"], weight: Float[Tensor, "n k"]) -> None:
        """Add activations with their active features; `weight` is 1 in a slot whose feature fires, otherwise 0."""
        u = u.double()
        self.n += len(u)
        self.sum += u.sum(0)
        self.product += u.T @ u
        present, compact = ids.unique(return_inverse=True)
        self.fired_sum[present] += scatter_outer(weight.double(), compact, u, len(present))

    def covariance(self) -> Float[Tensor, "d_in d_in"]:
        """The covariance of all activations."""
        mean = self.sum / self.n
        return self.product / self.n - mean[:, None] * mean


class Directions:
    """The LDA directions of all features that fired at least `min_count` times, but not on every token."""

    def __init__(
        self, moments: Moments, n_fired: Int[Tensor, "d_sae"], min_count: int, ridge: float = RIDGE
    ) -> None:
        self._moments, self._n_fired = moments, n_fired
        self.features = ((n_fired >= min_count) & (n_fired < moments.n)).nonzero().flatten()
        """The ids of the features that have a direction, in ascending order."""
        if len(self.features):  # otherwise the activations may all be equal, and the covariance singular
            covariance = moments.covariance()
            identity = torch.eye(len(covariance), dtype=covariance.dtype, device=covariance.device)
            mean_variance = covariance.diagonal().mean()
            self._factor = torch.linalg.cholesky(covariance + ridge * mean_variance * identity)

    def of(self, features: Int[Tensor, "b"]) -> Float32[Tensor, "b d_in"]:
        """The unit directions of some of `self.features`."""
        moments = self._moments
        if not len(features):
            return torch.zeros(0, len(moments.sum), device=moments.sum.device)
        shift = moments.fired_sum[features] / self._n_fired[features, None] - moments.sum / moments.n
        return F.normalize(torch.cholesky_solve(shift.T, self._factor).T).float()


class Nearness(NamedTuple):
    """Cosines of a feature's direction with the decoder rows of the feature and of its parent, and their ranks.

    The rank of a row is 1 plus the number of decoder rows, including dead features, with a larger cosine. Without a
    direction or a parent, the cosine is NaN and the rank 0.
    """

    cos_child: Float[Tensor, "d_sae"]
    cos_parent: Float[Tensor, "d_sae"]
    rank_child: Int[Tensor, "d_sae"]
    rank_parent: Int[Tensor, "d_sae"]


def nearness_memory(n_features: int, d_sae: int, d_in: int) -> int:
    """The peak memory of `nearness` in bytes, for `n_features` features that have a direction."""
    block = max(min(_BLOCK_ENTRIES // d_sae, n_features), 1)
    before = 4 * block if block < n_features else 0
    # Unit-norm rows; cosines of a block and the previous one, and comparisons; directions; covariance.
    return (
        4 * d_sae * d_in + (4 + 1) * block * d_sae + before * d_sae + 5 * 8 * block * d_in + 4 * 8 * d_in**2
    )


def nearness(
    moments: Moments,
    n_fired: Int[Tensor, "d_sae"],
    decoder: Float[Tensor, "d_sae d_in"],
    parent: Int[Tensor, "d_sae"],
    min_count: int,
    ridge: float = RIDGE,
) -> Nearness:
    """The cosines and ranks of all features that have a direction (see `Directions`)."""
    return nearness_to([parent], moments, n_fired, decoder, min_count, ridge)[0]


def nearness_to(
    parents: Sequence[Int[Tensor, "d_sae"]],
    moments: Moments,
    n_fired: Int[Tensor, "d_sae"],
    decoder: Float[Tensor, "d_sae d_in"],
    min_count: int,
    ridge: float = RIDGE,
) -> list[Nearness]:
    """`nearness` for each of several forests on the same features, at the cost of one."""
    d_sae = len(decoder)
    rows = F.normalize(decoder.float())
    directions = Directions(moments, n_fired, min_count, ridge)
    cosines = torch.full((1 + len(parents), d_sae), torch.nan, device=decoder.device)
    ranks = torch.zeros(1 + len(parents), d_sae, dtype=torch.int64, device=decoder.device)
    found = directions.features
    with progress("directions", len(found), "features") as advance:
        for features in found.split(max(_BLOCK_ENTRIES // d_sae, 1)):
            cosine = directions.of(features) @ rows.T
            for i, other in enumerate((features, *(parent[features] for parent in parents))):
                exists = other != ROOT
                own = cosine.gather(1, other.clamp(min=0)[:, None])
                rank = 1 + (cosine > own).sum(1)
                cosines[i, features[exists]] = own[exists, 0]
                ranks[i, features[exists]] = rank[exists]
            advance(len(features))
    return [Nearness(cosines[0], cosines[i], ranks[0], ranks[i]) for i in range(1, 1 + len(parents))]
