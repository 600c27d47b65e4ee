"""Presets of the systems for synthetic worlds: all of equal size, with layers in proportion to the true ones."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

from ..errors import InputError
from ..presets import PRESETS
from ..saes import (
    AllocationConfig,
    AuxConfig,
    BatchTopKConfig,
    ExpertHSAEConfig,
    FromDataConfig,
    HSAEConfig,
    JumpReLUConfig,
    MatchingPursuitConfig,
    MatryoshkaConfig,
    ParentsConfig,
    SystemConfig,
    TopKConfig,
    TreeAuxConfig,
    TreeConfig,
)
from .config import SyntheticConfig

_DEAD = 10_000
_AUX: dict[str, Any] = {"detach": True, "bias": False, "coefficient": 1 / 32}
# True activations are about 1; values far below that are noise and do not count as firing.
_PLAIN: dict[str, Any] = {"normalize_activations": "none", "activation_threshold": 0.2}
_COMMON: dict[str, Any] = _PLAIN | {"dead_after_tokens": _DEAD}
# All true features fire at least once in a few thousand samples, so features are dead, and reallocated, early.
_ALLOCATION = AllocationConfig(
    first=100, cap=100, root_reset_at=0.8, dead_after_tokens=_DEAD, eligible_within_tokens=_DEAD
)
_UNLINKED: dict[str, Any] = {
    "constraint": 0.0,
    "perturbation": 0.0,
    "hierarchy": ParentsConfig(updates="after"),
}


@dataclass(frozen=True)
class _Shape:
    """Layer sizes of an SAE, and numbers of active features per layer.

    sizes: number of features in each layer.
    most:  number of active features in each layer that is not exceeded on most samples.
    mean:  mean number of active features in each layer.
    """

    sizes: tuple[int, ...]
    most: tuple[int, ...]
    mean: tuple[float, ...]

    @property
    def flat(self) -> tuple[int]:
        """All features in one layer."""
        return (sum(self.sizes),)

    @property
    def total(self) -> tuple[int]:
        """Number of active features that is not exceeded on most samples, for systems with a k per activation."""
        return (sum(self.most),)

    @property
    def average(self) -> tuple[int]:
        """Mean number of active features, for systems that control the mean."""
        return (max(round(sum(self.mean)), 1),)

    @property
    def no_less(self) -> tuple[int]:
        """The same rounded up, for systems that merge a child with its parent where there is no room for both."""
        return (max(math.ceil(sum(self.mean) - 1e-6), 1),)


def _tree(shape: _Shape) -> TreeConfig:
    aux = TreeAuxConfig(layers=None, **_AUX)
    return TreeConfig(shape.sizes, shape.most, **_PLAIN, aux=aux, allocation=_ALLOCATION)


def _earned_tree(shape: _Shape) -> TreeConfig:
    # One budget for the whole tree, the mean number of active features; no parents until the data support them. The
    # lift prefers a parent to a grandparent that covers as much.
    data = FromDataConfig(score="log_lift", earned=0.3, detectors="batch", promote=1.5, sample=1024)
    return TreeConfig(
        shape.sizes,
        shape.no_less,
        **_PLAIN,
        selection="closed",
        budget="batch",
        beam=4.0,
        aux=TreeAuxConfig(layers=None, **_AUX),
        allocation=replace(
            _ALLOCATION, rule="data", start="root", reinitialize=True, root_reset_at=0.0, from_data=data
        ),
    )


def _demo_tree(shape: _Shape) -> TreeConfig:
    demo = PRESETS["demo"].sae
    assert isinstance(demo, TreeConfig)
    soon = replace(demo.allocation, dead_after_tokens=_DEAD, eligible_within_tokens=_DEAD)
    return replace(demo, layer_sizes=shape.sizes, k_per_layer=shape.no_less, **_PLAIN, allocation=soon)


def _hsae(shape: _Shape) -> HSAEConfig:
    # Each level of an HSAE reconstructs by itself, so it has as many features as all true layers up to it.
    k = tuple(max(round(k), 1) for k in accumulate(shape.mean))
    return HSAEConfig(tuple(accumulate(shape.sizes)), k, bandwidth=0.05, **_COMMON)


def _expert_hsae(shape: _Shape) -> ExpertHSAEConfig:
    # Two layers: the roots, and all other features, shared out equally among them. The subspaces have room for all.
    n, atoms = shape.sizes[0], max(sum(shape.sizes[1:]) // shape.sizes[0], 1)
    k = (min(shape.most[0], n),) * 2
    return ExpertHSAEConfig((n, n * atoms), k, subspace=atoms, aux=AuxConfig(**_AUX), **_COMMON)


#: In `tree`, a feature's parent is in the layer before its own; in `tree-any-parent`, in any earlier layer, as in the
#: paper; in `tree-earned`, in any earlier layer, wherever the data support it (docs/results/synthetic.md); `tree-demo`
#: does so with the settings of the preset `demo`.
WORLD_SYSTEMS: dict[str, Callable[[_Shape], SystemConfig]] = {
    "tree": lambda s: replace(_tree(s), allocation=replace(_ALLOCATION, parents="previous")),
    "tree-any-parent": _tree,
    "tree-earned": _earned_tree,
    "tree-demo": _demo_tree,
    "hsae": _hsae,
    "hsae-baseline": lambda s: replace(_hsae(s), **_UNLINKED),
    "expert_hsae": _expert_hsae,
    "topk": lambda s: TopKConfig(s.flat, s.total, aux=AuxConfig(**_AUX), **_COMMON),
    "batchtopk": lambda s: BatchTopKConfig(s.flat, s.average, aux=AuxConfig(**_AUX), **_COMMON),
    "matryoshka": lambda s: MatryoshkaConfig(s.sizes, s.total, aux=AuxConfig(**_AUX), **_COMMON),
    "matryoshka-batch": lambda s: MatryoshkaConfig(
        s.sizes, s.no_less, selection="batch", aux=AuxConfig(**_AUX), **_COMMON
    ),
    "jumprelu": lambda s: JumpReLUConfig(s.flat, s.average, bandwidth=0.05, **_COMMON),
    "matching_pursuit": lambda s: MatchingPursuitConfig(s.flat, s.total, **_COMMON),
}
SYSTEM_NAMES = tuple(WORLD_SYSTEMS)


def system_for(
    name: str,
    layer_sizes: tuple[int, ...],
    most: tuple[int, ...],
    mean: tuple[float, ...],
    config: SyntheticConfig,
) -> SystemConfig:
    """The configuration of the named system for a world.

    layer_sizes: number of true features in each layer.
    most, mean: number of active features in each layer that is not exceeded on most samples, and the mean number.

    Raises InputError if the system can't have these sizes.
    """
    shape = _Shape(tuple(max(round(n * config.size), 1) for n in layer_sizes), most, mean)
    given = f"size {config.size}"
    if config.layer_sizes is not None:
        shape = _unknown_layers(config.layer_sizes, shape)
        given = f"layer_sizes {list(config.layer_sizes)}"
    try:
        return WORLD_SYSTEMS[name](shape)
    except InputError as error:
        raise InputError(f"system {name} with {given} and l0 {config.l0}: {error}") from None


def _unknown_layers(sizes: tuple[int, ...], truth: _Shape) -> _Shape:
    """Layers of these sizes, among which the world's active features are divided as equally as whole numbers can be."""
    n, total = len(sizes), sum(truth.most)
    most = tuple(max(total // n + (i < total % n), 1) for i in range(n))
    return _Shape(sizes, most, (sum(truth.mean) / n,) * n)
