"""Values of features around their contexts, and which child fires there: looked up in what was kept of the pass."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int, Int64, UInt8
from torch import Tensor

from ...structure.forest import ROOT, Forest
from ...text import Tokens
from ..index.form import REACH, WINDOW
from .firings import Part
from .strongest import sorted_by

# Number of contexts looked up at once.
_CHUNK = 1 << 13
_MOST = 255


def ordinals(forest: Forest) -> Int64[Tensor, "d_sae"]:
    """The place of each feature among the children of its parent."""
    order = forest.parent.sort(stable=True).indices
    parent = forest.parent[order]
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order)) - torch.searchsorted(parent, parent)
    return place


class Table:
    """Values by key. The keys are distinct."""

    def __init__(self, keys: Int64[Tensor, "m"], values: Tensor) -> None:
        self._keys, order = keys.sort()
        self._values = values[order]

    def at(self, keys: Int64[Tensor, "*q"], otherwise: float) -> Tensor:
        """The values at some keys, and another value where there is none."""
        if not len(self._keys):
            return torch.full(keys.shape, otherwise, dtype=self._values.dtype)
        place = torch.searchsorted(self._keys, keys).clamp(max=len(self._keys) - 1)
        return torch.where(self._keys[place] == keys, self._values[place], otherwise)


def strongest_children(
    rows: Int[Tensor, "m"],
    ids: Int[Tensor, "m"],
    values: Float[Tensor, "m"],
    forest: Forest,
    ordinal: Int64[Tensor, "d_sae"],
) -> Table:
    """For keys row * d_sae + parent: the place of the child that fires most strongly there; of equals, the first."""
    parent = forest.parent[ids.long()]
    below = parent != ROOT
    key = rows[below] * forest.d_sae + parent[below]
    child, value = ordinal[ids.long()[below]], values[below]
    order = sorted_by(child, -value, key)
    key, child = key[order], child[order]
    first = torch.ones_like(key, dtype=torch.bool)
    first[1:] = key[1:] != key[:-1]
    return Table(key[first], child[first])


class Windows:
    """Collects the windows around contexts.

    rows: rows of each feature's contexts, -1 where there is none.
    value: activations at the rows themselves. relative: those around them, as in `Index.window_values`.
    child: as in `Index.window_child`.
    """

    def __init__(
        self,
        tokens: Tokens,
        rows: Int64[Tensor, "d_sae w"],
        value_max: Float[Tensor, "d_sae"],
        forest: Forest,
    ) -> None:
        self._tokens, self._forest, self._max = tokens, forest, value_max
        self._ordinal = ordinals(forest)
        self.parents = (forest.n_children > 0).nonzero().flatten()
        self._family = torch.full((forest.d_sae,), -1)
        self._family[self.parents] = torch.arange(len(self.parents))
        narrow = not len(self.parents) or int(forest.n_children.max()) <= torch.iinfo(torch.int16).max
        shape = rows.shape[1], WINDOW
        self.value = torch.zeros(rows.shape)
        self.relative: UInt8[Tensor, "d_sae w 64"] = torch.zeros(len(rows), *shape, dtype=torch.uint8)
        self.child = torch.full((len(self.parents), *shape), -1, dtype=torch.int16 if narrow else torch.int32)
        # Contexts by their rows, so that those near the activations of a part are found at once.
        flat = rows.flatten()
        known = (flat >= 0).nonzero().flatten()
        self._row, order = flat[known].sort(stable=True)
        self._place = known[order]
        self._n = rows.shape[1]

    def add(self, part: Part) -> Table:
        """Look up all contexts in a part. Returns its `strongest_children`."""
        rows, d_sae = part.row_of(), self._forest.d_sae
        own = Table(rows * d_sae + part.ids, part.values)
        children = strongest_children(rows, part.ids, part.values, self._forest, self._ordinal)
        if not len(part.rows):
            return children
        low, high = (int(row) for row in part.rows.aminmax())
        ends = torch.tensor([low - REACH, high + REACH + 1])
        first, last = (int(i) for i in torch.searchsorted(self._row, ends))
        for place in self._place[first:last].split(_CHUNK):
            feature, context = place // self._n, place % self._n
            row = self._row[torch.arange(first, first + len(place))]
            first += len(place)
            around = row[:, None] + torch.arange(-REACH, WINDOW - REACH)
            inside = self._inside(row, around)
            keys = around * d_sae + feature[:, None]
            values = torch.where(inside, own.at(keys, 0.0), 0)
            self.value[feature, context] = torch.maximum(self.value[feature, context], values[:, REACH])
            relative = _relative(values, self._max[feature])
            self.relative[feature, context] = torch.maximum(self.relative[feature, context], relative)
            family = self._family[feature]
            has = family >= 0
            child = torch.where(inside[has], children.at(keys[has], -1), -1).to(self.child.dtype)
            self.child[family[has], context[has]] = torch.maximum(
                self.child[family[has], context[has]], child
            )
        return children

    def _inside(self, row: Int64[Tensor, "c"], around: Int64[Tensor, "c 64"]) -> Bool[Tensor, "c 64"]:
        """Which rows are in the same document and window as the context's."""
        starts = torch.cat([self._tokens.document_starts, torch.tensor([self._tokens.n_tokens])])
        document = self._tokens.document_of(row)
        window = row - row % self._tokens.context
        low = torch.minimum(torch.maximum(starts[document], window), row)  # a BOS is before its document
        high = torch.minimum(starts[document + 1], window + self._tokens.context)
        return (around >= low[:, None]) & (around < high[:, None])


def _relative(values: Float[Tensor, "c w"], value_max: Float[Tensor, "c"]) -> UInt8[Tensor, "c w"]:
    """Values as whole numbers up to 255, the largest. Of what fires, none is 0."""
    share = values / value_max.clamp(min=1e-30)[:, None]
    found = (share * _MOST).round().clamp(1, _MOST)
    return torch.where(values > 0, found, 0).to(torch.uint8)
