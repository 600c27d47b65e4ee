"""Matching Pursuit SAE (Costa et al., arXiv 2506.03093): features are selected one after another, by the residual.

One dictionary of unit-norm rows (atoms) both encodes and decodes. Each iteration selects the atom with the largest
product with the residual and subtracts its part. An activation stops early when its residual is small enough or an
atom is selected again, so L0 varies from token to token (docs/spec/baselines.md#matching-pursuit).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..errors import InputError
from ..kernels import by_rows, choose_atoms, take_atoms
from ..sparse_code import SparseCode, concat_rows
from .base import SAE
from .checks import check_dead_after, check_one_layer, check_sizes
from .encode import DENSE_ENTRIES
from .normalizer import Normalization
from .training import Setup, Step, Training, scalars

# Up to this many features, the products of all atoms with each other are computed once, to save a dense product in
# every iteration.
_GRAM_FEATURES = 16_384


@dataclass(frozen=True)
class MatchingPursuitConfig:
    """A Matching Pursuit SAE and its training. The defaults are those of the baseline in the Tree SAE paper."""

    layer_sizes: tuple[int, ...] = (24_576,)
    """Number of features (one layer)."""
    k_per_layer: tuple[int, ...] = (32,)
    """Largest number of iterations, and so of active features, on a token."""
    normalize_activations: Normalization = "layer_norm"
    """How activations are normalized. layer_norm: each to mean 0 and standard deviation 1; constant_norm_rescale: each
    to norm sqrt(d_in); dataset_scale: all by one factor that makes their mean norm sqrt(d_in); none; or that factor as
    a number."""
    activation_threshold: float = 1e-3
    """Value above which a feature counts as active."""
    residual_tolerance: float = 5e-3
    """Norm of the residual, in normalized units, below which an activation needs no further iterations."""
    decoder_bias: bool = False
    """Train a bias b_dec, which is subtracted before the pursuit and added to the reconstruction."""
    b_dec_init: Literal["normalized", "raw"] = "normalized"
    """Initial b_dec, if it is trained: the geometric median of the first batch, after normalization (normalized) or
    before it (raw)."""
    dead_after_tokens: int | None = None
    """Number of tokens without firing after which a feature is dead. None: 2% of the run (10M of 500M tokens), at
    least 100,000."""
    architecture: Literal["matching_pursuit"] = "matching_pursuit"

    @property
    def encoder_bias(self) -> bool:
        """Always False: the encoder is the decoder."""
        return False

    def __post_init__(self) -> None:
        check_sizes(self.layer_sizes, self.k_per_layer)
        check_dead_after(self.dead_after_tokens)
        check_one_layer(self.architecture, self.layer_sizes)
        if self.residual_tolerance < 0:
            raise InputError(f"sae.residual_tolerance = {self.residual_tolerance}: expected 0 or more")


class MatchingPursuitSAE(SAE):
    """A Matching Pursuit SAE: features are chosen one after another, each by what those before it left over.

    Every one of at most `k` iterations takes the atom of largest product with the residual and takes its part off. It
    stops where the residual is shorter than `residual_tolerance`. One dictionary encodes and decodes. It is flat:
    `saeforest.infer_forest` infers a forest.

    Shapes: activations `[..., d_in]`; `encoder` is `decoder`, `[d_sae, d_in]`; a code has `k` slots.

    Source: Costa et al., arXiv 2506.03093.

    Example:
        >>> import torch
        >>> from saeforest.saes import MatchingPursuitConfig, MatchingPursuitSAE
        >>> sae = MatchingPursuitSAE(MatchingPursuitConfig(layer_sizes=(16,), k_per_layer=(3,)), d_in=8)
        >>> sae.encode(torch.randn(5, 8)).values.shape
        torch.Size([5, 3])
    """

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
        # Every iteration depends on the exact residual of the previous one, so `precision` cannot lower the precision.
        u = u - self.b_dec
        rows = max(DENSE_ENTRIES // (self.d_in * self.config.k_per_layer[0]), 1)
        return concat_rows([self.pursue(part, *self.choose(part))[0] for part in u.split(rows)])

    @torch.no_grad()
    def choose(self, u: Float[Tensor, "n d_in"]) -> tuple[Int[Tensor, "n k"], Bool[Tensor, "n k"]]:
        """The atom that each iteration selects, and whether that iteration takes place."""
        atoms = self.decoder
        # The products of all atoms with each other pay off if there are more iterations in total than atoms.
        few = self.d_sae > min(_GRAM_FEATURES, len(u) * self.config.k_per_layer[0])
        gram = None if few else atoms @ atoms.T
        k, tolerance = self.config.k_per_layer[0], self.config.residual_tolerance

        def chosen(own: slice) -> tuple[Tensor, ...]:
            slices = u[own].split(max(DENSE_ENTRIES // self.d_sae, 1))
            ids, taken = zip(*(choose_atoms(part, atoms, gram, k, tolerance) for part in slices), strict=True)
            return torch.cat(ids), torch.cat(taken)

        ids, taken = by_rows(chosen, len(u))
        return ids, taken

    def pursue(
        self, u: Float[Tensor, "n d_in"], ids: Int[Tensor, "n k"], taken: Bool[Tensor, "n k"]
    ) -> tuple[SparseCode, Float[Tensor, "n d_in"]]:
        """The code with the coefficients of the selected atoms, and the final residual."""
        amounts, residual = take_atoms(u, ids, taken, self.decoder)
        # If an atom is selected again, its amounts are added up.
        same = (ids[:, :, None] == ids[:, None, :]) & taken[:, None, :]
        first = same.int().argmax(2)
        values = torch.zeros_like(amounts).scatter_add(1, first, amounts)
        return SparseCode(values, torch.where(values > 0, ids, 0)), residual


class MatchingPursuitTraining(Training):
    """Training with the reconstruction error as a fraction of the batch's variance."""

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
        # The loss depends on the atoms only through the residual.
        error = stats.std * residual
        loss = error.square().mean() / (x.var() + 1e-8)
        return Step(
            loss, {"reconstruction": scalars([loss])}, code, x - error.detach(), self.fired(code), len(x)
        )
