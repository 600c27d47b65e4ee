"""JumpReLU SAE (Rajamanoharan et al., arXiv 2407.14435): every feature has its own threshold, trained by a
straight-through estimator so that L0 stays at its target.

The estimator is in `thresholds.py`, the control of L0 in `sparsity.py`, and the SAE itself in `levels.py`, which is
written for any number of levels; this file is the case of one level.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from .checks import check_one_layer
from .levels import Level, LevelsConfig, LevelsSAE, LevelsTraining, Links, decoded
from .training import Event, Setup, Step


@dataclass(frozen=True)
class JumpReLUConfig(LevelsConfig):
    """A JumpReLU SAE and its training."""

    architecture: Literal["jumprelu"] = "jumprelu"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_one_layer(self.architecture, self.layer_sizes)


class JumpReLUSAE(LevelsSAE):
    """A JumpReLU SAE: a feature fires where its pre-activation exceeds a threshold of its own, which is trained.

    A controller moves the weight of the sparsity loss until the L0 is `k_per_layer`. It is flat: `forest` hangs every
    feature from the root; `saeforest.infer_forest` infers another.

    Shapes: activations `[..., d_in]`; `encoder` and `decoder` `[d_sae, d_in]`; `threshold` `[d_sae]`; a code has as
    many slots as the fullest activation needs.

    Source: Rajamanoharan et al., arXiv 2407.14435.

    Example:
        >>> import torch
        >>> from saeforest.saes import JumpReLUConfig, JumpReLUSAE
        >>> sae = JumpReLUSAE(JumpReLUConfig((16,), (3,), normalize_activations="none"), d_in=8)
        >>> sae(torch.randn(5, 8)).shape
        torch.Size([5, 8])
    """

    config_class = JumpReLUConfig
    title, color, marker = "JumpReLU", "#9C8B00", "<"
    has_forest = False

    config: JumpReLUConfig


class Unlinked(Links):
    """No links: every level is independent of the others."""

    def reconstructions(
        self, sae: LevelsSAE, levels: list[Level], n: int, done: int
    ) -> list[Float[Tensor, "n d_in"]]:
        return [decoded(sae, level, i, n) for i, level in enumerate(levels)]

    def loss(self, sae: LevelsSAE, levels: list[Level], n: int) -> None:
        return None

    def follow(self, sae: LevelsSAE, step: Step, number: int) -> list[Event]:
        return []

    def conclude(self, sae: LevelsSAE, number: int) -> None:
        pass


class JumpReLUTraining(LevelsTraining):
    """The training of a JumpReLU SAE."""

    def __init__(self, sae: JumpReLUSAE, setup: Setup) -> None:
        super().__init__(sae, sae.config, Unlinked(), setup)
