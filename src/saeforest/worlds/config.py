"""What every system is trained with on a world whose tree is known."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import InputError
from ..schema import MOST

_LARGE = 10**9


@dataclass(frozen=True)
class SyntheticConfig:
    """What every system is trained with on a world."""

    steps: int = 5_000
    """Training steps."""
    batch_size: int = 1024
    """Samples in a step."""
    lr: float = 3e-3
    """Peak learning rate, for every system."""
    size: float = 1.0
    """Features for each true one."""
    l0: float | None = None
    """Active features to aim at on average, shared among the layers as in the world. None: as many as there are."""
    held_out: int = 50_000
    """Samples to score on."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "lr", "size", "held_out"):
            most = MOST if name == "steps" else _LARGE
            if not 0 < (value := getattr(self, name)) <= most:
                raise InputError(f"{name} = {value}: expected more than 0, and {most:,} at most")
        if self.l0 is not None and not 0 < self.l0 <= _LARGE:
            raise InputError(f"l0 = {self.l0}: expected more than 0, and {_LARGE:,} at most")
