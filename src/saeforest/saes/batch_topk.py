"""BatchTopK SAE (Bussmann et al., arXiv 2412.06410): on average k features are active on each token of a batch.

In training, the k * n largest pre-activations of a batch of n activations are active. At inference there is a threshold
instead, so that the features of an activation never depend on the rest of the batch
(docs/spec/baselines.md#batchtopk).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import InputError
from ..sparse_code import SparseCode
from .base import SAE
from .checks import check_dead_after, check_one_layer, check_sizes
from .flat import FlatConfig, FlatTraining, Whole, encode
from .select import Above, BatchTopK
from .training import PAPER_STEPS, RunLength, Setup, Step

_PAPER_THRESHOLD_FROM = 1_000 / PAPER_STEPS
_LARGEST_UPDATE = 0.05


@dataclass(frozen=True)
class ThresholdConfig:
    """The threshold that an SAE trained by batch top-k uses at inference: a moving average of each batch's smallest
    selected pre-activation."""

    start: int | None = None
    """First training step at which the threshold is updated. None: 1% of the run (1,000 of 97,657 steps)."""
    momentum: float | None = None
    """Decay rate of the moving average. None: 0.999 for a run of 97,657 steps, lower for shorter runs, at least
    0.95."""

    def __post_init__(self) -> None:
        if self.start is not None and self.start < 1:
            raise InputError(f"sae.threshold.start = {self.start}: expected step 1 or later")
        if self.momentum is not None and not 0 <= self.momentum < 1:
            raise InputError(f"sae.threshold.momentum = {self.momentum}: expected 0 or more, and less than 1")


@dataclass(frozen=True)
class BatchTopKConfig(FlatConfig):
    """A BatchTopK SAE and its training. The defaults are those of the baselines in the Tree SAE paper."""

    threshold: ThresholdConfig = field(default_factory=ThresholdConfig)
    architecture: Literal["batchtopk"] = "batchtopk"

    def __post_init__(self) -> None:
        check_sizes(self.layer_sizes, self.k_per_layer)
        check_dead_after(self.dead_after_tokens)
        check_one_layer(self.architecture, self.layer_sizes)


class BatchTopKSAE(SAE):
    """A BatchTopK SAE: `k` features an activation on average, as many as it takes on each.

    In training the `k * n` largest pre-activations of a batch of `n` are kept. Afterwards a feature fires where its
    pre-activation exceeds one threshold, a moving average of the smallest that each batch kept: `encode` looks at every
    activation alone.

    Shapes: activations `[..., d_in]`; `encoder` and `decoder` `[d_sae, d_in]`; `threshold` `[d_sae]`, the same number
    for all; a code has as many slots as the fullest activation needs.

    Source: Bussmann et al., arXiv 2412.06410.

    Example:
        >>> import torch
        >>> from saeforest.saes import BatchTopKConfig, BatchTopKSAE
        >>> sae = BatchTopKSAE(BatchTopKConfig(layer_sizes=(16,), k_per_layer=(3,)), d_in=8)
        >>> sae(torch.randn(5, 8)).shape
        torch.Size([5, 8])
    """

    config_class = BatchTopKConfig
    title, color, marker = "BatchTopK", "#7A7A7A", "v"
    has_forest = False
    scaled_weights = (*SAE.scaled_weights, "threshold")

    config: BatchTopKConfig
    threshold: Tensor

    def __init__(
        self, config: BatchTopKConfig, d_in: int, *, d_out: int | None = None, seed: int = 0
    ) -> None:
        super().__init__(config, d_in, d_out=d_out, seed=seed)
        # The same value for every feature; 0 until the first update.
        self.register_buffer("threshold", torch.zeros(self.d_sae))

    def own_tensors(self) -> dict[str, Tensor]:
        return {"threshold": self.threshold}

    def encode_normalized(self, u: Float[Tensor, "n d_in"], precision: torch.dtype) -> SparseCode:
        return encode(self, u, Above(self.threshold), precision)


class FollowedThreshold:
    """Updates the inference threshold: a moving average of each batch's smallest selected value."""

    def __init__(self, threshold: Float[Tensor, "d_sae"], config: ThresholdConfig, run: RunLength) -> None:
        self._threshold = threshold
        start = run.share(_PAPER_THRESHOLD_FROM) if config.start is None else config.start
        self.start = min(start, run.n_steps)  # so that even a very short run ends with a threshold
        in_proportion = 1 - min(1e-3 * PAPER_STEPS / max(run.n_steps, 1), _LARGEST_UPDATE)
        self.momentum = in_proportion if config.momentum is None else config.momentum

    def follow(self, step: Step, number: int) -> None:
        """Update the threshold from step `number`, counted from 1."""
        values = step.code.values
        self.update(torch.where(values > 0, values, torch.inf).min(), number)

    def update(self, least: Float[Tensor, ""], number: int) -> None:
        """Update the threshold from the smallest value that step `number` selected; infinite if there is none."""
        if number < self.start:
            return
        least, threshold = least.double(), self._threshold
        # All of this stays on the device, so nothing waits for a transfer.
        kept = self.momentum * (threshold[0] > 0).double()
        moved = threshold * kept.to(threshold.dtype) + ((1 - kept) * least).to(threshold.dtype)
        threshold.copy_(torch.where(least.isfinite(), moved, threshold))


class BatchTopKTraining(FlatTraining):
    """The training of a BatchTopK SAE."""

    def __init__(self, sae: BatchTopKSAE, setup: Setup) -> None:
        super().__init__(
            sae,
            sae.config,
            setup,
            selection=BatchTopK(sum(sae.config.k_per_layer), sae.d_sae),
            losses=Whole(sae),
            threshold=FollowedThreshold(sae.threshold, sae.config.threshold, setup.run),
        )
