"""A penalty on children whose own detector is on where their parent is silent (docs/spec/tree-sae.md#silence)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..sparse_code import SparseCode
from ..structure.forest import ROOT
from .encode import PreActivations


def silence_loss(
    h: PreActivations,
    inputs: Sequence[Float[Tensor, "n d_in"]],
    own: Sequence[SparseCode],
    active: Int[Tensor, "n a"],
    parent: Int[Tensor, "d_sae"],
) -> Float[Tensor, ""]:
    """The energy of the detectors that are on without their parent, as a fraction of that of the activations.

    inputs: what each layer reads; the first layer reads the activations.
    own: for each layer but the first the features whose own detector is on; a value of 0 is an empty slot.
    active: the ids of the active features, -1 in unused slots.
    """
    # Sorted, the active features of a token are searched by bisection.
    on = active.sort(1).values
    energy = inputs[0].new_zeros(())
    for u, code in zip(inputs[1:], own, strict=True):
        above = parent[code.ids]
        place = torch.searchsorted(on, above).clamp(max=on.shape[1] - 1)
        stray = code.active() & (above != ROOT) & (on.gather(1, place) != above)
        alone = SparseCode(torch.where(stray, code.values, 0), torch.where(stray, code.ids, 0))
        energy = energy + h.exact(u, alone).values.square().sum()
    return energy / inputs[0].detach().square().sum().clamp(min=1e-30)
