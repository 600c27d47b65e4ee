"""Matched pairs: controls of a forest's edges, and how well a score tells the two apart.

The control of an edge from p to c is the pair of c with a null parent q. Like p, q is a parent, on the same level and
firing about as often, but in another tree of the forest: neither ancestor nor descendant of c, nor related to it in any
other way. Which feature lies above c is the only thing in which the two pairs differ on purpose.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int64
from numpy import ndarray as Array

from ..structure.forest import ROOT, Forest

#: A parent and its child.
Pair = tuple[int, int]
#: Why there is nothing to compare with.
NO_NULL_PARENT = (
    "no edge has a null parent: a parent of another tree on the same level that fires about as often"
)


class Triple(NamedTuple):
    """An edge and its matched pair: the parent, the null parent, and the child of both."""

    parent: int
    null: int
    child: int


# A null parent is one of this many whose densities are nearest to the parent's, and within this factor of it.
_NEAREST, _FACTOR = 5, 2.0


def tops(forest: Forest) -> Int64[Array, "d_sae"]:
    """The root of the tree that each feature belongs to: its topmost ancestor, or itself."""
    parent = forest.parent.numpy()
    top = np.arange(forest.d_sae)
    while (above := parent[top] != ROOT).any():
        top[above] = parent[top[above]]
    return top


class NullParents:
    """Draws null parents for the edges of a forest.

    fired: how often each feature fires. Features that never do are no candidates.
    childless: whether features without children are candidates too, as controls of any feature.
    """

    def __init__(self, forest: Forest, fired: Int64[Array, "d_sae"], *, childless: bool = False) -> None:
        self._top, self._level = tops(forest), forest.level.numpy()
        self._log_fired = np.log(np.maximum(fired, 1))
        parents = np.flatnonzero(((forest.n_children.numpy() > 0) | childless) & (fired > 0))
        at = self._level[parents]
        self._parents = {level: parents[at == level] for level in np.unique(at).tolist()}

    def draw(self, edge: Pair, rng: np.random.Generator, usable: Callable[[int], bool]) -> int | None:
        """A null parent for an edge, drawn at random from those that match; None if none does.

        usable: whether the pair of a null parent and the child can be measured; asked only where all else matches.
        """
        parent, child = edge
        others = self._parents.get(int(self._level[parent]), np.zeros(0, dtype=np.int64))
        distance = np.abs(self._log_fired[others] - self._log_fired[parent])
        matches = (self._top[others] != self._top[child]) & (distance <= np.log(_FACTOR))
        others, distance = others[matches], distance[matches]
        nearest = others[np.argsort(distance, kind="stable")[:_NEAREST]]
        return next((q for q in rng.permutation(nearest).tolist() if usable(q)), None)


def alike(
    features: Int64[Array, "n"],
    fired: Float64[Array, "d_sae"],
    candidates: Bool[Array, "d_sae"],
    rng: np.random.Generator,
) -> Int64[Array, "_"]:
    """For each feature, another that fires about as often: one of the few nearest candidates, at random.

    fired: how often each feature fires. candidates: those that may be drawn; the given features never are.
    No feature is drawn twice. Fewer come back where the candidates run out.
    """
    left = candidates & (fired > 0)
    left[features] = False
    log = np.log(np.maximum(fired, np.finfo(np.float64).tiny))
    drawn: list[int] = []
    for feature in features:
        others = np.flatnonzero(left)
        if not len(others):
            break
        nearest = others[np.argsort(np.abs(log[others] - log[feature]), kind="stable")[:_NEAREST]]
        drawn.append(int(rng.choice(nearest)))
        left[drawn[-1]] = False
    return np.array(drawn, dtype=np.int64)


def auc(
    edge: Float64[Array, "e"],
    control: Float64[Array, "m"],
    edge_weights: Float64[Array, "b e"],
    control_weights: Float64[Array, "b m"],
) -> Float64[Array, "b"]:
    """The probability that the score of an edge exceeds that of a control drawn independently; ties count half.

    edge_weights, control_weights: how often each counts in each of `b` resamples.
    """
    order = np.argsort(control, kind="stable")
    below = np.concatenate([np.zeros((len(control_weights), 1)), control_weights[:, order].cumsum(1)], axis=1)
    less = np.searchsorted(control[order], edge, side="left")
    less_or_equal = np.searchsorted(control[order], edge, side="right")
    won = (edge_weights * (below[:, less] + below[:, less_or_equal])).sum(1) / 2
    return won / (edge_weights.sum(1) * control_weights.sum(1))
