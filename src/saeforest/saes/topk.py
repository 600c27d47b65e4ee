"""TopK SAE (Gao et al., arXiv 2406.04093): the k features with the largest pre-activations are active on each token.

Dead features are trained on the residual. BatchTopK SAEs change how features are selected, Matryoshka SAEs what is
reconstructed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from ..sparse_code import SparseCode
from .base import SAE
from .checks import check_dead_after, check_one_layer, check_sizes
from .flat import FlatConfig, FlatTraining, Whole, encode, topk_keys
from .select import TopK
from .training import Setup


@dataclass(frozen=True)
class TopKConfig(FlatConfig):
    """A TopK SAE and its training. The defaults are those of the baseline in the Tree SAE paper."""

    architecture: Literal["topk"] = "topk"

    def __post_init__(self) -> None:
        check_sizes(self.layer_sizes, self.k_per_layer)
        check_dead_after(self.dead_after_tokens)
        check_one_layer(self.architecture, self.layer_sizes)


class TopKSAE(SAE):
    """A TopK SAE: of every activation, the `k` features of largest pre-activation, where that is positive.

    It is flat: `forest` hangs every feature from the root; `saeforest.infer_forest` infers another.

    Shapes: activations `[..., d_in]`; `encoder` and `decoder` `[d_sae, d_in]`; a code has `k` slots.

    Source: Gao et al., arXiv 2406.04093.

    Example:
        >>> import torch
        >>> from saeforest.saes import TopKConfig, TopKSAE
        >>> sae = TopKSAE(TopKConfig(layer_sizes=(16,), k_per_layer=(3,)), d_in=8)
        >>> sae.encode(torch.randn(5, 8)).values.shape
        torch.Size([5, 3])
    """

    config_class = TopKConfig
    title, color, marker = "TopK", "#000000", "^"
    at_most_k = True
    has_forest = False

    config: TopKConfig

    @property
    def k(self) -> int:
        """The largest number of active features on a token."""
        return sum(self.config.k_per_layer)

    def saelens_keys(self) -> dict[str, Any]:
        return topk_keys(self, self.k)

    def encode_normalized(self, u: Float[Tensor, "n d_in"], precision: torch.dtype) -> SparseCode:
        return encode(self, u, TopK(self.k), precision)


class TopKTraining(FlatTraining):
    """The training of a TopK SAE."""

    def __init__(self, sae: TopKSAE, setup: Setup) -> None:
        super().__init__(sae, sae.config, setup, selection=TopK(sae.k), losses=Whole(sae))
