"""Matryoshka SAE (Bussmann et al., arXiv 2503.17547): every prefix of the dictionary reconstructs the input by itself.

Each prefix ends where a layer ends. The paper selects features by batch top-k, the Tree SAE's authors by the top k of
every activation. Both select over the whole dictionary at once (docs/spec/baselines.md#matryoshka).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import InputError
from ..sparse_code import SparseCode
from .base import SAE
from .batch_topk import FollowedThreshold, ThresholdConfig
from .checks import check_dead_after, check_sizes
from .flat import FlatConfig, FlatTraining, encode, topk_keys
from .normalizer import TokenStats
from .reconstruct import Prefixes
from .select import Above, BatchTopK, TopK
from .training import Setup


@dataclass(frozen=True)
class MatryoshkaConfig(FlatConfig):
    """A Matryoshka SAE and its training. The defaults are those of the 4-layer baseline in the Tree SAE paper."""

    layer_sizes: tuple[int, ...] = (1536, 3072, 9216, 10752)
    """Number of features that each prefix adds to the previous one."""
    k_per_layer: tuple[int, ...] = (32,)
    """Number of features of the whole dictionary that may be active on a token (one number)."""
    selection: Literal["token", "batch"] = "token"
    """How features are selected in training. token: the k largest on every token; batch: the k * n largest of a batch
    of n tokens, with a threshold at inference."""
    prefix_weights: Literal["sum", "mean", "mean_with_bias"] | tuple[float, ...] = "sum"
    """Weights of the prefixes' losses. sum: 1 each (the paper); mean: their mean; mean_with_bias: their mean together
    with the loss of b_dec alone (the paper's code); or one number for each prefix."""
    threshold: ThresholdConfig = field(default_factory=ThresholdConfig)
    architecture: Literal["matryoshka"] = "matryoshka"

    def __post_init__(self) -> None:
        if len(self.k_per_layer) != 1:
            raise InputError(
                f"sae.k_per_layer {list(self.k_per_layer)}: a Matryoshka SAE has one k for the whole dictionary; "
                f"give one number, such as {sum(self.k_per_layer)}"
            )
        check_sizes(self.layer_sizes, (1,) * len(self.layer_sizes))
        check_sizes((sum(self.layer_sizes),), self.k_per_layer, what="the whole dictionary")
        check_dead_after(self.dead_after_tokens)
        if isinstance(self.prefix_weights, tuple) and len(self.prefix_weights) != len(self.layer_sizes):
            raise InputError(
                f"sae.prefix_weights {list(self.prefix_weights)}: expected {len(self.layer_sizes)} numbers, "
                "one for each layer"
            )

    @property
    def weights(self) -> tuple[list[float], float]:
        """The weight of each prefix's loss, and the weight of the loss of b_dec alone."""
        n = len(self.layer_sizes)
        if isinstance(self.prefix_weights, tuple):
            return list(self.prefix_weights), 0.0
        return {
            "sum": ([1.0] * n, 0.0),
            "mean": ([1 / n] * n, 0.0),
            "mean_with_bias": ([1 / (n + 1)] * n, 1 / (n + 1)),
        }[self.prefix_weights]


class MatryoshkaSAE(SAE):
    """A Matryoshka SAE: every prefix of its dictionary reconstructs on its own, so that early features become general.

    The prefixes end where `layer_sizes` say; `decode(code, stats, layer)` is the reconstruction of one. Features are
    chosen from the whole dictionary, the `k` largest of an activation or, with `selection="batch"`, those above a
    threshold as in a BatchTopK SAE. It learns no forest: `saeforest.infer_forest` infers one.

    Shapes: activations `[..., d_in]`; `encoder` and `decoder` `[d_sae, d_in]`; a code has `k` slots, or as many as the
    fullest activation needs.

    Source: Bussmann et al., arXiv 2503.17547.

    Example:
        >>> import torch
        >>> from saeforest.saes import MatryoshkaConfig, MatryoshkaSAE
        >>> sae = MatryoshkaSAE(MatryoshkaConfig(layer_sizes=(4, 12), k_per_layer=(3,)), d_in=8)
        >>> code, stats = sae.encode_with_stats(torch.randn(5, 8))
        >>> sae.decode(code, stats, layer=0).shape
        torch.Size([5, 8])
    """

    config_class = MatryoshkaConfig
    title, color, marker = "Matryoshka", "#0072B2", "P"
    color_of_two_layers = "#56B4E9"
    has_forest = False
    inference_keys = (*SAE.inference_keys, "selection")
    scaled_weights = (*SAE.scaled_weights, "threshold")

    config: MatryoshkaConfig
    threshold: Tensor

    def __init__(
        self, config: MatryoshkaConfig, d_in: int, *, d_out: int | None = None, seed: int = 0
    ) -> None:
        super().__init__(config, d_in, d_out=d_out, seed=seed)
        # Used with batch selection: the same value for every feature, 0 until the first update.
        self.register_buffer("threshold", torch.zeros(self.d_sae))
        self.at_most_k = config.selection == "token"

    def own_tensors(self) -> dict[str, Tensor]:
        return {"threshold": self.threshold} if self.config.selection == "batch" else {}

    def saelens_keys(self) -> dict[str, Any]:
        return topk_keys(self, *self.config.k_per_layer) if self.config.selection == "token" else {}

    def encode_normalized(self, u: Float[Tensor, "n d_in"], precision: torch.dtype) -> SparseCode:
        by_batch = self.config.selection == "batch"
        selection = Above(self.threshold) if by_batch else TopK(*self.config.k_per_layer)
        return encode(self, u, selection, precision)


class MatryoshkaTraining(FlatTraining):
    """Training with the weighted sum of the prefixes' losses and, with `mean_with_bias`, the loss of b_dec alone."""

    def __init__(self, sae: MatryoshkaSAE, setup: Setup) -> None:
        config, (k,) = sae.config, sae.config.k_per_layer
        by_batch = config.selection == "batch"
        super().__init__(
            sae,
            config,
            setup,
            selection=BatchTopK(k, sae.d_sae) if by_batch else TopK(k),
            losses=self._prefix_losses,
            threshold=FollowedThreshold(sae.threshold, config.threshold, setup.run) if by_batch else None,
        )
        weights, self._bias_weight = config.weights
        self._weights = torch.tensor(weights, dtype=sae.decoder.dtype, device=sae.device)

    def _prefix_losses(
        self, code: SparseCode, target: Float[Tensor, "n d_out"], stats: TokenStats
    ) -> tuple[Float[Tensor, "terms"], Float[Tensor, "n d_out"]]:
        sae = self.sae
        losses, errors = Prefixes(sae.starts).losses(code, sae.decoder, sae.b_dec, target, stats)
        losses = losses * self._weights
        if self._bias_weight:
            alone = (stats.std * sae.b_dec + stats.mean - target).square().mean() / (target.var() + 1e-8)
            losses = torch.cat([self._bias_weight * alone[None], losses])
        return losses, errors[-1]
