"""Matching Pursuit SAE (Costa et al., arXiv 2506.03093): features are chosen one after another, by the residual.

One dictionary of unit-norm rows encodes and decodes. Each iteration takes the atom nearest to what is left, and
takes it off; an activation stops early when nothing is left or nothing new is chosen, so L0 adapts
(docs/spec/baselines.md#matching-pursuit).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..errors import InputError
from ..kernels import choose_atoms, take_atoms
from ..sparse_code import SparseCode, concat_rows
from .base import SAE
from .checks import check_dead_after, check_one_layer, check_sizes
from .encode import DENSE_ENTRIES
from .normalizer import Normalization
from .training import Setup, Step, Training, scalars

# Up to this many features the products of all atoms with each other are kept: no dense product in an iteration.
_GRAM_FEATURES = 16_384


@dataclass(frozen=True)
class MatchingPursuitConfig:
    """A Matching Pursuit SAE and its training. The defaults are those the Tree SAE is compared with."""

    layer_sizes: tuple[int, ...] = (24_576,)
    """One layer: the number of features."""
    k_per_layer: tuple[int, ...] = (32,)
    """Iterations at most, and so active features."""
    normalize_activations: Normalization = "layer_norm"
    """layer_norm: every activation to mean 0 and deviation 1; dataset_scale: a factor that makes the mean norm
    sqrt(d_in); none; or the factor itself."""
    activation_threshold: float = 1e-3
    """A feature is active above this value."""
    residual_tolerance: float = 5e-3
    """An activation stops when the norm of its residual, after normalisation, falls below this."""
    decoder_bias: bool = False
    """A trained b_dec, taken off before and put back after."""
    b_dec_init: Literal["normalized", "raw"] = "normalized"
    """b_dec, where trained, starts at the geometric median of the first batch."""
    dead_after_tokens: int | None = None
    """A feature is dead that has not fired for so many tokens. None: 10M of 500M, in proportion to the run."""
    architecture: Literal["matching_pursuit"] = "matching_pursuit"

    @property
    def encoder_bias(self) -> bool:
        return False

    def __post_init__(self) -> None:
        check_sizes(self.layer_sizes, self.k_per_layer)
        check_dead_after(self.dead_after_tokens)
        check_one_layer(self.architecture, self.layer_sizes)
        if self.residual_tolerance < 0:
            raise InputError(f"sae.residual_tolerance = {self.residual_tolerance}: expected 0 or more")


class MatchingPursuitSAE(SAE):
    config_class = MatchingPursuitConfig
    title, color, marker = "Matching Pursuit", "#CC79A7", "*"
    at_most_k = tied = True
    has_forest = False
    inference_keys = (*SAE.inference_keys, "residual_tolerance")
    scaled_keys = (*SAE.scaled_keys, "residual_tolerance")  # residuals shrink with the input

    config: MatchingPursuitConfig

    def __init__(
        self, config: MatchingPursuitConfig, d_in: int, *, d_out: int | None = None, seed: int = 0
    ) -> None:
        super().__init__(config, d_in, d_out=d_out, seed=seed)
        self.b_dec.requires_grad_(config.decoder_bias)

    def saelens_keys(self) -> dict[str, Any]:
        return {
            "max_iterations": self.config.k_per_layer[0],
            "residual_threshold": self.config.residual_tolerance,
            "stop_on_duplicate_support": True,
        }

    def encode_normalized(self, u: Float[Tensor, "n d_in"], precision: torch.dtype) -> SparseCode:
        # Every iteration depends on the exact residual of the one before: there is no choosing in less precision.
        u = u - self.b_dec
        rows = max(DENSE_ENTRIES // (self.d_in * self.config.k_per_layer[0]), 1)
        return concat_rows([self.pursue(part, *self.choose(part))[0] for part in u.split(rows)])

    @torch.no_grad()
    def choose(self, u: Float[Tensor, "n d_in"]) -> tuple[Int[Tensor, "n k"], Bool[Tensor, "n k"]]:
        """The atom each iteration takes, and whether it takes one: the residual's products with all atoms decide."""
        atoms = self.decoder
        # The products of all atoms pay if there are more products to take, one an iteration, than atoms.
        few = self.d_sae > min(_GRAM_FEATURES, len(u) * self.config.k_per_layer[0])
        gram = None if few else atoms @ atoms.T
        k, tolerance = self.config.k_per_layer[0], self.config.residual_tolerance
        slices = u.split(max(DENSE_ENTRIES // self.d_sae, 1))
        ids, taken = zip(*(choose_atoms(part, atoms, gram, k, tolerance) for part in slices), strict=True)
        return torch.cat(ids), torch.cat(taken)

    def pursue(
        self, u: Float[Tensor, "n d_in"], ids: Int[Tensor, "n k"], taken: Bool[Tensor, "n k"]
    ) -> tuple[SparseCode, Float[Tensor, "n d_in"]]:
        """The coefficients along the chosen atoms, and the residual at the end."""
        amounts, residual = take_atoms(u, ids, taken, self.decoder)
        # An atom chosen again adds to what it had.
        same = (ids[:, :, None] == ids[:, None, :]) & taken[:, None, :]
        first = same.int().argmax(2)
        values = torch.zeros_like(amounts).scatter_add(1, first, amounts)
        return SparseCode(values, torch.where(values > 0, ids, 0)), residual


class MatchingPursuitTraining(Training):
    """The reconstruction error as a share of the batch's variance."""

    sae: MatchingPursuitSAE

    def __init__(self, sae: MatchingPursuitSAE, setup: Setup) -> None:
        super().__init__(sae, setup, dead_after_tokens=sae.config.dead_after_tokens)

    def forward(self, x: Float[Tensor, "n d_in"], target: Float[Tensor, "n d_in"]) -> Step:
        sae = self.sae
        x = x.to(sae.decoder.dtype)
        normalized, stats = sae.normalize(x)
        u = normalized - sae.b_dec
        code, residual = sae.pursue(u, *sae.choose(u))
        code = code.detach()
        # The loss depends on the atoms through the residual alone.
        error = stats.std * residual
        loss = error.square().mean() / (x.var() + 1e-8)
        return Step(
            loss, {"reconstruction": scalars([loss])}, code, x - error.detach(), self.fired(code), len(x)
        )
