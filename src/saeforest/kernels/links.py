"""The distances between features and the sums of their children, which HSAE minimizes (Eq. 7 of its paper).

In dense form, for values `f [n, F]`, `vectors = f[:, :, None] * decoder` and `children` their sums by parent:

    (vectors - children).square().sum(2)[:, has_children].sum()

This expands into squares, products of children with their parent, and products of siblings. The same pairs of decoder
rows occur on many tokens, so each product of two rows is computed once, and no vectors are built.

`projected_distance` compares a feature only with what its children write along it (docs/spec/hsae.md#projected).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from ..ranks.alone import ALONE
from . import shards
from .products import jagged_decode

_ROOT = -1
# With more active siblings than this, there are too many pairs, and the sum of the siblings is computed instead.
_CROWD = 8


@runtime_checkable
class Entries(Protocol):
    """The active features of a batch, in ascending order of rows, and within a row in ascending order of ids."""

    @property
    def rows(self) -> Int[Tensor, "m"]: ...
    @property
    def ids(self) -> Int[Tensor, "m"]: ...
    @property
    def values(self) -> Float[Tensor, "m"]: ...


def dense_link_distance(
    f: Float[Tensor, "n F"], parent: Int[Tensor, "F"], decoder: Float[Tensor, "F d"]
) -> Float[Tensor, ""]:
    """The sum of `link_distance` over all levels, computed densely, for small inputs and tests."""
    vectors, child = f[:, :, None] * decoder, (parent != _ROOT).nonzero().flatten()
    children = torch.zeros_like(vectors).index_add(1, parent[child], vectors[:, child])
    return (vectors - children)[:, parent[child].unique()].square().sum()


def link_distance(
    above: Entries, below: Entries, parent: Int[Tensor, "F"], decoder: Float[Tensor, "F d"]
) -> Float[Tensor, ""]:
    """The squared distances between features of a level and the sums of their children, summed over tokens.

    Only features with children count. Gradients for the values and for `decoder`.
    """
    d_sae = len(decoder)
    own, child = has_children(parent)[above.ids], parent[below.ids] != _ROOT
    squared = (decoder * decoder).sum(1)
    a, b = above.values[own], below.values[child]
    ids, rows = below.ids[child], below.rows[child]
    total = (a * a * of_features(squared, above.ids[own])).sum() + (b * b * of_features(squared, ids)).sum()

    # Find the entry of each child's parent by bisection.
    at = above.rows[own] * d_sae + above.ids[own]
    wanted = rows * d_sae + parent[ids]
    place = torch.searchsorted(at, wanted).clamp(max=max(len(at) - 1, 0))
    met = (at[place] == wanted).nonzero().flatten() if len(at) else place[:0]
    total = total - 2 * (a[place[met]] * b[met] * _products(parent[ids[met]], ids[met], decoder)).sum()

    return total + _siblings(b, ids, wanted, decoder)


def dense_projected_distance(
    f: Float[Tensor, "n F"], parent: Int[Tensor, "F"], decoder: Float[Tensor, "F d"]
) -> Float[Tensor, ""]:
    """The sum of `projected_distance` over all levels, computed densely, for small inputs and tests."""
    child = (parent != _ROOT).nonzero().flatten()
    along = f[:, child] * (decoder[child] * decoder[parent[child]]).sum(1)
    children = torch.zeros_like(f).index_add(1, parent[child], along)
    return (f - children)[:, parent[child].unique()].square().sum()


def projected_distance(
    above: Entries, below: Entries, parent: Int[Tensor, "F"], decoder: Float[Tensor, "rows d"]
) -> Float[Tensor, ""]:
    """The squared differences of features of a level and what their children write along them, summed over tokens.

    A child c with the value b writes b d_c . d_p along its parent p. Only features with children count. Gradients for
    the values and for `decoder`.
    """
    own, child = has_children(parent)[above.ids], parent[below.ids] != _ROOT
    ids = below.ids[child]
    along = below.values[child] * toward_parents(ids, parent, decoder)
    at = torch.cat(
        [above.rows[own] * len(parent) + above.ids[own], below.rows[child] * len(parent) + parent[ids]]
    )
    at, order = at.sort(stable=True)
    gaps = torch.cat([above.values[own], -along])[order]
    if len(at) == 0:
        return gaps.sum()
    which = at.unique_consecutive(return_inverse=True)[1]
    # A product with a single 1 sums each group in a fixed order.
    one, group = gaps.new_ones(1, 1), int(which[-1]) + 1
    with shards.sharded(ALONE):
        return jagged_decode(gaps, torch.zeros_like(which), which, group, one).square().sum()


def toward_parents(
    ids: Int[Tensor, "m"], parent: Int[Tensor, "F"], decoder: Float[Tensor, "rows d"]
) -> Float[Tensor, "m"]:
    """The products of the decoder rows of features and of their parents. Each feature must have a parent."""

    def products(_: Sequence[Tensor], decoder: Float[Tensor, "F d"]) -> Float[Tensor, "m"]:
        return _products(parent[ids], ids, decoder)

    return shards.by_columns(products, [], decoder, len(parent))


def has_children(parent: Int[Tensor, "F"]) -> torch.Tensor:
    """Which features have children."""
    return torch.bincount(parent[parent != _ROOT], minlength=len(parent)) > 0


def of_features(per_feature: Float[Tensor, "F"], ids: Int[Tensor, "m"]) -> Float[Tensor, "m"]:
    """The values of `per_feature` at the given ids. The gradient is summed in a fixed order."""
    return F.embedding(ids, per_feature[:, None]).squeeze(-1)


def _siblings(
    values: Float[Tensor, "m"],
    ids: Int[Tensor, "m"],
    family: Int[Tensor, "m"],
    decoder: Float[Tensor, "F d"],
) -> Float[Tensor, ""]:
    """The sum of the products of all pairs of siblings: pair by pair in small families, otherwise by their sum."""
    family, order = family.sort(stable=True)
    values, ids = values[order], ids[order]
    which, count = family.unique_consecutive(return_inverse=True, return_counts=True)[1:]
    crowded = count[which] > _CROWD
    total = values.sum() * 0
    few, of = values[~crowded], ids[~crowded]
    for i, j in _pairs_within(which[~crowded]):
        total = total + 2 * (few[i] * few[j] * _products(of[i], of[j], decoder)).sum()
    if bool(crowded.any()):
        many, of = values[crowded], ids[crowded]
        rows = which[crowded].unique_consecutive(return_inverse=True)[1]
        sums = jagged_decode(many, of, rows, int(rows[-1]) + 1, decoder)
        alone = many * many * of_features((decoder * decoder).sum(1), of)
        total = total + sums.square().sum() - alone.sum()
    return total


def _products(i: Int[Tensor, "m"], j: Int[Tensor, "m"], decoder: Float[Tensor, "F d"]) -> Float[Tensor, "m"]:
    """The products of pairs of decoder rows. Each distinct pair is multiplied once."""
    pairs, which = (i * len(decoder) + j).unique(return_inverse=True)
    left, right = (F.embedding(part, decoder) for part in (pairs // len(decoder), pairs % len(decoder)))
    return of_features((left * right).sum(1), which)


def _pairs_within(family: Int[Tensor, "m"]) -> Iterator[tuple[Int[Tensor, "p"], Int[Tensor, "p"]]]:
    """All pairs of positions in the same family, whose members are adjacent: by distance 1 first, then 2, ..."""
    first = torch.arange(len(family), device=family.device)
    for step in range(1, len(family)):
        first = first[first + step < len(family)]
        first = first[family[first] == family[first + step]]
        if len(first) == 0:
            return
        yield first, first + step
