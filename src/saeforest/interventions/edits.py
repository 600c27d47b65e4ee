"""Edits: changes of the values of chosen features in a code.

Every edit maps a value v of each of its features to `factor * v + plus`, but at least `low` and at most `high`:

    set_to(features, v)      factor 0, plus v       scale(features, s)    factor s
    add(features, v)         plus v                 clamp(features, low, high)
    ablate(features)         factor 0

Values are in the units of the code. A silent feature has the value 0, so `set_to`, `add` and a `low` above 0 make it
active, and `scale` and `ablate` do not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..errors import InputError
from ..sparse_code import SparseCode
from ..structure.forest import ROOT

CodeEdit = Callable[[SparseCode], SparseCode]
"""A function from the code of some activations to the code that is decoded. It leaves slots in their places; slots of
further features come behind them."""
Features = int | Iterable[int] | Tensor
"""One feature, or several: `forest.subtree(3)`, `forest.children(3)`, `forest.siblings(17)`, `forest.in_layer(1)`."""


@dataclass(frozen=True)
class Edit:
    """A change of the values of some features: v becomes `factor * v + plus`, but at least `low` and at most `high`.

    features:     ids of the features, ascending, each once.
    where_active: leave silent features silent.

    Called with a code `[*n, k]`, it returns the edited code, with further slots if silent features become active.
    Raises InputError if there are no features or a number is out of range.

    Example:
        >>> import torch
        >>> from saeforest.interventions import Edit
        >>> from saeforest.sparse_code import SparseCode
        >>> code = SparseCode(torch.tensor([[0.5, 2.0]]), torch.tensor([[3, 0]]))
        >>> Edit((0, 5), factor=2.0, plus=1.0)(code).dense(d_sae=6)
        tensor([[5.0000, 0.0000, 0.0000, 0.5000, 0.0000, 1.0000]])
    """

    features: tuple[int, ...]
    factor: float = 1.0
    plus: float = 0.0
    low: float = -math.inf
    high: float = math.inf
    where_active: bool = False

    def __post_init__(self) -> None:
        if not self.features:
            raise InputError("an edit of no features: expected at least one")
        if self.features[0] < 0:
            raise InputError(f"feature {self.features[0]}: expected 0 or more")
        for name in ("factor", "plus"):
            if not math.isfinite(getattr(self, name)):
                raise InputError(f"{name} = {getattr(self, name)}: expected a finite number")
        if not self.low <= self.high:
            raise InputError(f"low = {self.low}, high = {self.high}: expected low to be at most high")

    def value(self, v: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
        """The new values of values `v`."""
        # Multiplied only where it must be: 0 * infinity would be NaN.
        new = self.plus + (self.factor * v if self.factor else torch.zeros_like(v))
        return new.clamp(self.low, self.high)

    def __call__(self, code: SparseCode) -> SparseCode:
        return self._applied(code)[0]

    def _applied(self, code: SparseCode) -> tuple[SparseCode, Bool[Tensor, "*n k"]]:
        """The edited code, and which of the given slots hold a feature that the edit has silenced."""
        ids = torch.tensor(self.features, device=code.device)
        used = code.values != 0
        mine = torch.isin(code.ids, ids) & used
        new = torch.where(mine, self.value(code.values), code.values)
        silenced = mine & (new == 0)
        start = self.value(code.values.new_zeros(()))
        if self.where_active or not start:
            return SparseCode(new, code.ids), silenced
        return _with_slots(SparseCode(new, code.ids), used, ids, start), silenced

    def to_json(self) -> dict[str, Any]:
        """The edit as in a JSON document: without bounds that it does not have."""
        bounds = {"low": self.low, "high": self.high}
        return {
            "features": list(self.features),
            "factor": self.factor,
            "plus": self.plus,
            **{name: bound for name, bound in bounds.items() if math.isfinite(bound)},
            "where_active": self.where_active,
        }


def _with_slots(
    code: SparseCode, used: Bool[Tensor, "*n k"], ids: Int[Tensor, "m"], value: Float[Tensor, ""]
) -> SparseCode:
    """The code with slots for features that are silent, all with one value. used: the slots in use before the edit."""
    d_sae = int(torch.maximum(ids.max(), code.ids.max() if code.ids.numel() else ids.max())) + 1
    active = torch.zeros(*code.ids.shape[:-1], d_sae + 1, dtype=torch.bool, device=code.device)
    active.scatter_(-1, torch.where(used, code.ids, d_sae), True)
    values = value.masked_fill(active[..., ids], 0)
    return SparseCode(
        torch.cat([code.values, values], -1),
        torch.cat([code.ids, ids.to(code.ids).expand(*code.ids.shape[:-1], -1)], -1),
    )


def edited(edits: Sequence[Edit], parent: Int[Tensor, "d_sae"] | None = None) -> CodeEdit:
    """A function that applies edits to a code one after the other.

    parent: the parents in a gated SAE; None if a feature may be active without its parent. With them, an edit that
        silences a feature also silences the active features below it, as the gate would. A later edit may make these
        active again, and a feature that is made active stays so although its parent is silent.
    """

    def edit(code: SparseCode) -> SparseCode:
        for one in edits:
            new, silenced = one._applied(code)
            if parent is not None and bool(silenced.any()):
                below = _below(code.ids, silenced, parent)
                more = new.ids.shape[-1] - below.shape[-1]
                new = new.replace(values=new.values.masked_fill(F.pad(below, (0, more)), 0))
            code = new
        return code

    return edit


def _below(
    ids: Int[Tensor, "*n k"], silenced: Bool[Tensor, "*n k"], parent: Int[Tensor, "d_sae"]
) -> Bool[Tensor, "*n k"]:
    """Which slots hold a descendant of a feature in one of the `silenced` slots of the same activation."""
    parent = parent.to(ids.device)
    # No ancestor has the number of an unused slot.
    gone = torch.where(silenced, ids, ROOT - 1)
    below = torch.zeros_like(silenced)
    above = parent[ids]
    while bool((above != ROOT).any()):
        below |= (above[..., :, None] == gone[..., None, :]).any(-1)
        above = torch.where(above == ROOT, ROOT, parent[above])
    return below


def set_to(features: Features, value: float, *, where_active: bool = False) -> Edit:
    """An edit that gives features a value, everywhere or only `where_active`."""
    return Edit(_ids(features), 0.0, float(value), where_active=where_active)


def scale(features: Features, factor: float) -> Edit:
    """An edit that multiplies the values of features. Silent features stay silent."""
    return Edit(_ids(features), float(factor))


def add(features: Features, value: float, *, where_active: bool = False) -> Edit:
    """An edit that adds to the values of features, everywhere or only `where_active`. Values may become negative."""
    return Edit(_ids(features), 1.0, float(value), where_active=where_active)


def clamp(
    features: Features, low: float = -math.inf, high: float = math.inf, *, where_active: bool = False
) -> Edit:
    """An edit that keeps the values of features from `low` to `high`."""
    return Edit(_ids(features), 1.0, 0.0, float(low), float(high), where_active)


def ablate(features: Features) -> Edit:
    """An edit that silences features."""
    return Edit(_ids(features), 0.0)


def _ids(features: Features) -> tuple[int, ...]:
    every = [features] if isinstance(features, int) else list(features)
    return tuple(sorted({int(f) for f in every}))
