"""The settings of an HSAE: its levels, the structural constraint, and how parents are chosen."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

from ..errors import InputError
from .levels import LevelsConfig


@dataclass(frozen=True)
class ParentsConfig:
    """How features choose their parents in the level above."""

    updates: Literal["alternate", "fixed", "after", "none"] = "alternate"
    """When parents are chosen. alternate: every `period` steps; fixed: once, after the first `period` steps; after:
    once, at the end of training; none: never."""
    period: int | None = None
    """Number of steps between updates. None: 5% of the run (5,000 of the paper's 97,657 steps)."""
    similarity: Literal["encoder", "decoder", "coactivation", "conditional"] = "encoder"
    """Similarity by which a feature chooses its parent. encoder or decoder: cosine of their rows; coactivation: how
    often both fire on a token; conditional: that, divided by how often the child fires."""
    momentum: float = 0.99
    """Decay rate per step of the moving averages for coactivation and conditional."""
    unassigned: float = 0.2
    """Fraction of each level, the features least similar to any parent, that stays without one. 0: the full tree."""
    max_children: int | None = None
    """Largest number of children of a feature; 2 makes a binary tree. None: no limit."""
    max_cosine: float | None = None
    """Largest cosine of a feature's decoder row with its parent's; with a larger one it would be a copy. None: no
    limit, as in the paper."""

    def __post_init__(self) -> None:
        if self.period is not None and self.period < 1:
            raise InputError(f"sae.hierarchy.period = {self.period}: expected 1 or more steps")
        if not 0 <= self.unassigned <= 1:
            raise InputError(f"sae.hierarchy.unassigned = {self.unassigned}: expected a fraction from 0 to 1")
        if not 0 <= self.momentum < 1:
            raise InputError(f"sae.hierarchy.momentum = {self.momentum}: expected 0 or more, and less than 1")
        if self.max_children is not None and self.max_children < 1:
            raise InputError(f"sae.hierarchy.max_children = {self.max_children}: expected 1 or more")
        if self.max_cosine is not None and not -1 <= self.max_cosine <= 1:
            raise InputError(f"sae.hierarchy.max_cosine = {self.max_cosine}: expected a cosine, -1 to 1")


@dataclass(frozen=True)
class HSAEConfig(LevelsConfig):
    """An HSAE and its training. Sizes, L0, constraint and perturbation are the paper's by default."""

    layer_sizes: tuple[int, ...] = (2048, 4096, 8192, 16384)
    """Number of features in each level; each level is larger than the previous one."""
    k_per_layer: tuple[int, ...] = (50, 50, 50, 50)
    """Target L0 of each level: the mean number of active features per token that training aims at."""
    constraint: float = 0.01
    """Weight of the loss that pulls a feature toward the sum of its children. 0: no such loss."""
    perturbation: float = 0.05
    """Probability that a feature with children is replaced by their sum, drawn again in every step. 0: never."""
    compare: Literal["vector", "projected"] = "vector"
    """What constraint and perturbation take from the children. vector: all that they write, as in the paper; projected:
    only their part along the parent's decoder row, so that a child may have a direction of its own."""
    hierarchy: ParentsConfig = field(default_factory=ParentsConfig)
    architecture: Literal["hsae"] = "hsae"

    def __post_init__(self) -> None:
        super().__post_init__()
        sizes = self.layer_sizes
        if len(sizes) < 2 or any(b <= a for a, b in pairwise(sizes)):
            raise InputError(
                f"sae.layer_sizes {list(sizes)}: expected two or more levels, each larger than the previous one"
            )
        if self.constraint < 0:
            raise InputError(f"sae.constraint = {self.constraint}: expected 0 or more")
        if not 0 <= self.perturbation <= 1:
            raise InputError(f"sae.perturbation = {self.perturbation}: expected a probability from 0 to 1")
