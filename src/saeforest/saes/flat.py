"""The parts that TopK, BatchTopK and Matryoshka SAEs share.

All three select features by their pre-activations and decode them. They differ in how features are selected and in
what is reconstructed, so each is composed of a selection and a loss.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from ..sparse_code import SparseCode
from .auxiliary import AuxConfig, auxiliary_loss, reconstructed, select_dead
from .base import SAE
from .normalizer import Normalization, TokenStats
from .reconstruct import Prefixes
from .select import Selection
from .training import Event, Setup, Step, Training, scalars


@dataclass(frozen=True)
class FlatConfig:
    """An SAE that selects features by their pre-activations, and its training.

    The defaults are those of the baselines in the Tree SAE paper.
    """

    layer_sizes: tuple[int, ...] = (24_576,)
    """Number of features (one layer)."""
    k_per_layer: tuple[int, ...] = (32,)
    """Number of features that may be active on a token."""
    normalize_activations: Normalization = "layer_norm"
    """How activations are normalized. layer_norm: each to mean 0 and standard deviation 1; constant_norm_rescale: each
    to norm sqrt(d_in); dataset_scale: all by one factor that makes their mean norm sqrt(d_in); none; or that factor as
    a number."""
    activation_threshold: float = 1e-3
    """Value above which a feature counts as active."""
    encoder_bias: bool = False
    """Train a bias for every pre-activation, as Gao et al. do. The Tree SAE's authors do not."""
    b_dec_init: Literal["normalized", "raw"] = "normalized"
    """Initial b_dec: the geometric median of the first batch, after normalization (normalized) or before it (raw, as
    in the authors' code)."""
    dead_after_tokens: int | None = None
    """Number of tokens without firing after which a feature is dead. None: 2% of the run (10M of 500M tokens), at
    least 100,000."""
    aux: AuxConfig = field(default_factory=AuxConfig)
    normalize_target: Normalization = "dataset_scale"
    """How the target of a transcoder is normalized: dataset_scale, none, or a factor. Other SAEs ignore it."""


def encode(sae: SAE, u: Float[Tensor, "n d_in"], selection: Selection, precision: torch.dtype) -> SparseCode:
    """The sparse code of normalized activations, with the features that `selection` selects."""
    h, u = sae.pre_activations(precision), sae.centered(u)
    return h.exact(u, selection(h, u))


def topk_keys(sae: SAE, k: int) -> dict[str, Any]:
    """The keys that SAELens requires in the cfg.json of an SAE that takes the k largest features of every token."""
    # SAELens' tools fold the norms of the decoder rows into the encoder; this key tells them that they may.
    norms = sae.decoder.norm(dim=1)
    unit = bool(torch.allclose(norms, torch.ones_like(norms), atol=1e-5))
    return {"k": k, "rescale_acts_by_decoder_norm": unit}


#: Computes the terms of the reconstruction loss, and the error (reconstruction minus target).
Losses = Callable[
    [SparseCode, Float[Tensor, "n d"], TokenStats], tuple[Float[Tensor, "terms"], Float[Tensor, "n d"]]
]


@runtime_checkable
class FollowsBatches(Protocol):
    """Something that is updated after every training step from the features that were selected."""

    def follow(self, step: Step, number: int) -> None:
        """Update from step `number`, counted from 1."""
        ...


class FlatTraining(Training):
    """Training with the reconstruction error as a fraction of the batch's variance, and an auxiliary loss for dead
    features."""

    def __init__(
        self,
        sae: SAE,
        config: FlatConfig,
        setup: Setup,
        *,
        selection: Selection,
        losses: Losses,
        threshold: FollowsBatches | None = None,
    ) -> None:
        """selection: how features are selected during training.
        losses: the reconstruction losses.
        threshold: the threshold used at inference, if there is one; it is updated after every step.
        """
        super().__init__(sae, setup, dead_after_tokens=config.dead_after_tokens)
        self._aux, self._selection, self._losses, self._threshold = config.aux, selection, losses, threshold

    def forward(self, x: Float[Tensor, "n d_in"], target: Float[Tensor, "n d_out"]) -> Step:
        sae, aux = self.sae, self._aux
        x, target = x.to(sae.dtype), target.to(sae.dtype)
        normalized, stats = sae.normalize(x)
        h, u = sae.pre_activations(self.precision), sae.centered(normalized)
        code = h.exact(u, self._selection(h, u))
        fired = self.fired(code.detach())
        losses, error = self._losses(code, target, stats)
        loss = losses.sum()
        terms = {"reconstruction": scalars(losses)}
        if aux.coefficient:
            u = u[aux.rows]
            dead = select_dead(h, u, self.dead_after(fired), aux.k)
            (e_hat,) = reconstructed(h, [u], [dead], sae.decoder)
            auxiliary = auxiliary_loss(e_hat, sae.b_dec, error, stats, aux)
            loss = loss + aux.coefficient * auxiliary
            terms["auxiliary"] = scalars([auxiliary])
        return Step(loss, terms, code.detach(), target + error.detach(), fired, len(x))

    def take_from_first_batch(self, x: Float[Tensor, "n d_in"], target: Float[Tensor, "n d_out"]) -> None:
        self.follow(self(x, target), self.run.n_steps)

    def follow(self, step: Step, number: int) -> list[Event]:
        if self._threshold is not None:
            self._threshold.follow(step, number)
        return []


@dataclass(frozen=True)
class Whole:
    """The loss of the reconstruction from all features."""

    sae: SAE

    def __call__(
        self, code: SparseCode, target: Float[Tensor, "n d"], stats: TokenStats
    ) -> tuple[Float[Tensor, "terms"], Float[Tensor, "n d"]]:
        sae = self.sae
        losses, (error,) = Prefixes((0, sae.d_sae)).losses(code, sae.decoder, sae.b_dec, target, stats)
        return losses, error
