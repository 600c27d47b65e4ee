"""Inferring a forest for any trained SAE from the activations of its features.

Every feature gets at most one parent: of the features that may be its parent (`order`) and whose score is high enough,
the one with the highest score. There are two kinds of methods:

- One of the scores of `pairs` alone: activation coverage (Eq. 4 of the Tree SAE paper), masked cosine
  similarity (MCS) in its variants, or Pearson's correlation.
- `reconstruction`, the paper's definition (section 3): coverage, and the reconstruction condition

      S_res(p, c) = min(d*_c . d_c, d*_c . d_p) >= min_reconstruction    (Eq. 5)

  Of the features that meet both, the parent is the one nearest to the child's concept: the largest d*_c . d_p. By
  coverage alone, a feature that always fires would be a parent of all others (section 2.2, Figure 1); by the
  reconstruction condition alone, any feature with a similar direction could be one (Appendix F). The direction d*_c is
  the LDA direction of `directions`, so the condition is approximate: the published numbers are those of the measure
  `hierarchy`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float32, Int
from torch import Tensor

from .errors import InputError
from .progress import progress
from .saes import SAE
from .structure.directions import Directions, Moments
from .structure.forest import ROOT, Forest, flat_forest
from .structure.pairs import (
    SCORES,
    PairStatistics,
    Score,
    first_best,
    scores_memory,
    sorted_memory,
)

Method = Literal[Score, "reconstruction"]
METHODS: tuple[Method, ...] = (*SCORES, "reconstruction")
Order = Literal["frequency", "layers"]

#: The default of `min_score` for each method. Coverage has 0.9: the paper's pairs have at least 0.98, but an SAE has
#: few slots and superposed features, so a parent misses some tokens of its children. It is not reached by chance: a
#: feature that fires on 20% of the tokens covers 18 of 20 given ones with probability 3e-11. For mcs_binary, the square
#: root is the same bound. Cosines have 0.6, as in the Matryoshka SAE paper (App. F). mcs_binary_scaled depends on the
#: largest value of the parent, so it has no meaningful default.
MIN_SCORE: dict[Method, float] = {
    "coverage": 0.9,
    "reconstruction": 0.9,
    "mcs_binary": 0.9**0.5,
    "mcs_correlation": 0.6,
    "mcs_correlation_scaled": 0.6,
    "pearson": 0.6,
}
# The number of rows processed at a time, which bounds the memory for float64 copies.
_SLICE = 4096


@dataclass(frozen=True)
class InferConfig:
    """How parents are inferred.

    Raises InputError for a value out of its range.
    """

    method: Method = "reconstruction"
    """Score that makes a feature a parent: activation coverage, a variant of masked cosine similarity (mcs_...),
    Pearson correlation, or reconstruction (coverage together with the reconstruction score, Eq. 5 of the Tree SAE
    paper)."""
    min_score: float | None = None
    """Minimum score of a parent; for reconstruction, minimum coverage. Default: 0.9 for coverage and
    reconstruction, its square root for mcs_binary, 0.6 for correlations; mcs_binary_scaled has none."""
    min_count: int = 20
    """Minimum number of tokens that a feature must fire on to get a parent. A rarer one is covered by any frequent
    feature by chance, so it becomes a root."""
    min_reconstruction: float = 0.1
    """Minimum reconstruction score S_res, a cosine. Unrelated directions have about 1/sqrt(d_in), 0.04 in 576
    dimensions."""
    order: Order = "frequency"
    """Which features may be a feature's parent. frequency: those that fire more often (at equal counts, those of lower
    index); layers: those of earlier layers."""

    def __post_init__(self) -> None:
        for name, known in (("method", METHODS), ("order", get_args(Order))):
            if (value := getattr(self, name)) not in known:
                raise InputError(f"infer.{name} = {value!r}: expected one of {', '.join(known)}")
        if self.min_score is None and self.method not in MIN_SCORE:
            raise InputError(
                f"infer.min_score is missing: method {self.method} has no default; give a number above 0 and at most 1"
            )
        if not 0 < self.least <= 1:
            raise InputError(f"infer.min_score = {self.min_score}: expected a number above 0 and at most 1")
        if self.min_count < 1:
            raise InputError(f"infer.min_count = {self.min_count}: expected 1 or more")
        if not -1 <= self.min_reconstruction <= 1:
            raise InputError(
                f"infer.min_reconstruction = {self.min_reconstruction}: expected a cosine, -1 to 1"
            )

    @property
    def least(self) -> float:
        """The smallest score of a parent: `min_score`, or its default."""
        return MIN_SCORE[self.method] if self.min_score is None else self.min_score

    @property
    def score(self) -> Score:
        """The score that `least` bounds."""
        return "coverage" if self.method == "reconstruction" else self.method


@dataclass(frozen=True, eq=False)
class InferredForest:
    """An inferred forest, with the scores of its edges.

    score: `[d_sae]`, the score (`config.score`) of each feature with its parent; 0 if it hangs from the root.
    s_res: `[d_sae]`, the reconstruction score of the same pairs, or 0; None unless the method is `reconstruction`.
    n_fired: `[d_sae]`, the number of the `n_tokens` activations on which each feature fired.
    """

    forest: Forest
    score: Float32[Tensor, "d_sae"]
    s_res: Float32[Tensor, "d_sae"] | None
    n_fired: Int[Tensor, "d_sae"]
    n_tokens: int
    config: InferConfig


def infer_forest(sae: SAE, batches: Iterable[Tensor], config: InferConfig | None = None) -> InferredForest:
    """Infer a forest over the features of an SAE. A forest that the SAE has learned is ignored.

    sae: any trained SAE.
    batches: activations `[n, d_in]`, as `sae.encode` takes them. 16 bytes of memory are needed for each firing.
    config: the method and its thresholds.

    The forest has the layers of the SAE. With order `frequency`, parents may be in any layer (`Forest.layered` is
    False). If several parents have the same score in float32, the least frequent is taken, then the one with the lower
    index. This is the nearest of several ancestors that all fire whenever the child does.

    Raises InputError if there are no activations, if they have another width or are not finite, or if the order is
    `layers` and the SAE has only one layer.
    """
    inference = ForestInference(sae, config)
    for batch in batches:
        inference.add(batch)
    return inference.forest()


class ForestInference:
    """`infer_forest` in steps, so that several SAEs can use the same pass over the activations."""

    def __init__(self, sae: SAE, config: InferConfig | None = None) -> None:
        self.sae, self.config = sae, config or InferConfig()
        if self.config.order == "layers" and len(sae.config.layer_sizes) == 1:
            raise InputError("infer.order = 'layers': this SAE has one layer only; use order 'frequency'")
        self._pairs = PairStatistics(sae.d_sae, sae.config.activation_threshold)
        with_moments = self.config.method == "reconstruction"
        self._moments = Moments(sae.d_sae, sae.d_in, sae.device) if with_moments else None

    @torch.no_grad()
    def add(self, batch: Tensor) -> None:
        """Add more activations `[n, d_in]`."""
        _check(batch, self.sae.d_in)
        threshold = self.sae.config.activation_threshold
        for rows in batch.split(_SLICE):
            x = rows.to(self.sae.device).float()
            code = self.sae.encode(x)
            self._pairs.add(code)
            if self._moments is not None:
                self._moments.add(self.sae.normalize(x)[0], code.ids, code.active(threshold).double())

    def still_to_come(self, share: float) -> int:
        """The bytes that adding the remaining activations will take, when a fraction of them has been added."""
        return self._pairs.still_to_come(round(self._pairs.n_firings * (1 / share - 1)))

    def afterwards(self, share: float) -> int:
        """The temporary memory of `forest`, in bytes, estimated when a fraction of the activations has been added."""
        d_sae, d_in = self.sae.d_sae, self.sae.d_in
        kept = sorted_memory(round(self._pairs.n_firings / share), d_sae)
        # Directions need the decoder rows and the covariance, and cosines in addition to the scores.
        rows = 0 if self._moments is None else 4 * d_sae * d_in + 4 * 8 * d_in**2
        return kept + rows + scores_memory(d_sae, (self.config.score,))

    @torch.no_grad()
    def forest(self) -> InferredForest:
        """The forest inferred from all activations so far."""
        pairs, sae, config = self._pairs, self.sae, self.config
        if pairs.n_tokens == 0:
            raise InputError("no activations to infer a forest from; give at least one batch with rows")
        concepts = None
        if self._moments is not None:
            concepts = _Concepts(sae, self._moments, pairs.marginals.n, config.min_count)
        layer = flat_forest(sae.config.layer_sizes).layer
        parent, score, s_res = _parents(pairs, concepts, layer, config)
        return InferredForest(
            forest=Forest(parent, sae.config.layer_sizes, layered=config.order == "layers"),
            score=score,
            s_res=None if concepts is None else s_res,
            n_fired=pairs.marginals.n,
            n_tokens=pairs.n_tokens,
            config=config,
        )


def _check(batch: Tensor, d_in: int) -> None:
    if batch.ndim != 2 or batch.shape[1] != d_in:
        raise InputError(f"a batch of activations has shape {list(batch.shape)}: expected [n, {d_in}]")
    if not bool(torch.isfinite(batch).all()):
        raise InputError("a batch of activations holds NaN or infinite values; leave those rows out")


def _parents(
    pairs: PairStatistics, concepts: _Concepts | None, layer: Int[Tensor, "d_sae"], config: InferConfig
) -> tuple[Int[Tensor, "d_sae"], Float32[Tensor, "d_sae"], Float32[Tensor, "d_sae"]]:
    """The parent of every feature, and their score and S_res."""
    n = pairs.marginals.n
    parent = torch.full_like(n, ROOT)
    score, s_res = torch.zeros(2, len(n))
    children = (n >= config.min_count).nonzero().flatten() if concepts is None else concepts.features
    # Scores are compared in float32, so that 1 - 1e-16 satisfies a bound of 1.
    least = torch.tensor(config.least, dtype=torch.float32)
    nearest_first = pairs.rarest_first
    with progress("parents", len(children), "features") as advance:
        for block, scores in pairs.scores(config.score, children):
            allowed = _above(block, n, layer, config.order) & (scores.float() >= least)
            wish = reconstruction = scores
            if concepts is not None:
                wish, own = concepts.cosines(block)
                reconstruction = torch.minimum(wish, own)
                allowed &= reconstruction >= config.min_reconstruction
            found = first_best(wish, allowed, nearest_first)
            edge = found != ROOT
            parent[block] = found
            score[block[edge]] = scores[edge, found[edge]].float()
            s_res[block[edge]] = reconstruction[edge, found[edge]].float()
            advance(len(block))
    return parent, score, s_res


def _above(
    children: Int[Tensor, "b"], n: Int[Tensor, "d_sae"], layer: Int[Tensor, "d_sae"], order: Order
) -> Bool[Tensor, "b d_sae"]:
    """Which features may be the parent of each child. Both orders are strict, so there can be no cycles."""
    if order == "layers":
        return layer < layer[children, None]
    own = n[children, None]
    return (n > own) | ((n == own) & (torch.arange(len(n)) < children[:, None]))


class _Concepts:
    """The directions d*_c of the features that have one, and all decoder rows."""

    def __init__(self, sae: SAE, moments: Moments, n_fired: Int[Tensor, "d_sae"], min_count: int) -> None:
        self._directions = Directions(moments, n_fired.to(sae.device), min_count)
        self._rows = F.normalize(sae.W_dec.float())
        self.features = self._directions.features.cpu()

    def cosines(
        self, features: Int[Tensor, "b"]
    ) -> tuple[Float32[Tensor, "b d_sae"], Float32[Tensor, "b 1"]]:
        """The products d*_c . d_i of features c with every feature i, and d*_c . d_c."""
        cosine = (self._directions.of(features.to(self._rows.device)) @ self._rows.T).cpu()
        return cosine, cosine.gather(1, features[:, None])
