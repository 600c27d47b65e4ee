"""The gate of a Tree SAE: which features of a layer may fire, given the active features of earlier layers."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor

from ..kernels import top_children
from ..sparse_code import SparseCode
from ..structure.forest import ByParent
from .encode import PreActivations
from .select import largest, top_k


@runtime_checkable
class Gate(Protocol):
    """A rule that selects features of a layer, depending on which features of earlier layers are active."""

    def __call__(
        self,
        h: PreActivations,
        u: Float[Tensor, "n d_in"],
        active: Int[Tensor, "n a"],
        features: ByParent,
        k: int,
    ) -> SparseCode:
        """Select at most `k` of `features` for every activation.

        active: ids of the features of earlier layers that are active on each activation, -1 in unused slots.
        """
        ...


class ParentGate:
    """Eq. 6: select the `k` largest of the features that hang from the root or from an active feature."""

    def __call__(
        self,
        h: PreActivations,
        u: Float[Tensor, "n d_in"],
        active: Int[Tensor, "n a"],
        features: ByParent,
        k: int,
    ) -> SparseCode:
        """Select features. Nothing is computed for features whose parent is not active, which are most of them."""
        k = min(k, len(features.roots) + len(features.children))
        found = [SparseCode(u.new_zeros(len(u), k), active.new_zeros(len(u), k))]
        if len(features.roots):
            found.append(h.choose(u, lambda dense: top_k(dense, k), features.roots))
        if len(features.children) and active.shape[1]:
            first, children = features.first, features.children
            chosen = top_children(u, h.encoder, active, first, children, k, h.precision)
            found.append(SparseCode(*chosen))
        return largest(found, k)
