"""The arguments of kernels other than tensors."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor


class AdamStep(NamedTuple):
    """One step of Adam on one matrix."""

    lr: float
    beta1: float
    beta2: float
    eps: float
    steps: int
    """Number of steps, including this one."""
    unit_rows: bool = False
    """Whether rows are scaled to unit norm before the step."""
    project: bool = False
    """Whether the component of each row's gradient along the row is removed; only with `unit_rows`."""
    shard: tuple[int, int] = (0, 1)
    """(r, S): the matrix is the rows r, r + S, r + 2 S, ... of a whole one, and is rounded as that would be."""

    @property
    def seeds(self) -> tuple[int, int, int]:
        """Random seeds for rounding the weights and the two moments."""
        return 2 * self.steps + 2**31, 2 * self.steps, 2 * self.steps + 1


def after_rest(step: AdamStep, last: Int[Tensor, "a"]) -> Float[Tensor, "a 3"]:
    """What rows make up for before `step` that were last updated in the steps `last`: the factors by which their two
    moments have decayed, and how far they move, as a multiple of the first moment over the root of the second.

    The move of the n-th step of a rest is `(beta1 / sqrt(beta2))**n` times the one with the moments as they were.
    """
    rest, ratio = (step.steps - 1 - last).double(), step.beta1 / math.sqrt(step.beta2)
    moves = rest if ratio == 1 else ratio * (1 - ratio**rest) / (1 - ratio)
    far = moves * (step.lr / (1 - step.beta1**step.steps))
    return torch.stack([step.beta1**rest, step.beta2**rest, far], dim=1)
