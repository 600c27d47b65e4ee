"""What TopK, BatchTopK and Matryoshka SAEs share: they choose features by their pre-activations and decode them.

They differ in how features are chosen and in what is reconstructed, and are composed of these.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..sparse_code import SparseCode
from .auxiliary import AuxConfig, auxiliary_loss
from .base import SAE
from .encode import PreActivations
from .normalizer import Normalization, TokenStats
from .reconstruct import Prefixes
from .select import Selection, top_k
from .training import Event, Setup, Step, Training, scalars


@dataclass(frozen=True)
class FlatConfig:
    """Settings of an SAE that chooses features by their pre-activations, and of its training. The defaults are those
    the Tree SAE is compared with."""

    layer_sizes: tuple[int, ...] = (24_576,)
    """One layer: the number of features."""
    k_per_layer: tuple[int, ...] = (32,)
    """Features that may act on an activation."""
    normalize_activations: Normalization = "layer_norm"
    """layer_norm: every activation to mean 0 and deviation 1; dataset_scale: a factor that makes the mean norm
    sqrt(d_in); none; or the factor itself."""
    activation_threshold: float = 1e-3
    """A feature is active above this value."""
    encoder_bias: bool = False
    """A trained bias of every pre-activation, as in Gao et al.; the Tree SAE's authors have none."""
    b_dec_init: Literal["normalized", "raw"] = "normalized"
    """b_dec starts at the geometric median of the first batch; the authors' code takes it before normalization."""
    dead_after_tokens: int | None = None
    """A feature is dead that has not fired for so many tokens. None: 10M of 500M, in proportion to the run."""
    aux: AuxConfig = field(default_factory=AuxConfig)
    normalize_target: Normalization = "dataset_scale"
    """How a transcoder's target is brought to the SAE's units: dataset_scale, none, or a factor. Not read otherwise."""


def encode(sae: SAE, u: Float[Tensor, "n d_in"], selection: Selection, precision: torch.dtype) -> SparseCode:
    """The features of normalized activations that `selection` chooses."""
    h, u = sae.pre_activations(precision), sae.centered(u)
    return h.exact(u, selection(h, u))


def topk_keys(sae: SAE, k: int) -> dict[str, Any]:
    """What SAELens asks of the cfg.json of an SAE that takes the k largest of every activation."""
    # Its tools fold the norms of the decoder's rows into the encoder, and need to be told that this is allowed.
    norms = sae.decoder.norm(dim=1)
    unit = bool(torch.allclose(norms, torch.ones_like(norms), atol=1e-5))
    return {"k": k, "rescale_acts_by_decoder_norm": unit}


#: The terms of the reconstruction loss, and the reconstruction less the target.
Losses = Callable[
    [SparseCode, Float[Tensor, "n d"], TokenStats], tuple[Float[Tensor, "terms"], Float[Tensor, "n d"]]
]


@runtime_checkable
class FollowsBatches(Protocol):
    """Something that moves with what the batches of training chose."""

    def follow(self, step: Step, number: int) -> None: ...


class FlatTraining(Training):
    """The reconstruction error as a share of the batch's variance, and the auxiliary loss of dead features."""

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
        """selection: how features are chosen in training; threshold: the one with which the SAE is used, if any."""
        super().__init__(sae, setup, dead_after_tokens=config.dead_after_tokens)
        self._aux, self._selection, self._losses, self._threshold = config.aux, selection, losses, threshold

    def forward(self, x: Float[Tensor, "n d_in"], target: Float[Tensor, "n d_out"]) -> Step:
        sae, aux = self.sae, self._aux
        x, target = x.to(sae.encoder.dtype), target.to(sae.encoder.dtype)
        normalized, stats = sae.normalize(x)
        h, u = sae.pre_activations(self.precision), sae.centered(normalized)
        code = h.exact(u, self._selection(h, u))
        fired = self.fired(code.detach())
        losses, error = self._losses(code, target, stats)
        loss = losses.sum()
        terms = {"reconstruction": scalars(losses)}
        if aux.coefficient:
            dead = h.exact(u, self._select_dead(h, u, self.dead_after(fired)))
            auxiliary = auxiliary_loss(dead, sae.decoder, sae.b_dec, -error, stats, aux)
            loss = loss + aux.coefficient * auxiliary
            terms["auxiliary"] = scalars([auxiliary])
        return Step(loss, terms, code.detach(), target + error.detach(), fired, len(x))

    def _select_dead(
        self, h: PreActivations, u: Float[Tensor, "n d_in"], dead: Bool[Tensor, "d_sae"]
    ) -> SparseCode:
        """For every activation the dead features of largest pre-activation."""
        features = dead.nonzero().flatten()
        if len(features) == 0:
            return SparseCode(u.new_zeros(len(u), 0), features.new_zeros(len(u), 0))
        return h.choose(u, lambda dense: top_k(dense, self._aux.k), features)

    def follow(self, step: Step, number: int) -> list[Event]:
        if self._threshold is not None:
            self._threshold.follow(step, number)
        return []


@dataclass(frozen=True)
class Whole:
    """The loss of the reconstruction from the whole dictionary."""

    sae: SAE

    def __call__(
        self, code: SparseCode, target: Float[Tensor, "n d"], stats: TokenStats
    ) -> tuple[Float[Tensor, "terms"], Float[Tensor, "n d"]]:
        sae = self.sae
        losses, (error,) = Prefixes((0, sae.d_sae)).losses(code, sae.decoder, sae.b_dec, target, stats)
        return losses, error
