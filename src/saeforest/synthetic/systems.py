"""What systems are trained with on a world whose tree is known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

from ..errors import UserError
from ..saes import (
    AllocationConfig,
    AuxConfig,
    BatchTopKConfig,
    HierarchyConfig,
    HSAEConfig,
    JumpReLUConfig,
    MatchingPursuitConfig,
    MatryoshkaConfig,
    SystemConfig,
    TopKConfig,
    TreeAuxConfig,
    TreeConfig,
)
from ..schema import MOST

_THRESHOLD, _DEAD = 0.2, 10_000
_LARGE = 10**9

#: `tree` may hang a feature only below the layer before its own; `tree-any-parent`, as in the paper, below any.
SYSTEM_NAMES = (
    "tree",
    "tree-any-parent",
    "hsae",
    "hsae-baseline",
    "topk",
    "batchtopk",
    "matryoshka",
    "jumprelu",
    "matching_pursuit",
)


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
                raise UserError(f"{name} = {value}: expected more than 0, and {most:,} at most")
        if self.l0 is not None and not 0 < self.l0 <= _LARGE:
            raise UserError(f"l0 = {self.l0}: expected more than 0, and {_LARGE:,} at most")


def system_for(
    name: str,
    layer_sizes: tuple[int, ...],
    most: tuple[int, ...],
    mean: tuple[float, ...],
    config: SyntheticConfig,
) -> SystemConfig:
    """The configuration of a system by name: all of equal size, in layers in proportion to the true ones.

    `layer_sizes`: true features of each layer; `most`, `mean`: how many of each layer are active on most samples,
    for systems with a k for every activation, and on average, for those that aim at a mean. Raises UserError where
    such a system cannot be.
    """
    sizes = tuple(max(round(n * config.size), 1) for n in layer_sizes)
    flat, total, average = (sum(sizes),), (sum(most),), (max(round(sum(mean)), 1),)
    aux: dict[str, Any] = {"detach": True, "bias": False, "coefficient": 1 / 32}
    # True activations are about 1: what is far below is noise, and neither fires nor opens a gate.
    plain: dict[str, Any] = {"normalize_activations": "none", "activation_threshold": _THRESHOLD}
    # Nothing rarer than once in some thousand samples; a dead child may wait a hundred steps.
    allocation = AllocationConfig(
        first=100, cap=100, root_reset_at=0.8, dead_after_tokens=_DEAD, eligible_within_tokens=_DEAD
    )

    def tree() -> TreeConfig:
        auxiliary = TreeAuxConfig(layers=None, **aux)
        return TreeConfig(sizes, most, **plain, aux=auxiliary, allocation=allocation)

    common: dict[str, Any] = plain | {"dead_after_tokens": _DEAD}
    # An HSAE's levels reconstruct alone: each holds the features of all layers so far.
    levels, level_k = tuple(accumulate(sizes)), tuple(max(round(k), 1) for k in accumulate(mean))

    def hsae() -> HSAEConfig:
        return HSAEConfig(levels, level_k, bandwidth=0.05, **common)

    unlinked: dict[str, Any] = {
        "constraint": 0.0,
        "perturbation": 0.0,
        "hierarchy": HierarchyConfig(updates="after"),
    }
    # Made when asked for: not every system fits every world.
    systems: dict[str, Callable[[], SystemConfig]] = {
        "tree": lambda: replace(tree(), allocation=replace(allocation, parents="previous")),
        "tree-any-parent": tree,
        "hsae": hsae,
        "hsae-baseline": lambda: replace(hsae(), **unlinked),
        "topk": lambda: TopKConfig(flat, total, aux=AuxConfig(**aux), **common),
        "batchtopk": lambda: BatchTopKConfig(flat, average, aux=AuxConfig(**aux), **common),
        "matryoshka": lambda: MatryoshkaConfig(sizes, total, aux=AuxConfig(**aux), **common),
        "jumprelu": lambda: JumpReLUConfig(flat, average, bandwidth=0.05, **common),
        "matching_pursuit": lambda: MatchingPursuitConfig(flat, total, **common),
    }
    try:
        return systems[name]()
    except UserError as error:
        raise UserError(f"system {name} with size {config.size} and l0 {config.l0}: {error}") from None
