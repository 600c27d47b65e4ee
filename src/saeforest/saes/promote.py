"""Features of a Tree SAE that change places with those of an earlier layer, because they explain more.

Which layer a feature is in is decided when it is drawn, before it has learned anything, and only features of earlier
layers can be its parent. Where a layer has learned something twice, it has no room for what it lacks, and a later layer
learns that, usually mixed with its children. Changing places mends both. The paper has no such rule
(docs/spec/tree-sae.md#promotion).
"""

from __future__ import annotations

from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..kernels import shards
from ..optim import Adam
from ..structure.forest import ROOT
from .base import SAE


def places(energy: Float[Tensor, "d_sae"], starts: tuple[int, ...], times: float) -> Int[Tensor, "d_sae"]:
    """Which feature goes to each place: `at[i]` is the feature that is to be at place `i`.

    From the first layer on, the features of a layer with the least energy change places with those of all later layers
    with the most, as long as these have more than `times` as much.

    energy: the sum of the squared activations of each feature. starts: the first feature of each layer, and their
    number.
    """
    at, energy = torch.arange(len(energy), device=energy.device), energy.clone()
    for start, end in list(pairwise(starts))[:-1]:
        weak = start + energy[start:end].argsort(stable=True)
        strong = end + energy[end:].argsort(descending=True, stable=True)
        n = min(len(weak), len(strong))
        down, up = weak[:n], strong[:n]
        # The energy falls along the one and rises along the other, so the pairs that change places come first.
        pays = energy[up] > times * energy[down]
        down, up = down[pays], up[pays]
        for each in (at, energy):
            each[up], each[down] = each[down], each[up]
    return at


def rearranged(
    parent: Int[Tensor, "d_sae"], at: Int[Tensor, "d_sae"], starts: tuple[int, ...], *, previous: bool
) -> Int[Tensor, "d_sae"]:
    """The parents after features change places. A feature whose parent would no longer be in an earlier layer (with
    `previous`, in the layer before its own) hangs from the root."""
    parent = parent[at]
    to = torch.where(parent == ROOT, ROOT, at.argsort()[parent.clamp(min=0)])
    ends = torch.tensor(starts[1:], device=parent.device)
    own = torch.bucketize(torch.arange(len(parent), device=parent.device), ends, right=True)
    above = torch.bucketize(to, ends, right=True)
    fits = (above == own - 1) if previous else (above < own)
    return torch.where(fits, to, ROOT)


@torch.no_grad()
def rearrange(sae: SAE, optimizer: Adam, at: Int[Tensor, "d_sae"]) -> None:
    """Let features change places: their weights, and their moments in the optimizer."""
    for weight in (sae.encoder, sae.decoder):
        shards.rearrange(weight, at)
        optimizer.rearrange(weight, at)
