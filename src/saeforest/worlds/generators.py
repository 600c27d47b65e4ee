"""Generators of synthetic worlds whose feature tree is known (docs/spec/synthetic.md#generators), by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, get_type_hints

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..errors import InputError
from ..seeds import seeded
from ..structure.forest import ROOT, Forest
from .geometry import lean_on_parents, mix_group, nearly_orthogonal, unit_vectors
from .trees import TreeSpec
from .world import World

# Three parents with three children each, and eight features without parent or children: 20 features, parents first.
_PARENTS, _ALONE, _CHILDREN = 3, 8, 3
# Mixing coefficients that give cosines of 0, 0.1, ..., 0.8 within a group: for siblings, and for top-level features.
_EPS_CHILDREN = (0, 0.0895, 0.163, 0.226, 0.282, 0.3335, 0.3825, 0.431, 0.482)
_EPS_TOP = (0, 0.3, 0.44, 0.529, 0.594, 0.6467, 0.692, 0.733, 0.7739)
_NORM_JITTER = 0.05


def _twenty_features() -> Forest:
    top = _PARENTS + _ALONE
    children = torch.arange(_PARENTS).repeat_interleave(_CHILDREN)
    return Forest(torch.cat([torch.full((top,), ROOT), children]), (top, len(children)))


def _twenty_probabilities(p_parent: float) -> Float[Tensor, "20"]:
    p = [p_parent] * _PARENTS + [0.05] * _ALONE + [0.2] * (_PARENTS * _CHILDREN)
    return torch.tensor(p, dtype=torch.float64)


def matryoshka(seed: int = 0) -> World:
    """T1, the toy model of the Matryoshka SAE paper: independent parents, each with three exclusive children.

    A parent fires with probability 0.15, a child with probability 0.2 given its parent, and each of the eight other
    features with probability 0.05. Activations are 0 or 1; vectors are orthogonal with norms 1 + 0.05 N(0, 1). On
    average 1.12 features fire.
    """
    forest = _twenty_features()
    m = forest.d_sae
    spec = TreeSpec(forest, _twenty_probabilities(0.15), torch.ones(m), torch.zeros(m))
    generator = seeded(seed, "matryoshka", "vectors")
    vectors = unit_vectors(m, m, generator)
    norms = 1 + _NORM_JITTER * torch.randn(m, 1, generator=generator)
    return World("matryoshka", spec, vectors * norms, seed)


def mp(seed: int = 0, correlation: int = 0) -> World:
    """T2, the toy model of the matching-pursuit SAE paper: like T1, but exactly one top-level feature fires per sample.

    A parent fires with probability 0.2. Activations of children are |N(1.5, 0.25)|, those of other features 1.

    correlation: 0 to 8 for cosines of 0, 0.1, ..., 0.8 between the siblings of a family and between top-level features.
    """
    if not 0 <= correlation < len(_EPS_TOP):
        raise InputError(f"correlation = {correlation}: expected 0 to {len(_EPS_TOP) - 1}")
    forest = _twenty_features()
    m, top = forest.layer_sizes[0] + forest.layer_sizes[1], forest.layer_sizes[0]
    child = forest.layer == 1
    spec = TreeSpec(
        forest,
        _twenty_probabilities(0.2),
        mean=torch.where(child, 1.5, 1.0),
        std=torch.where(child, 0.25, 0.0),
        roots="choice",
    )
    vectors = unit_vectors(m, m, seeded(seed, "mp", "vectors"))
    vectors[:top] = mix_group(vectors[:top], _EPS_TOP[correlation])
    for parent in range(_PARENTS):
        family = forest.children(parent)
        vectors[family] = mix_group(vectors[family], _EPS_CHILDREN[correlation])
    return World("mp", spec, vectors, seed)


def _hedging(name: str, p_children: tuple[float, ...], seed: int) -> World:
    """T3: a parent that fires with probability 0.25, with independent children of probability `p_children` given it.

    Vectors are orthonormal in 50 dimensions, activations 0 or 1.
    """
    n = len(p_children)
    forest = Forest(torch.tensor([ROOT] + [0] * n), (1, n))
    p = torch.tensor([0.25, *p_children], dtype=torch.float64)
    spec = TreeSpec(forest, p, torch.ones(n + 1), torch.zeros(n + 1), children="independent")
    return World(name, spec, unit_vectors(n + 1, 50, seeded(seed, name, "vectors")), seed)


def hedging_single(seed: int = 0) -> World:
    """T3 for an SAE with one latent: one child, with probability 0.2 given its parent."""
    return _hedging("hedging-single", (0.2,), seed)


def hedging_four(seed: int = 0, balanced: bool = True) -> World:
    """T3 for an SAE with four latents: three children of probability 0.15 each given the parent, or 0.02, 0.15, 0.5."""
    if balanced:
        return _hedging("hedging-four", (0.15, 0.15, 0.15), seed)
    return _hedging("hedging-four-unbalanced", (0.02, 0.15, 0.5), seed)


def _full_trees(n_trees: int, branching: int, depth: int, alone: int = 0) -> Forest:
    """Trees of `depth` levels in which every node above the last level has `branching` children, and `alone` roots
    without children."""
    level, parents, first = n_trees, [torch.full((n_trees + alone,), ROOT)], 0
    for _ in range(depth - 1):
        parents.append((torch.arange(level) + first).repeat_interleave(branching))
        first = first + level + (alone if first == 0 else 0)
        level *= branching
    return Forest(torch.cat(parents), tuple(len(p) for p in parents))


def _at_least(least: float, **values: float) -> None:
    for name, value in values.items():
        if value < least:
            raise InputError(f"{name} = {value:g}: expected {least:g} or more")


def synth_bench(
    seed: int = 42,
    features: int = 16_384,
    d: int = 768,
    trees: int = 128,
    branching: int = 4,
    depth: int = 3,
    orthogonal_steps: int = 100,
) -> World:
    """T4, SynthSAEBench: correlated features, most of them in trees with exclusive siblings. About 34 of 16,384 fire.

    depth: number of levels below the roots. Features that belong to no tree are in layer 0, after the roots.
    """
    spec = synth_bench_spec(seed, features, trees, branching, depth)
    start = torch.randn(features, d, generator=seeded(seed, "synth-bench", "vectors"))
    vectors = nearly_orthogonal(torch.nn.functional.normalize(start), orthogonal_steps, lr=3e-4)
    return World("synth-bench", spec, vectors, seed)


def synth_bench_spec(
    seed: int = 42, features: int = 16_384, trees: int = 128, branching: int = 4, depth: int = 3
) -> TreeSpec:
    """The firing statistics of T4, without the directions."""
    _at_least(1, trees=trees, branching=branching, depth=depth)
    in_trees = trees * sum(branching**level for level in range(depth + 1))
    if features < in_trees:
        raise InputError(
            f"features = {features}: {trees} trees of branching {branching} and depth {depth} have {in_trees}; "
            "give at least that many"
        )
    forest = _full_trees(trees, branching, depth + 1, features - in_trees)
    # Features in trees are the most frequent, level by level; features outside of trees are the rarest.
    alone = (forest.parent == ROOT) & (torch.arange(features) >= trees)
    frequent_first = torch.cat([(~alone).nonzero().flatten(), alone.nonzero().flatten()])
    rank = torch.empty(features, dtype=torch.int64)
    rank[frequent_first] = torch.arange(features)

    generator = seeded(seed, "synth-bench", "firing")
    return TreeSpec(
        forest,
        compensated(forest, zipf(features)[rank]),
        mean=torch.linspace(5.0, 4.0, features)[rank],
        std=(0.5 + 0.5 * torch.randn(features, generator=generator)).abs()[rank],
        children="contest",
        scale_by_parent=True,
        factor=_low_rank(features, 25, 0.1, generator),
    )


def zipf(m: int, exponent: float = 0.5, least: float = 5e-4, most: float = 0.4) -> Float[Tensor, "m"]:
    """`[m]` probabilities `rank^-exponent`, shifted and scaled to the range [least, most], in descending order."""
    p = torch.arange(1, m + 1, dtype=torch.float64) ** -exponent
    return least + (most - least) * (p - p[-1]) / (p[0] - p[-1]) if m > 1 else p * most


def compensated(forest: Forest, p: Float[Tensor, "m"]) -> Float[Tensor, "m"]:
    """The probability, given its parent, with which each feature must compete so that it fires with about `p` overall.

    `p_i / p_parent`, times `1 + sum of p_sibling / p_parent` over the siblings it may lose a contest to; at most 1.
    """
    parent, child = forest.edges
    family = torch.zeros_like(p).index_add_(0, parent, p[child])
    tries = p.clone()
    tries[child] = p[child] / p[parent] * (1 + (family[parent] - p[child]) / p[parent])
    return tries.clamp(max=1.0)


def _low_rank(m: int, rank: int, scale: float, generator: torch.Generator) -> Float[Tensor, "m rank"]:
    factor = scale * torch.randn(m, rank, generator=generator)
    # A row explains at most 0.99 of its feature's variance.
    return factor * (0.99 / factor.square().sum(1, keepdim=True)).sqrt().clamp(max=1.0)


def tree(
    seed: int = 0,
    depth: int = 3,
    branching: int = 4,
    roots: int = 8,
    p_root: float = 0.1,
    p_child: float = 0.2,
    exclusive: bool = True,
    magnitude_mean: float = 1.0,
    magnitude_std: float = 0.1,
    d: int | None = None,
    superposition: float | None = None,
    parent_offset: float = 0.0,
    two_parents: float = 0.0,
) -> World:
    """T5, trees of any depth: `roots` trees of `depth` levels; all nodes above the last have `branching` children.

    A root fires with probability `p_root`, a child with probability `p_child` given its parent; of exclusive siblings,
    at most one fires. Activations are |N(magnitude_mean, magnitude_std)|. A child's vector is
    `normalize(own direction + parent_offset * the sum of its parents' vectors)`.

    two_parents: fraction of the features of each level below the roots that have a second parent, drawn from the level
    above it in another tree. Such a feature is drawn under its first parent; where it fires, its second parent and what
    is above that fire as well, also beside a sibling that excludes them otherwise.
    d: number of dimensions, 64 by default. superposition: number of features per dimension, given instead of `d`.
    """
    _at_least(1, depth=depth, branching=branching, roots=roots)
    if exclusive and depth > 1 and branching * p_child > 1 + 1e-6:
        raise InputError(
            f"p_child = {p_child:g}: the probabilities of {branching} mutually exclusive children add up to "
            f"{branching * p_child:g}; expected at most 1"
        )
    forest = _full_trees(roots, branching, depth)
    m = forest.d_sae
    spec = TreeSpec(
        forest,
        torch.tensor([p_root] * roots + [p_child] * (m - roots), dtype=torch.float64),
        torch.full((m,), float(magnitude_mean)),
        torch.full((m,), float(magnitude_std)),
        children="choice" if exclusive else "independent",
    )
    if two_parents:
        second = _second_parents(forest, two_parents, seeded(seed, "tree", "second parents"))
        spec = replace(spec, second=second)
    own = unit_vectors(m, _width(m, d, superposition), seeded(seed, "tree", "vectors"))
    return World("tree", spec, lean_on_parents(own, spec, parent_offset), seed)


def _second_parents(forest: Forest, share: float, generator: torch.Generator) -> Int[Tensor, "m"]:
    """For a random `share` of the features of each level below the roots, a feature of the level above it, drawn from
    the trees that the feature is not in."""
    if not 0 <= share <= 1:
        raise InputError(f"two_parents = {share:g}: expected 0 to 1")
    if len(forest.roots) < 2 or int(forest.depth.max()) < 1:
        raise InputError("two_parents: expected two roots or more, and a depth of 2 or more")
    # In full trees a feature's tree follows from its place in its level.
    second = torch.full((forest.d_sae,), ROOT)
    roots, starts, sizes = len(forest.roots), forest.layer_starts, forest.layer_sizes
    for level in range(1, len(sizes)):
        each = sizes[level - 1] // roots
        place = torch.randperm(sizes[level], generator=generator)[: round(share * sizes[level])]
        own_tree = place // (sizes[level] // roots)
        step = torch.randint(1, roots, place.shape, generator=generator)
        within = torch.randint(each, place.shape, generator=generator)
        second[starts[level] + place] = starts[level - 1] + ((own_tree + step) % roots) * each + within
    return second


def _width(m: int, d: int | None, superposition: float | None) -> int:
    if superposition is None:
        return 64 if d is None else d
    if d is not None:
        raise InputError(
            f"d = {d} and superposition = {superposition:g}: give only one of them; it determines the other"
        )
    if superposition <= 0:
        raise InputError(
            f"superposition = {superposition:g}: expected a number above 0 (features per dimension)"
        )
    return max(round(m / superposition), 1)


GENERATORS: dict[str, Callable[..., World]] = {
    "matryoshka": matryoshka,
    "mp": mp,
    "hedging-single": hedging_single,
    "hedging-four": hedging_four,
    "hedging-four-unbalanced": partial(hedging_four, balanced=False),
    "synth-bench": synth_bench,
    "tree": tree,
    "tree-leaning": partial(tree, parent_offset=0.5),
    "tree-overlapping": partial(tree, exclusive=False),
    "tree-two-parents": partial(tree, two_parents=0.5),
}
"""Every generator by name. All take `seed`; the same seed gives the same world, bit for bit."""


def settings_of(generator: str) -> dict[str, Any]:
    """The settings of a generator besides its seed, and their types."""
    make = GENERATORS[generator]
    hints = get_type_hints(make.func if isinstance(make, partial) else make)
    return {name: hints[name] for name in inspect.signature(make).parameters if name != "seed"}
