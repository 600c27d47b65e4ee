"""The arguments of kernels other than tensors."""

from __future__ import annotations

from typing import NamedTuple


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
