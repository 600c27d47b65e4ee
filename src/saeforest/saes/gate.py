"""The gate of a tree: which features of a layer may act on an activation, given those that act above them."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor

from ..kernels import top_children
from ..sparse_code import SparseCode
from ..structure.forest import Families
from .encode import PreActivations
from .select import largest, top_k


@runtime_checkable
class Gate(Protocol):
    """A rule by which active features open the way to their children."""

    def __call__(
        self,
        h: PreActivations,
        u: Float[Tensor, "n d_in"],
        active: Int[Tensor, "n a"],
        features: Families,
        k: int,
    ) -> SparseCode:
        """At most `k` of the features for every activation, on which the features `active` act (-1: an unused slot)."""
        ...


class ParentGate:
    """Eq. 6: a feature is eligible if it hangs from the root or from an active one; of these, the `k` largest."""

    def __call__(
        self,
        h: PreActivations,
        u: Float[Tensor, "n d_in"],
        active: Int[Tensor, "n a"],
        features: Families,
        k: int,
    ) -> SparseCode:
        """Nothing is computed for features that aren't eligible, which are most."""
        k = min(k, len(features.roots) + len(features.children))
        found = [SparseCode(u.new_zeros(len(u), k), active.new_zeros(len(u), k))]
        if len(features.roots):
            found.append(h.choose(u, lambda dense: top_k(dense, k), features.roots))
        if len(features.children) and active.shape[1]:
            first, children = features.first, features.children
            chosen = top_children(u, h.encoder, active, first, children, k, h.precision)
            found.append(SparseCode(*chosen))
        return largest(found, k)
