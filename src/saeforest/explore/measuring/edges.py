"""The columns of all edges and of their null pairs, and the place of each edge among these."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Float64, Int64
from torch import Tensor

from ...measures.cooccurrence import SiblingPairs
from ...measures.own_detectors import detector_thresholds, without_gate
from ...measures.related_edges import where_on
from ...measures.relatedness import alike
from ...progress import progress
from ...saes import SAE
from ...sparse_code import SparseCode
from ...spill import slices
from ...structure.directions import Nearness
from ...structure.forest import ROOT, Forest
from ...structure.pairs import PairStatistics
from ...structure.shuffled import shuffled_parents
from .columns import COLUMNS
from .evidence import Evidence
from .firings import hashes

#: Number of null pairs that are kept for the cloud behind the edges.
MOST_NULL = 4_000
# Number of children whose detectors are run together, and of activations encoded together.
_BLOCK, _ROWS = 128, 4_096


class Detected(NamedTuple):
    """The sample of activations on which detectors are run without the gate.

    x:     the activations. token: the id of the token of each.
    fires: statistics of what fires on them, in this order. alone: of what is active in its own right.
    """

    x: Float[Tensor, "n d_in"]
    token: Int64[Tensor, "n"]
    fires: PairStatistics
    alone: PairStatistics


class Edges(NamedTuple):
    """The columns of edges by name, as in `Index`."""

    columns: dict[str, Float32[Tensor, "d_sae"]]
    places: dict[str, Float32[Tensor, "d_sae"]]
    null_parent: Int64[Tensor, "m"]
    null_child: Int64[Tensor, "m"]
    null_columns: dict[str, Float32[Tensor, "m"]]


@torch.no_grad()
def detected(
    sae: SAE,
    x: Float[Tensor, "n d_in"],
    token: Int64[Tensor, "n"],
    codes: list[SparseCode],
    folder: Path | None = None,
) -> Detected:
    """The sample with its statistics. codes: of these activations, in this order. folder: see `PairStatistics`."""
    threshold = sae.config.activation_threshold
    fires = PairStatistics(sae.d_sae, threshold, folder)
    for code in codes:
        fires.add(code)
    if type(sae).encode_alone is SAE.encode_alone:
        return Detected(x, token, fires, fires)
    alone = PairStatistics(sae.d_sae, threshold, folder)
    for part in slices(x, _ROWS):
        alone.add(sae.encode_alone(part.to(sae.device).float()))
    return Detected(x, token, fires, alone)


def null_forest(forest: Forest, fired: Int64[Tensor, "d_sae"]) -> Forest:
    """The forest in which the parents of edges that are alike have changed places (`structure.shuffled`)."""
    if not forest.edges.shape[1]:
        return forest
    return Forest(shuffled_parents(forest, fired), forest.layer_sizes, layered=forest.layered)


def edge_columns(
    sae: SAE,
    forest: Forest,
    null: Forest,
    pairs: PairStatistics,
    near: tuple[Nearness, Nearness],
    overlap: tuple[SiblingPairs, SiblingPairs],
    sample: Detected,
    min_count: int,
) -> Edges:
    """All columns of the registry, for the edges of a forest and for their null pairs.

    near, overlap: what was measured of the forest, and of the null.
    """
    parents = torch.stack([forest.parent, null.parent])
    ungated, lift, tokens = _own_detectors(sae, parents, pairs, sample, min_count)
    child = torch.arange(forest.d_sae)
    found: list[dict[str, Tensor]] = []
    for i in range(2):
        has = parents[i] != ROOT
        together = torch.zeros(forest.d_sae, dtype=torch.int64)
        together[has] = pairs.together(parents[i][has], child[has])
        evidence = Evidence(
            sae=sae,
            parent=parents[i],
            fired=pairs.marginals.n,
            together=together,
            near=Nearness(*(part.cpu() for part in near[i])),
            ungated=ungated[i],
            lift=lift[i],
            tokens_alike=tokens[i],
            sibling_overlap=torch.where(has, overlap[i].mean_overlap(), torch.nan),
        )
        found.append(
            {
                column.about.name: torch.where(has, column.compute(evidence).double(), torch.nan)
                for column in COLUMNS
            }
        )
    moved = (forest.parent != ROOT) & (null.parent != forest.parent)
    group = _groups(forest)
    places = {
        column.about.name: places_among(
            found[0][column.about.name], found[1][column.about.name], moved, group
        )
        if column.about.of_pair
        else torch.full((forest.d_sae,), torch.nan, dtype=torch.float64)
        for column in COLUMNS
    }
    drawn = moved.nonzero().flatten()
    drawn = drawn[hashes(drawn).argsort()[:MOST_NULL]].sort().values
    return Edges(
        {name: column.float() for name, column in found[0].items()},
        {name: column.float() for name, column in places.items()},
        null.parent[drawn],
        drawn,
        {name: column[drawn].float() for name, column in found[1].items()},
    )


def _groups(forest: Forest) -> Int64[Tensor, "d_sae"]:
    """The group of each edge: the levels of its parent and of its child, between which parents were exchanged."""
    level = forest.level
    return level[forest.parent.clamp(min=0)] * (int(level.max()) + 1) + level


def places_among(
    edge: Float64[Tensor, "d_sae"],
    null: Float64[Tensor, "d_sae"],
    moved: Bool[Tensor, "d_sae"],
    group: Int64[Tensor, "d_sae"],
) -> Float64[Tensor, "d_sae"]:
    """The share of the null pairs of its group that each edge exceeds, ties half; NaN where either is undefined.

    moved: which features have a null pair.
    """
    found = torch.full_like(edge, torch.nan)
    for number in group.unique().tolist():
        mine = group == number
        of_null = null[mine & moved]
        of_null = of_null[of_null.isfinite()].sort().values
        measured = mine & edge.isfinite()
        if len(of_null) and bool(measured.any()):
            values = edge[measured].contiguous()
            below = torch.searchsorted(of_null, values) + torch.searchsorted(of_null, values, right=True)
            found[measured] = below.double() / (2 * len(of_null))
    return found


def _own_detectors(
    sae: SAE, parents: Int64[Tensor, "2 d_sae"], pairs: PairStatistics, sample: Detected, min_count: int
) -> Float64[Tensor, "3 2 d_sae"]:
    """`ungated`, `lift` and the similarity of tokens, of the edges and of their null pairs; NaN where undefined.

    Tokens are those of the measure `relatedness` (docs/spec/relatedness.md#without-the-gate), with the null parent of
    the edge: where the child's own detector is on, and where a parent fires and the child neither does nor is on.
    """
    d_sae, least = parents.shape[1], max(min_count, 2)
    found = torch.full((3, 2, d_sae), torch.nan, dtype=torch.float64)
    children = (parents[0] != ROOT).nonzero().flatten()
    above = detector_thresholds(pairs, children, least)
    children, above = children[above.isfinite()], above[above.isfinite()]
    n = len(sample.x)
    if not n:
        return found
    active = sample.alone.marginals.n
    token = sample.token.numpy()
    with progress("detectors without the gate", len(children), "features") as advance:
        for block, of_block in zip(children.split(_BLOCK), above.split(_BLOCK), strict=True):
            for child, own in zip(block.tolist(), where_on(sae, sample.x, block, of_block), strict=True):
                pair = parents[:, child]
                both = [_both(own, _firings(sample.alone, p)) for p in pair.tolist()]
                found[0, :, child], found[1, :, child] = without_gate(
                    torch.full((2,), len(own)), torch.tensor(both), active[pair].double() / n
                )
                if not len(own):
                    found[1, :, child] = torch.nan  # as the measure has it
                found[2, :, child] = torch.tensor(
                    _tokens(sample.fires, token, pair.tolist(), child, own, least)
                )
            advance(len(block))
    return found


def _firings(pairs: PairStatistics, feature: int) -> np.ndarray:
    return pairs.firings(feature)[0].numpy().astype(np.int64)


def _both(own: np.ndarray, other: np.ndarray) -> int:
    """How many numbers are in both of two sorted arrays."""
    if not len(other):
        return 0
    place = np.searchsorted(other, own).clip(max=len(other) - 1)
    return int((other[place] == own).sum())


def _tokens(
    fires: PairStatistics, token: np.ndarray, pair: list[int], child: int, own: np.ndarray, least: int
) -> tuple[float, float]:
    """The similarity of the child's tokens and of each parent's; NaN if one of the three has too few."""
    either = np.union1d(_firings(fires, child), own)
    apart = [np.setdiff1d(_firings(fires, parent), either, assume_unique=True) for parent in pair]
    if min(len(own), *map(len, apart)) < least:
        return (float("nan"), float("nan"))
    return alike(token, apart[0], apart[1], own, np.random.default_rng([0, pair[0], child]))
