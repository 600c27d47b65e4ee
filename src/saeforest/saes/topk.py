"""TopK SAE (Gao et al., arXiv 2406.04093): the k features of largest pre-activation; the dead learn the residual.

BatchTopK and Matryoshka SAEs change one thing each: how features are chosen, and what is reconstructed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from ..sparse_code import SparseCode
from .auxiliary import AuxConfig, auxiliary_loss
from .base import (
    SAE,
    Normalization,
    Step,
    TokenStats,
    TrainingPlan,
    check_dead_after,
    check_one_layer,
    check_sizes,
)
from .select import top_k


@dataclass(frozen=True)
class TopKConfig:
    """A TopK SAE and its training. The defaults are those the Tree SAE is compared with."""

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
    """b_dec starts at the geometric median of the first batch; the authors' code takes it before normalisation."""
    dead_after_tokens: int | None = None
    """A feature is dead that has not fired for so many tokens. None: 10M of 500M, in proportion to the run."""
    aux: AuxConfig = field(default_factory=AuxConfig)
    architecture: Literal["topk"] = "topk"

    def __post_init__(self) -> None:
        check_sizes(self.layer_sizes, self.k_per_layer)
        check_dead_after(self.dead_after_tokens)
        check_one_layer(self.architecture, self.layer_sizes)


class TopKSAE(SAE):
    config_class = TopKConfig
    title, color, marker = "TopK", "#000000", "^"
    at_most_k = flat = True

    config: TopKConfig

    @property
    def k(self) -> int:
        return sum(self.config.k_per_layer)

    def saelens_keys(self) -> dict[str, Any]:
        # Its tools fold the norms of the decoder's rows into the encoder, and need to be told that this is allowed.
        norms = self.decoder.norm(dim=1)
        unit = bool(torch.allclose(norms, torch.ones_like(norms), atol=1e-5))
        return {"k": self.k, "rescale_acts_by_decoder_norm": unit}

    def encode_normalized(self, u: Float[Tensor, "n d_in"]) -> SparseCode:
        u = u - self.b_dec
        return self._exact(u, self.select(u))

    @torch.no_grad()
    def select(self, u: Float[Tensor, "n d_in"]) -> SparseCode:
        """The features that act on activations, `b_dec` taken off; chosen in the compute precision."""
        return self._sliced(u, lambda h: top_k(h, self.k))

    # -- training

    def prepare(self, plan: TrainingPlan) -> None:
        self.dead_steps = plan.dead_steps(self.config.dead_after_tokens)

    def training_step(self, x: Float[Tensor, "n d_in"]) -> Step:
        """The reconstruction error as a share of the batch's variance, and the auxiliary loss."""
        x = x.to(self.encoder.dtype)
        normalized, stats = self.normalize(x)
        u = normalized - self.b_dec.detach()
        code = self._exact(u, self.select_in_training(u))
        self.count_firing(code.detach())
        losses, error = self.reconstruct(x, code, stats)
        loss = losses.sum()
        terms: dict[str, list[float | None]] = {"reconstruction": losses.tolist()}
        aux = self.config.aux
        if aux.coefficient:
            dead = self._exact(u, self._select_dead(u))
            auxiliary = auxiliary_loss(dead, self.decoder, self.b_dec, -error, stats, aux)
            loss = loss + aux.coefficient * auxiliary
            terms["auxiliary"] = [float(auxiliary.detach())]
        return Step(loss, terms, code.detach(), x + error.detach())

    def _select_dead(self, u: Float[Tensor, "n d_in"]) -> SparseCode:
        """Of every activation the dead features of largest pre-activation."""
        dead = self.dead.nonzero().flatten()
        if len(dead) == 0:
            return SparseCode(u.new_zeros(len(u), 0), dead.new_zeros(len(u), 0))
        return self._sliced(u, lambda h: top_k(h, self.config.aux.k), dead)

    def select_in_training(self, u: Float[Tensor, "n d_in"]) -> SparseCode:
        return self.select(u)

    def reconstruct(
        self, x: Float[Tensor, "n d_in"], code: SparseCode, stats: TokenStats
    ) -> tuple[Float[Tensor, "terms"], Float[Tensor, "n d_in"]]:
        """The terms of the reconstruction loss, and the reconstruction less `x`."""
        losses, (error,) = self._layer_losses(x, code, stats, (0, self.d_sae))
        return losses, error
