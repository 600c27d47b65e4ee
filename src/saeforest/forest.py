"""The Forest: which feature is whose child. Learned or inferred, everything downstream takes one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import torch
from jaxtyping import Int
from torch import Tensor

from .errors import UserError

ROOT = -1


@dataclass(frozen=True, eq=False)
class Forest:
    """Parents of the features `0..d_sae-1`, laid out layer by layer (layer 0 first). Immutable.

    parent: `[d_sae]` int64; -1 is the root. A parent lies in an earlier layer than its child.
    layer_sizes: number of features of each layer.

    Raises UserError where `parent` does not describe such a forest.
    """

    parent: Int[Tensor, "d_sae"]
    layer_sizes: tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "parent", self.parent.detach().to("cpu", torch.int64).clone())
        object.__setattr__(self, "layer_sizes", tuple(int(s) for s in self.layer_sizes))
        self._validate()

    def _validate(self) -> None:
        if not self.layer_sizes or min(self.layer_sizes) < 1:
            raise UserError(
                f"layer_sizes {list(self.layer_sizes)}: expected at least one layer, each of 1 or more"
            )
        if sum(self.layer_sizes) != len(self.parent):
            raise UserError(
                f"layer_sizes {list(self.layer_sizes)} add up to {sum(self.layer_sizes)}, "
                f"but parent has {len(self.parent)} entries; expected one entry a feature"
            )
        start = torch.tensor(self.layer_starts)[self.layer]
        bad = ((self.parent < ROOT) | (self.parent >= start)).nonzero().flatten()
        if len(bad):
            i = int(bad[0])
            raise UserError(
                f"parent[{i}] = {int(self.parent[i])}: expected -1 (root) or a feature of a layer before "
                f"layer {int(self.layer[i])}, that is below {int(start[i])}"
            )

    @property
    def d_sae(self) -> int:
        return len(self.parent)

    @cached_property
    def layer_starts(self) -> tuple[int, ...]:
        """First feature id of each layer."""
        return (0, *accumulate(self.layer_sizes))[:-1]

    @cached_property
    def layer(self) -> Int[Tensor, "d_sae"]:
        """The layer of each feature."""
        sizes = torch.tensor(self.layer_sizes)
        return torch.repeat_interleave(torch.arange(len(sizes)), sizes)

    @cached_property
    def depth(self) -> Int[Tensor, "d_sae"]:
        """Number of ancestors of each feature (0: a child of the root)."""
        depth = torch.zeros_like(self.parent)
        for start, size in zip(self.layer_starts[1:], self.layer_sizes[1:], strict=True):
            p = self.parent[start : start + size]
            depth[start : start + size] = torch.where(p == ROOT, 0, depth[p.clamp(min=0)] + 1)
        return depth

    @cached_property
    def n_children(self) -> Int[Tensor, "d_sae"]:
        return torch.bincount(self.parent[self.parent != ROOT], minlength=self.d_sae)

    @cached_property
    def _children(self) -> dict[int, list[int]]:
        children: dict[int, list[int]] = {}
        for child, parent in enumerate(self.parent.tolist()):
            children.setdefault(parent, []).append(child)
        return children

    def children(self, feature: int) -> list[int]:
        """Children of a feature in ascending order; of the root for `feature=-1`."""
        self._check(feature, least=ROOT)
        return list(self._children.get(feature, ()))

    @property
    def roots(self) -> list[int]:
        """Features that hang from the root."""
        return self.children(ROOT)

    def path(self, feature: int) -> list[int]:
        """From the topmost ancestor down to the feature itself."""
        self._check(feature)
        path = [feature]
        while (above := int(self.parent[path[-1]])) != ROOT:
            path.append(above)
        return path[::-1]

    def ancestors(self, feature: int) -> list[int]:
        """Proper ancestors, nearest first."""
        return self.path(feature)[-2::-1]

    def subtree(self, feature: int) -> Iterator[int]:
        """The feature and all its descendants, parents before children; of the root, -1 first, all features."""
        stack = [feature]
        while stack:
            node = stack.pop()
            yield node
            stack.extend(reversed(self.children(node)))

    def _check(self, feature: int, least: int = 0) -> None:
        if not least <= feature < self.d_sae:
            raise IndexError(f"feature {feature}: expected {least} to {self.d_sae - 1}")

    @cached_property
    def edges(self) -> Int[Tensor, "2 n_edges"]:
        """All (parent, child) pairs without the root, by ascending child."""
        child = (self.parent != ROOT).nonzero().flatten()
        return torch.stack([self.parent[child], child])


def flat_forest(layer_sizes: tuple[int, ...]) -> Forest:
    """Every feature hangs from the root."""
    return Forest(torch.full((sum(layer_sizes),), ROOT, dtype=torch.int64), layer_sizes)
