"""Steering L0 to its target by the weight of the L0 loss (HSAE, App. A.2; docs/spec/hsae.md#l0-control)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..errors import InputError
from .training import PAPER_STEPS, RunLength

_LEAST_WEIGHT, _LARGEST_WEIGHT = 1e-8, 1e2
# In short runs, steering as fast as in proportion would outrun what a step of Adam can move.
_FASTEST_RATE, _FASTEST_AVERAGE, _FASTEST_GAIN = 0.01, 0.05, 0.05


@dataclass(frozen=True)
class SparsityConfig:
    """The weight of the L0 loss, which is steered by the speed at which L0 falls (docs/spec/hsae.md#l0-control)."""

    weight: float = 1e-3
    """At the start; times d_in, for the losses are sums over coordinates. It stays within 1e-8 and 1e2 of these."""
    rate: float | None = None
    """Share of its distance to the target by which L0 is to move in a step. None: 0.001 in the paper's 97,657 steps,
    in proportion to the run, 0.01 at most."""
    momentum: float | None = None
    """Of the moving average of L0. None: 0.999 in 97,657 steps, in proportion, 0.95 at least."""
    gain: float | None = None
    """How far the logarithm of the weight moves in a step. None: 0.001 in 97,657 steps, in proportion, 0.05 at most."""

    def __post_init__(self) -> None:
        if self.weight <= 0:
            raise InputError(f"sae.sparsity.weight = {self.weight}: expected more than 0")
        if self.rate is not None and not 0 < self.rate <= 1:
            raise InputError(f"sae.sparsity.rate = {self.rate}: expected more than 0, and 1 at most")
        if self.momentum is not None and not 0 <= self.momentum < 1:
            raise InputError(f"sae.sparsity.momentum = {self.momentum}: expected 0 or more, and less than 1")
        if self.gain is not None and self.gain < 0:
            raise InputError(f"sae.sparsity.gain = {self.gain}: expected 0 or more")


class SparsityController(nn.Module):
    """The weights of the levels' L0 losses, by velocity control.

    A larger weight where L0 falls more slowly than wanted, a smaller one where it falls faster. Nothing here waits for
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
        # Of each level: the weight of its L0 loss, and the moving average of its L0 (below 0: none yet).
        self.register_buffer("weight", torch.full((len(targets),), config.weight * d_in, **wide))
        self.register_buffer("l0", torch.full((len(targets),), -1.0, **wide))

    def steer(self, l0: Float[Tensor, "L"]) -> None:
        """Moves the weights after a step on which the levels had so many active features."""
        first = self.l0 < 0
        after = self.momentum * self.l0 + (1 - self.momentum) * l0
        wanted = -self.rate * (after - self._targets)
        slow = after - self.l0 < wanted
        turned = torch.where(slow, self.weight * math.exp(-self.gain), self.weight * math.exp(self.gain))
        self.weight = torch.where(first, self.weight, turned.clamp(*self._bounds))
        self.l0 = torch.where(first, l0, after)
