"""The encoding of a Tree SAE layer by layer: each layer has a budget of its own, and may read what is left over."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..kernels import sparse_decode
from ..sparse_code import SparseCode, concat_slots
from ..structure.forest import ROOT, ByParent
from .encode import PreActivations
from .gate import Gate
from .select import batch_top_k, with_rows


class Encoded(NamedTuple):
    """The code of a batch in training."""

    code: SparseCode
    inputs: Sequence[Float[Tensor, "n d_in"]]
    """What each layer reads."""
    least: Float[Tensor, "b"] | None = None
    """The smallest score that each budget of the batch selected: one for each layer, or one for the whole tree.
    Infinite where nothing was selected by it. None if there are no budgets of the batch."""


@dataclass(frozen=True)
class LayerSelection:
    """Selects features of one layer among those whose parents are active (Eq. 6).

    The first layer selects the k largest of a token. So do the others, unless their budgets are those of a batch: then
    they select the k * n largest of a batch in training, and all above the layer's threshold at inference.
    """

    gate: Gate
    k_per_layer: tuple[int, ...]
    batch: bool = False
    """Select the k * n largest of the batch, except in the first layer."""
    thresholds: Float[Tensor, "L"] | None = None
    """Select all above these thresholds, except in the first layer."""

    def __call__(
        self,
        layer: int,
        h: PreActivations,
        u: Float[Tensor, "n d_in"],
        active: Int[Tensor, "n a"],
        features: ByParent,
    ) -> SparseCode:
        """active: ids of the active features of earlier layers, -1 in unused slots."""
        k = self.k_per_layer[layer]
        if layer and self.thresholds is not None:
            return all_above(self.gate, h, u, active, features, self.thresholds[layer], 2 * k)
        if not layer or not self.batch:
            return self.gate(h, u, active, features, k)
        return batch_top_k(
            lambda width: self.gate(h, u, active, features, width),
            lambda rows, bound: all_above(self.gate, h, u[rows], active[rows], features, bound, 8 * k),
            len(u),
            len(features.roots) + len(features.children),
            k,
        )

    def least(self, codes: Sequence[SparseCode]) -> Float[Tensor, "L"] | None:
        """The smallest value that the batch's budget selected in each layer; infinite in layers without such a
        budget or without features. None if there are no budgets of the batch."""
        if not self.batch:
            return None
        found = [torch.where(c.values > 0, c.values.detach(), torch.inf).min() for c in codes]
        return torch.stack([torch.full_like(found[0], torch.inf), *found[1:]])


def all_above(
    gate: Gate,
    h: PreActivations,
    u: Float[Tensor, "n d_in"],
    active: Int[Tensor, "n a"],
    features: ByParent,
    bound: Float[Tensor, ""] | float,
    width: int,
) -> SparseCode:
    """All of the features that may fire and exceed a bound. At first `width` of each row are searched for; where that
    does not reach the bound, twice as many."""
    width = min(width, len(features.roots) + len(features.children))
    found = gate(h, u, active, features, width)
    above = found.values > bound
    code = SparseCode(torch.where(above, found.values, 0), torch.where(above, found.ids, 0))
    full = above.all(1)
    if width < len(features.roots) + len(features.children) and bool(full.any()):
        code = with_rows(code, full, all_above(gate, h, u[full], active[full], features, bound, 2 * width))
    return code


def encode_by_layers(
    h: PreActivations,
    u: Float[Tensor, "n d_in"],
    groups: Sequence[ByParent],
    select: LayerSelection,
    floor: float,
    residual: Float[Tensor, "d_sae d_in"] | None,
    *,
    through: bool,
) -> Encoded:
    """Select features layer after layer. Values are exact: they decide which features of later layers may fire.

    groups: the features of every layer, grouped by parent.
    floor: the value above which a feature is active, so that its children may fire.
    residual: the decoder, if every layer reads what the layers before it leave over; None if all read the input. The
        code has gradients only with a decoder.
    through: whether gradients flow through what the layers before a layer reconstruct.
    """
    active = torch.empty(len(u), 0, dtype=torch.int64, device=u.device)
    codes, inputs = [], []
    for layer, features in enumerate(groups):
        inputs.append(u)
        with torch.no_grad():
            code = h.exact(u, select(layer, h, u, active, features))
            active = torch.cat([active, torch.where(code.active(floor), code.ids, ROOT)], dim=1)
        if residual is not None:
            code = h.exact(u, code, known=True)
            taken, rows = (code, residual) if through else (code.detach(), residual.detach())
            u = u - sparse_decode(taken.values, taken.ids, rows)
        codes.append(code)
    return Encoded(concat_slots(codes), inputs, select.least(codes))
