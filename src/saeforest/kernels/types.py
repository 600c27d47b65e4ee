"""What kernels are told beside tensors."""

from __future__ import annotations

from typing import NamedTuple


class AdamStep(NamedTuple):
    """One step of Adam on one matrix."""

    lr: float
    beta1: float
    beta2: float
    eps: float
    steps: int
    """Steps so far, this one included."""
    unit_rows: bool = False
    """Rows are brought to unit norm first."""
    project: bool = False
    """And their gradient loses its part along them."""
