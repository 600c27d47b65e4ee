"""BatchTopK SAE (Bussmann et al., arXiv 2412.06410): k features an activation on average, chosen over the batch.

Trained by the batch's k * n largest pre-activations, it is used with a threshold, so that what an activation's
features are never depends on the others beside it (docs/spec/baselines.md#batchtopk).
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
    """The threshold with which an SAE trained by batch top-k is used."""

    start: int | None = None
    """The step from which it follows the batches' smallest chosen value. None: 1,000 of 97,657 steps, in proportion
    to the run."""
    momentum: float | None = None
    """Share of the threshold so far in every update. None: 0.999 in 97,657 steps, in proportion, 0.95 at least."""

    def __post_init__(self) -> None:
        if self.start is not None and self.start < 1:
            raise InputError(f"sae.threshold.start = {self.start}: expected step 1 or later")
        if self.momentum is not None and not 0 <= self.momentum < 1:
            raise InputError(f"sae.threshold.momentum = {self.momentum}: expected 0 or more, and less than 1")


@dataclass(frozen=True)
class BatchTopKConfig(FlatConfig):
    """A BatchTopK SAE and its training."""

    threshold: ThresholdConfig = field(default_factory=ThresholdConfig)
    architecture: Literal["batchtopk"] = "batchtopk"

    def __post_init__(self) -> None:
        check_sizes(self.layer_sizes, self.k_per_layer)
        check_dead_after(self.dead_after_tokens)
        check_one_layer(self.architecture, self.layer_sizes)


class BatchTopKSAE(SAE):
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
        # The same for every feature; 0 until the first batch that sets it.
        self.register_buffer("threshold", torch.zeros(self.d_sae))

    def own_tensors(self) -> dict[str, Tensor]:
        return {"threshold": self.threshold}

    def encode_normalized(self, u: Float[Tensor, "n d_in"], precision: torch.dtype) -> SparseCode:
        return encode(self, u, Above(self.threshold), precision)


class FollowedThreshold:
    """The threshold for use follows the smallest chosen value: its first sight of it, then a moving average."""

    def __init__(self, threshold: Float[Tensor, "d_sae"], config: ThresholdConfig, run: RunLength) -> None:
        self._threshold = threshold
        start = run.share(_PAPER_THRESHOLD_FROM) if config.start is None else config.start
        self.start = min(start, run.n_steps)  # a short run ends with a threshold too
        in_proportion = 1 - min(1e-3 * PAPER_STEPS / max(run.n_steps, 1), _LARGEST_UPDATE)
        self.momentum = in_proportion if config.momentum is None else config.momentum

    def follow(self, step: Step, number: int) -> None:
        if number < self.start:
            return
        values, threshold = step.code.values, self._threshold
        least = torch.where(values > 0, values, torch.inf).min().double()
        # All on the device: nothing here waits for it.
        kept = self.momentum * (threshold[0] > 0).double()
        moved = threshold * kept.to(threshold.dtype) + ((1 - kept) * least).to(threshold.dtype)
        threshold.copy_(torch.where(least.isfinite(), moved, threshold))


class BatchTopKTraining(FlatTraining):
    def __init__(self, sae: BatchTopKSAE, setup: Setup) -> None:
        super().__init__(
            sae,
            sae.config,
            setup,
            selection=BatchTopK(sum(sae.config.k_per_layer)),
            losses=Whole(sae),
            threshold=FollowedThreshold(sae.threshold, sae.config.threshold, setup.run),
        )
