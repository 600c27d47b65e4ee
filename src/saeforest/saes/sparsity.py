"""The control of L0 by the weight of the L0 loss (HSAE, App. A.2; docs/spec/hsae.md#l0-control)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..errors import InputError
from .training import PAPER_STEPS, RunLength

_LEAST_WEIGHT, _LARGEST_WEIGHT = 1e-8, 1e2
# Upper bounds for short runs, in which the schedule in proportion would be faster than a step of Adam can follow.
_FASTEST_RATE, _FASTEST_AVERAGE, _FASTEST_GAIN = 0.01, 0.05, 0.05


@dataclass(frozen=True)
class SparsityConfig:
    """The L0 loss, whose weight is controlled so that L0 approaches its target (docs/spec/hsae.md#l0-control)."""

    weight: float = 1e-3
    """Initial weight of the L0 loss, in units of d_in because the losses are sums over dimensions. It then stays
    between 1e-8 and 100."""
    rate: float | None = None
    """Fraction of its distance to the target by which L0 should move in a step. None: 0.001 for a run of 97,657 steps
    (the paper), higher for shorter runs, at most 0.01."""
    momentum: float | None = None
    """Decay rate of the moving average of L0. None: 0.999 for a run of 97,657 steps, lower for shorter runs, at least
    0.95."""
    gain: float | None = None
    """Change of the logarithm of the weight in a step. None: 0.001 for a run of 97,657 steps, higher for shorter runs,
    at most 0.05."""

    def __post_init__(self) -> None:
        if self.weight <= 0:
            raise InputError(f"sae.sparsity.weight = {self.weight}: expected more than 0")
        if self.rate is not None and not 0 < self.rate <= 1:
            raise InputError(f"sae.sparsity.rate = {self.rate}: expected more than 0, and at most 1")
        if self.momentum is not None and not 0 <= self.momentum < 1:
            raise InputError(f"sae.sparsity.momentum = {self.momentum}: expected 0 or more, and less than 1")
        if self.gain is not None and self.gain < 0:
            raise InputError(f"sae.sparsity.gain = {self.gain}: expected 0 or more")


class SparsityController(nn.Module):
    """Controls the weights of the levels' L0 losses by the velocity of L0.

    If L0 falls more slowly than wanted, its weight grows; if it falls faster, its weight shrinks. All state stays on
    the device.
    """

    weight: Tensor
    l0: Tensor

    def __init__(
        self,
        config: SparsityConfig,
        targets: tuple[int, ...],
        d_in: int,
        run: RunLength,
        device: torch.device,
    ) -> None:
        super().__init__()
        per_step = 1e-3 * PAPER_STEPS / max(run.n_steps, 1)
        self.rate = min(per_step, _FASTEST_RATE) if config.rate is None else config.rate
        self.momentum = 1 - min(per_step, _FASTEST_AVERAGE) if config.momentum is None else config.momentum
        self.gain = min(per_step, _FASTEST_GAIN) if config.gain is None else config.gain
        self._bounds = _LEAST_WEIGHT * d_in, _LARGEST_WEIGHT * d_in
        wide = {"dtype": torch.float64, "device": device}
        self._targets = torch.tensor(targets, **wide)
        # For each level, the weight of its L0 loss, and the moving average of its L0 (negative: no value yet).
        self.register_buffer("weight", torch.full((len(targets),), config.weight * d_in, **wide))
        self.register_buffer("l0", torch.full((len(targets),), -1.0, **wide))

    def steer(self, l0: Float[Tensor, "L"]) -> None:
        """Update the weights after a step; `l0` is the mean number of active features per token in each level."""
        first = self.l0 < 0
        after = self.momentum * self.l0 + (1 - self.momentum) * l0
        wanted = -self.rate * (after - self._targets)
        slow = after - self.l0 < wanted
        turned = torch.where(slow, self.weight * math.exp(-self.gain), self.weight * math.exp(self.gain))
        self.weight = torch.where(first, self.weight, turned.clamp(*self._bounds))
        self.l0 = torch.where(first, l0, after)
