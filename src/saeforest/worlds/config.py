"""Training settings on a synthetic world, the same for every system."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import InputError
from ..schema import MOST

_LARGE = 10**9


@dataclass(frozen=True)
class SyntheticConfig:
    """Training settings on a synthetic world, the same for every system."""

    steps: int = 5_000
    """Number of training steps."""
    batch_size: int = 1024
    """Number of samples in a training step."""
    lr: float = 3e-3
    """Peak learning rate."""
    size: float = 1.0
    """Dictionary size as a multiple of the number of true features."""
    layer_sizes: tuple[int, ...] | None = None
    """Numbers of features in the layers of the SAEs, if not the world's: systems then do not know the true layers, and
    the active features are divided equally among theirs. Flat systems have as many features in one layer."""
    l0: float | None = None
    """Target mean number of active features, divided among the layers as in the world. By default, the world's own
    mean."""
    held_out: int = 50_000
    """Number of fresh samples to score on."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "lr", "size", "held_out"):
            most = MOST if name == "steps" else _LARGE
            if not 0 < (value := getattr(self, name)) <= most:
                raise InputError(f"{name} = {value}: expected a number above 0, at most {most:,}")
        if self.layer_sizes is not None:
            if self.size != 1.0:
                raise InputError(f"size = {self.size} and layer_sizes: give only one of them")
            if not self.layer_sizes or not all(0 < n <= _LARGE for n in self.layer_sizes):
                raise InputError(
                    f"layer_sizes = {list(self.layer_sizes)}: expected one or more numbers above 0, at most {_LARGE:,}"
                )
        if self.l0 is not None and not 0 < self.l0 <= _LARGE:
            raise InputError(f"l0 = {self.l0}: expected a number above 0, at most {_LARGE:,}")
