"""Matryoshka SAE (Bussmann et al., arXiv 2503.17547): every prefix of the dictionary reconstructs on its own.

Prefixes end where layers do. The paper trains by batch top-k, the Tree SAE's authors by top-k of every activation;
either way over the whole dictionary at once (SPEC 7.3).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import UserError
from ..sparse_code import SparseCode
from .base import SAE, TokenStats, check_dead_after, check_sizes
from .batch_topk import BatchTopKConfig, BatchTopKSAE


@dataclass(frozen=True)
class MatryoshkaConfig(BatchTopKConfig):
    """A Matryoshka SAE and its training. The defaults are those the 4-layer Tree SAE is compared with."""

    layer_sizes: tuple[int, ...] = (1536, 3072, 9216, 10752)
    """Features each prefix adds to the one before."""
    k_per_layer: tuple[int, ...] = (32,)
    """One number: features that may act on an activation, of the whole dictionary."""
    selection: Literal["token", "batch"] = "token"
    """The k largest of every activation, or the k * n largest of a batch with a threshold for use."""
    prefix_weights: Literal["sum", "mean", "mean_with_bias"] | tuple[float, ...] = "sum"
    """Of the prefixes' losses: 1 each (the paper); their mean; their mean together with the loss of b_dec alone (its
    code); or a number for each."""
    architecture: Literal["matryoshka"] = "matryoshka"  # pyright: ignore[reportIncompatibleVariableOverride]

    def __post_init__(self) -> None:
        if len(self.k_per_layer) != 1:
            raise UserError(
                f"sae.k_per_layer {list(self.k_per_layer)}: a Matryoshka SAE has one k for the whole dictionary; "
                f"give one number, such as {sum(self.k_per_layer)}"
            )
        check_sizes(self.layer_sizes, (1,) * len(self.layer_sizes))
        check_sizes((sum(self.layer_sizes),), self.k_per_layer, what="the whole dictionary")
        check_dead_after(self.dead_after_tokens)
        if isinstance(self.prefix_weights, tuple) and len(self.prefix_weights) != len(self.layer_sizes):
            raise UserError(
                f"sae.prefix_weights {list(self.prefix_weights)}: expected {len(self.layer_sizes)} numbers, "
                "one for each layer"
            )

    @property
    def weights(self) -> tuple[list[float], float]:
        """Of the loss of every prefix, and of b_dec alone."""
        n = len(self.layer_sizes)
        if isinstance(self.prefix_weights, tuple):
            return list(self.prefix_weights), 0.0
        return {
            "sum": ([1.0] * n, 0.0),
            "mean": ([1 / n] * n, 0.0),
            "mean_with_bias": ([1 / (n + 1)] * n, 1 / (n + 1)),
        }[self.prefix_weights]


class MatryoshkaSAE(BatchTopKSAE):
    config_class = MatryoshkaConfig
    title, color, marker = "Matryoshka", "#0072B2", "P"
    color_of_two_layers = "#56B4E9"
    inference_keys = (*SAE.inference_keys, "selection")

    config: MatryoshkaConfig  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(self, config: MatryoshkaConfig, d_in: int, *, seed: int = 0) -> None:
        super().__init__(config, d_in, seed=seed)
        self._starts = (*self.forest.layer_starts, self.d_sae)
        self.at_most_k = not self.by_batch  # pyright: ignore[reportAttributeAccessIssue]

    @property
    def by_batch(self) -> bool:
        return self.config.selection == "batch"

    def reconstruct(
        self, x: Float[Tensor, "n d_in"], code: SparseCode, stats: TokenStats
    ) -> tuple[Float[Tensor, "terms"], Float[Tensor, "n d_in"]]:
        """The weighted losses of the prefixes (and of b_dec alone, where it counts), and the whole error."""
        weights, bias_weight = self.config.weights
        losses, errors = self._layer_losses(x, code, stats, self._starts)
        losses = losses * losses.new_tensor(weights)
        if bias_weight:
            alone = (stats.std * self.b_dec + stats.mean - x).square().mean() / (x.var() + 1e-8)
            losses = torch.cat([bias_weight * alone[None], losses])
        return losses, errors[-1]
