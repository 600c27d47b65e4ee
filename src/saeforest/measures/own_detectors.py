"""Where children would fire by themselves: their own detectors, without the gate and without selection.

The detector of a feature is its encoder row. It is on where the feature's pre-activation exceeds a threshold: the
median of the values that the feature has where it is active. For a gated child this is the value at which it is chosen
under its parent, but the detector does not know where the parent fires (docs/spec/hierarchy.md#ungated).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from ..progress import progress
from ..saes import SAE
from ..saes.encode import DENSE_ENTRIES
from ..spill import slices
from ..structure.pairs import PairStatistics


class OwnDetectors(NamedTuple):
    """How often the detectors of the children of `e` edges are on, and how often their parents are active there.

    on:          number of tokens on which each child's detector is on.
    with_parent: number of these on which its parent is active in its own right.
    active:      number of tokens on which each feature is active in its own right.
    """

    on: Int[Tensor, "e"]
    with_parent: Int[Tensor, "e"]
    active: Int[Tensor, "d_sae"]


def detector_thresholds(
    pairs: PairStatistics, features: Int[Tensor, "m"], min_count: int
) -> Float[Tensor, "m"]:
    """The value above which each feature's detector is on; infinite for those active on fewer than `min_count` tokens.

    It lies halfway between the median value and the next larger one, so that rounding decides about no token. Exactly
    half of the feature's values exceed it, rounded down. `min_count` must be 2 or more.
    """
    found = torch.full((len(features),), torch.inf)
    frequent = (pairs.marginals.n[features] >= min_count).nonzero().flatten().tolist()
    for i in frequent:
        values = pairs.firings(int(features[i]))[1].sort().values
        found[i] = values[(len(values) - 1) // 2 :][:2].mean()
    return found


@torch.no_grad()
def own_detectors(
    sae: SAE,
    x: Float[Tensor, "n d_in"],
    parent: Int[Tensor, "e"],
    child: Int[Tensor, "e"],
    above: Float[Tensor, "e"],
) -> OwnDetectors:
    """Count where the detectors of children are on. Each edge is counted by itself: no pairs of features are kept.

    x:     the activations that the SAE reads, on any device and in any dtype.
    above: the threshold of each child's detector (`detector_thresholds`).
    """
    on, with_parent = torch.zeros(2, len(child), dtype=torch.int64)
    active = torch.zeros(sae.d_sae, dtype=torch.int64)
    threshold = sae.config.activation_threshold
    parent, child, above = (edge.to(sae.device) for edge in (parent, child, above))
    rows = max(DENSE_ENTRIES // max(len(child), sae.d_sae), 1)
    with progress("coverage without the gate", len(x), "activations") as advance:
        for part in slices(x, rows):
            batch = part.to(sae.device).float()
            alone = sae.encode_alone(batch)
            # The last column takes the unused slots.
            fires = torch.zeros(len(batch), sae.d_sae + 1, dtype=torch.bool, device=sae.device)
            fires.scatter_(1, torch.where(alone.active(threshold), alone.ids, sae.d_sae), True)
            row, edge = (sae.detect(batch, child) > above).nonzero(as_tuple=True)
            both = edge[fires[row, parent[edge]]]
            on += torch.bincount(edge, minlength=len(child)).cpu()
            with_parent += torch.bincount(both, minlength=len(child)).cpu()
            active += alone.fired(sae.d_sae, threshold).cpu()
            advance(len(batch))
    return OwnDetectors(on, with_parent, active)


def without_gate(
    on: Int[Tensor, "e"], with_parent: Int[Tensor, "e"], base: Float64[Tensor, "e"]
) -> tuple[Float64[Tensor, "e"], Float64[Tensor, "e"]]:
    """`ungated` and `lift` of edges (docs/spec/hierarchy.md#ungated); `ungated` is NaN where a detector is never on.

    on, with_parent: as in `OwnDetectors`. base: share of all tokens on which the parent is active in its own right.
    """
    lift = ((with_parent + base) / (on + 1) / base).log2()
    # A parent that is nowhere active in its own right is found as often as is to be expected.
    return with_parent.double() / on.double(), torch.where(base > 0, lift, 0)


def own_detectors_memory(d_sae: int, n: int) -> int:
    """Bytes that a slice of at most `n` rows takes: pre-activations, comparisons, and the detectors that are on."""
    return 24 * max(min(DENSE_ENTRIES, n * d_sae), d_sae)
