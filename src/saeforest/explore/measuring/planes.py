"""The planes in which the activations under a parent vary most, with its children's encoder directions (Figure 9)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from ...measures.geometry import principal_plane
from ...progress import progress
from ...saes import SAE
from ...structure.forest import Forest
from ..index import Geometry

#: Points of a parent, at most and at least, and the bytes that the activations of all may take.
MOST_POINTS, LEAST_POINTS, BYTES = 64, 8, 1 << 28


def points_each(forest: Forest, d_in: int) -> int:
    """The number of points of each parent that is affordable."""
    parents = int((forest.n_children >= 2).sum())
    return max(min(BYTES // max(2 * d_in * parents, 1), MOST_POINTS), 2 * LEAST_POINTS)


def planes(
    sae: SAE,
    forest: Forest,
    alive: Int64[Tensor, "d_sae"],
    feature: Int64[Tensor, "g"],
    row: Int64[Tensor, "g"],
    child: Int64[Tensor, "g"],
    place: Int64[Tensor, "g"],
    u: Float[Tensor, "v d_in"],
) -> Geometry:
    """The planes of all parents with at least two children that fired, and at least 8 points that vary in a plane.

    alive: how often each feature fired. feature, row: a parent, and a row on which it fires. child: the child that
    fires most strongly there, by its place; -1 for none. place: which of `u` is the activation there. u: activations in
    the units of the SAE.
    """
    n_points = points_each(forest, sae.d_in)
    order = feature.sort(stable=True).indices
    parents, count = feature[order].unique_consecutive(return_counts=True)
    encoder = F.normalize(sae.encoder.detach().cpu().double())
    direction = torch.full((forest.d_sae, 2), torch.nan)
    kept: list[tuple[int, Tensor, Tensor, Tensor, Tensor]] = []
    with progress("planes", len(parents), "parents") as advance:
        for parent, mine in zip(parents.tolist(), order.split(count.tolist()), strict=True):
            advance(1)
            children = [c for c in forest.children(parent) if alive[c] > 0]
            if len(mine) < LEAST_POINTS or len(children) < 2:
                continue
            mine = mine[:n_points]
            points = u[place[mine]].double()
            plane = principal_plane(points)
            if plane is None:
                continue
            direction[children] = (encoder[children] @ plane.axes.T).float()
            at = ((points - points.mean(0)) @ plane.axes.T).float()
            kept.append((parent, at, child[mine], row[mine], plane.explained.float().clamp(0, 1)))
    found = Geometry(
        parent=torch.tensor([parent for parent, *_ in kept], dtype=torch.int64),
        points=torch.full((len(kept), n_points, 2), torch.nan),
        child=torch.full((len(kept), n_points), -1, dtype=torch.int32),
        row=torch.full((len(kept), n_points), -1, dtype=torch.int64),
        explained=torch.zeros(len(kept), 2),
        direction=direction,
    )
    for i, (_, at, of, rows, explained) in enumerate(kept):
        n = len(at)
        found.points[i, :n], found.child[i, :n], found.row[i, :n] = at, of.int(), rows
        found.explained[i] = explained
    return found
