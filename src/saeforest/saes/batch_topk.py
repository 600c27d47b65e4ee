"""BatchTopK SAE (Bussmann et al., arXiv 2412.06410): k features an activation on average, chosen over the batch.

Trained by the batch's k * n largest pre-activations, it is used with a threshold, so that what an activation's
features are never depends on the others beside it (SPEC 7.2).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import UserError
from ..sparse_code import SparseCode
from .base import PAPER_STEPS, Event, Step, TrainingPlan
from .select import above, batch_top_k, exceeding, top_k
from .topk import TopKConfig, TopKSAE

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
            raise UserError(f"sae.threshold.start = {self.start}: expected step 1 or later")
        if self.momentum is not None and not 0 <= self.momentum < 1:
            raise UserError(f"sae.threshold.momentum = {self.momentum}: expected 0 or more, and less than 1")


@dataclass(frozen=True)
class BatchTopKConfig(TopKConfig):
    """A BatchTopK SAE and its training."""

    threshold: ThresholdConfig = field(default_factory=ThresholdConfig)
    architecture: Literal["batchtopk"] = "batchtopk"  # pyright: ignore[reportIncompatibleVariableOverride]


class BatchTopKSAE(TopKSAE):
    config_class = BatchTopKConfig
    title, color, marker = "BatchTopK", "#7A7A7A", "v"
    at_most_k = False

    config: BatchTopKConfig  # pyright: ignore[reportIncompatibleVariableOverride]
    threshold: Tensor

    def __init__(self, config: BatchTopKConfig, d_in: int, *, seed: int = 0) -> None:
        super().__init__(config, d_in, seed=seed)
        # The same for every feature; 0 until the first batch that sets it.
        self.register_buffer("threshold", torch.zeros(self.d_sae))
        self._threshold_start, self._momentum, self._least = 1, 0.0, 0.0

    @property
    def by_batch(self) -> bool:
        """Whether features are chosen over the batch, and used with a threshold."""
        return True

    def tensors(self) -> dict[str, Tensor]:
        return super().tensors() | ({"threshold": self.threshold} if self.by_batch else {})

    def _in_input_units(self) -> list[Tensor]:
        return [*super()._in_input_units(), self.threshold]

    def saelens_keys(self) -> dict[str, Any]:
        return {} if self.by_batch else super().saelens_keys()

    def select(self, u: Float[Tensor, "n d_in"]) -> SparseCode:
        if not self.by_batch:
            return super().select(u)
        return self._sliced(u, lambda h: above(h, self.threshold.to(h.dtype)))

    # -- training

    def prepare(self, plan: TrainingPlan) -> None:
        super().prepare(plan)
        start = self.config.threshold.start
        start = plan.share(_PAPER_THRESHOLD_FROM) if start is None else start
        self._threshold_start = min(start, plan.n_steps)  # a short run ends with a threshold too
        in_proportion = 1 - min(1e-3 * PAPER_STEPS / max(plan.n_steps, 1), _LARGEST_UPDATE)
        momentum = self.config.threshold.momentum
        self._momentum = in_proportion if momentum is None else momentum

    @torch.no_grad()
    def select_in_training(self, u: Float[Tensor, "n d_in"]) -> SparseCode:
        if not self.by_batch:
            return super().select(u)
        return batch_top_k(
            lambda width: self._sliced(u, lambda h: top_k(h, width)),
            lambda rows, bound: self._sliced(u[rows], lambda h: exceeding(h, bound)),
            len(u),
            self.d_sae,
            self.k,
        )

    def training_step(self, x: Float[Tensor, "n d_in"]) -> Step:
        step = super().training_step(x)
        chosen = step.code.values[step.code.active()]
        self._least = float(chosen.min()) if len(chosen) else 0.0
        return step

    @torch.no_grad()
    def after_step(self, step: int, loss: float) -> list[Event]:
        """The threshold follows the smallest chosen value: its first sight of it, then a moving average."""
        if self.by_batch and step >= self._threshold_start and self._least > 0:
            kept = self._momentum if bool(self.threshold[0] > 0) else 0.0
            self.threshold.mul_(kept).add_((1 - kept) * self._least)
        return []
