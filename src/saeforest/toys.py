"""What systems are trained with on a world whose tree is known."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

from .errors import UserError
from .saes import (
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

SYSTEM_NAMES = (
    "tree",
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

    steps: int = 10_000
    """Training steps."""
    batch_size: int = 1024
    """Samples in a step."""
    lr: float = 3e-3
    """Peak learning rate, for every system."""
    size: float = 1.0
    """Features for each true one."""
    l0: float | None = None
    """Active features to aim at. None: as many as the world's own, rounded up layer by layer."""
    held_out: int = 50_000
    """Samples to score on."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "lr", "size", "held_out"):
            if (value := getattr(self, name)) <= 0:
                raise UserError(f"--{name.replace('_', '-')} {value}: expected more than 0")


def systems_for(
    layer_sizes: tuple[int, ...], k: tuple[int, ...], config: SyntheticConfig
) -> dict[str, SystemConfig]:
    """A configuration of every system by name: of equal size and L0, in layers in proportion to the true ones.

    `layer_sizes`: true features of each layer; `k`: active features to aim at in each.
    """
    sizes = tuple(max(round(n * config.size), 1) for n in layer_sizes)
    flat, total = (sum(sizes),), (sum(k),)
    aux = {"detach": True, "bias": False, "coefficient": 1 / 32}
    common: dict[str, Any] = {"normalize_activations": "none", "dead_after_tokens": 20_000}
    allocation = AllocationConfig(first=200, cap=200, dead_after_tokens=20_000, eligible_within_tokens=20_000)
    # An HSAE's levels reconstruct alone: each holds the features of all layers so far.
    levels, level_k = tuple(accumulate(sizes)), tuple(accumulate(k))
    hsae = HSAEConfig(levels, level_k, bandwidth=0.05, **common) if len(levels) > 1 else None
    systems: dict[str, SystemConfig | None] = {
        "tree": TreeConfig(sizes, k, "none", aux=TreeAuxConfig(layers=None, **aux), allocation=allocation),
        "hsae": hsae,
        "hsae-baseline": hsae
        and replace(hsae, constraint=0.0, perturbation=0.0, hierarchy=HierarchyConfig(updates="after")),
        "topk": TopKConfig(flat, total, aux=AuxConfig(**aux), **common),
        "batchtopk": BatchTopKConfig(flat, total, aux=AuxConfig(**aux), **common),
        "matryoshka": MatryoshkaConfig(sizes, total, aux=AuxConfig(**aux), **common),
        "jumprelu": JumpReLUConfig(flat, total, bandwidth=0.05, **common),
        "matching_pursuit": MatchingPursuitConfig(flat, total, **common),
    }
    return {name: system for name, system in systems.items() if system is not None}
