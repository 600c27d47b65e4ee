"""The Forest: the parent of every feature, whether learned in training or inferred afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from ..errors import InputError

ROOT = -1


@dataclass(frozen=True, eq=False, repr=False)
class Forest:
    """The parents of the features `0..d_sae-1`, which are numbered layer by layer (layer 0 first). Immutable.

    parent: `[d_sae]` int64; -1 is the root.
    layer_sizes: number of features in each layer.
    layered: whether every parent must be in an earlier layer than its child. If not, any feature may be the parent of
        any other as long as there are no cycles, as in a forest inferred for an SAE with one layer.

    Raises InputError if `parent` is not such a forest.
    """

    parent: Int[Tensor, "d_sae"]
    layer_sizes: tuple[int, ...]
    layered: bool = field(default=True, kw_only=True)

    def __post_init__(self) -> None:
        parent = torch.as_tensor(self.parent).detach()
        if parent.ndim != 1 or parent.is_floating_point():
            raise InputError(
                f"parent: of shape {list(parent.shape)} and {parent.dtype}; "
                "expected [d_sae] whole numbers, one for each feature"
            )
        object.__setattr__(self, "parent", parent.to("cpu", torch.int64).clone())
        object.__setattr__(self, "layer_sizes", tuple(int(s) for s in self.layer_sizes))
        self._validate()

    def _validate(self) -> None:
        if not self.layer_sizes or min(self.layer_sizes) < 1:
            raise InputError(
                f"layer_sizes {list(self.layer_sizes)}: expected at least one layer, each of 1 or more features"
            )
        if sum(self.layer_sizes) != len(self.parent):
            raise InputError(
                f"layer_sizes {list(self.layer_sizes)} add up to {sum(self.layer_sizes)}, "
                f"but parent has {len(self.parent)} entries; expected one entry for each feature"
            )
        if self.layered:
            self._check_layers()
        else:
            self._check_cycles()

    def _check_layers(self) -> None:
        start = torch.tensor(self.layer_starts)[self.layer]
        bad = ((self.parent < ROOT) | (self.parent >= start)).nonzero().flatten()
        if len(bad):
            i = int(bad[0])
            raise InputError(
                f"parent[{i}] = {int(self.parent[i])}: expected -1 (root) or a feature of a layer before "
                f"layer {int(self.layer[i])}, which is a number below {int(start[i])}"
            )

    def _check_cycles(self) -> None:
        bad = ((self.parent < ROOT) | (self.parent >= self.d_sae)).nonzero().flatten()
        if len(bad):
            i = int(bad[0])
            raise InputError(
                f"parent[{i}] = {int(self.parent[i])}: expected -1 (root) or another feature, "
                f"0 to {self.d_sae - 1}"
            )
        # A feature still not at the root after d_sae steps is part of a cycle, or leads into one.
        lost = self._climbed[1]
        lost = lost[lost != self.d_sae]
        if len(lost):
            i = int(lost.min())
            raise InputError(
                f"parent[{i}] = {int(self.parent[i])}: feature {i} is its own ancestor; "
                "expected parents that lead to the root (-1)"
            )

    def __repr__(self) -> str:
        layers = f"layer_sizes={self.layer_sizes}" + ("" if self.layered else ", layered=False")
        edges, levels = self.edges.shape[1], int(self.depth.max()) + 1
        height = f"{levels} level{'' if levels == 1 else 's'}"
        return (
            f"Forest({self.d_sae:,} features, {layers}: {edges:,} edges, {len(self.roots):,} roots, {height})"
        )

    def _repr_html_(self) -> str:
        """What a notebook displays."""
        from .forest_html import forest_html

        return forest_html(self)

    @property
    def d_sae(self) -> int:
        """The number of features."""
        return len(self.parent)

    @cached_property
    def layer_starts(self) -> tuple[int, ...]:
        """The id of the first feature of each layer."""
        return (0, *accumulate(self.layer_sizes))[:-1]

    @cached_property
    def layer(self) -> Int[Tensor, "d_sae"]:
        """The layer of each feature."""
        sizes = torch.tensor(self.layer_sizes)
        return torch.repeat_interleave(torch.arange(len(sizes)), sizes)

    @property
    def level(self) -> Int[Tensor, "d_sae"]:
        """The level of each feature: its layer or, in a forest without layers, its depth."""
        return self.layer if self.layered else self.depth

    @cached_property
    def depth(self) -> Int[Tensor, "d_sae"]:
        """The number of ancestors of each feature, without the root (0: a child of the root)."""
        return self._climbed[0]

    @cached_property
    def _climbed(self) -> tuple[Int[Tensor, "d_sae"], Int[Tensor, "d_sae"]]:
        """The number of ancestors of each feature, and where at least d_sae steps up lead (d_sae: the root)."""
        root = self.d_sae
        above = torch.cat([torch.where(self.parent == ROOT, root, self.parent), torch.tensor([root])])
        steps = (above != root).long()
        # Every round doubles the stride, so few rounds are needed. With a cycle, the loop ends after d_sae steps up.
        for _ in range(root.bit_length()):
            if bool((above == root).all()):
                break
            steps += steps[above]
            above = above[above]
        return steps[:root], above[:root]

    @cached_property
    def n_children(self) -> Int[Tensor, "d_sae"]:
        """The number of children of each feature."""
        return torch.bincount(self.parent[self.parent != ROOT], minlength=self.d_sae)

    @cached_property
    def _children(self) -> dict[int, list[int]]:
        children: dict[int, list[int]] = {}
        for child, parent in enumerate(self.parent.tolist()):
            children.setdefault(parent, []).append(child)
        return children

    def children(self, feature: int) -> list[int]:
        """The children of a feature (-1: of the root) in ascending order. Raises InputError for an unknown feature."""
        self._check(feature, least=ROOT)
        return list(self._children.get(feature, ()))

    @property
    def roots(self) -> list[int]:
        """The features that hang from the root, in ascending order."""
        return self.children(ROOT)

    def path(self, feature: int) -> list[int]:
        """The path from the topmost ancestor down to the feature itself."""
        self._check(feature)
        path = [feature]
        while (above := int(self.parent[path[-1]])) != ROOT:
            path.append(above)
        return path[::-1]

    def ancestors(self, feature: int) -> list[int]:
        """The ancestors of a feature, nearest first, without the root."""
        return self.path(feature)[-2::-1]

    def subtree(self, feature: int) -> Iterator[int]:
        """The feature (-1: the root) and all its descendants, parents before children."""
        stack = [feature]
        while stack:
            node = stack.pop()
            yield node
            stack.extend(reversed(self.children(node)))

    def siblings(self, feature: int) -> list[int]:
        """The other children of a feature's parent, in ascending order; for a root, the other roots."""
        self._check(feature)
        return [f for f in self.children(int(self.parent[feature])) if f != feature]

    def in_layer(self, layer: int) -> range:
        """The features of a layer. Raises InputError if there is no such layer."""
        if not 0 <= layer < len(self.layer_sizes):
            raise InputError(f"layer {layer}: expected 0 to {len(self.layer_sizes) - 1}")
        start = self.layer_starts[layer]
        return range(start, start + self.layer_sizes[layer])

    def _check(self, feature: int, least: int = 0) -> None:
        if not least <= feature < self.d_sae:
            raise InputError(f"feature {feature}: expected {least} to {self.d_sae - 1}")

    @cached_property
    def edges(self) -> Int[Tensor, "2 n_edges"]:
        """All (parent, child) pairs in ascending order of children, without those of the root."""
        child = (self.parent != ROOT).nonzero().flatten()
        return torch.stack([self.parent[child], child])


class ByParent(NamedTuple):
    """Features grouped by their parent."""

    roots: Int[Tensor, "r"]
    """Ids of the features that hang from the root."""
    first: Int[Tensor, "d_sae_and_1"]
    """Start of each group: the children of feature p are `children[first[p]:first[p + 1]]`."""
    children: Int[Tensor, "c"]
    """Ids of all other features."""


def group_by_parent(parent: Int[Tensor, "d_sae"], features: Int[Tensor, "m"]) -> ByParent:
    """Group features by their parents. Within a group they keep their order."""
    above = parent[features]
    below = features[above != ROOT]
    by_parent, order = parent[below].sort(stable=True)
    first = torch.searchsorted(by_parent, torch.arange(len(parent) + 1, device=parent.device))
    return ByParent(features[above == ROOT], first, below[order])


def flat_forest(layer_sizes: tuple[int, ...]) -> Forest:
    """A forest in which every feature hangs from the root."""
    return Forest(torch.full((sum(layer_sizes),), ROOT, dtype=torch.int64), layer_sizes)
