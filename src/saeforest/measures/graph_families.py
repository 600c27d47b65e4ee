"""Numbers of parents and their children, from their values and decoder rows (docs/spec/hierarchy.md#graph-values).

A family is a parent p with its children. f_i is the value of feature i, 0 where it does not fire. For each edge:

    p_parent_child           n_pc / n_c
    p_parent_child_weighted  sum of f_c where p fires / sum of f_c
    child_rate               n_c / n_p
    mcs                      sum f_p f_c / sqrt(sum f_p^2 sum f_c^2) where c fires
    pearson, spearman        correlation of f_p and f_c where both fire
    parent_larger            share of the tokens where both fire on which f_p > f_c
    child_parent_ratio       mean of f_c / f_p where both fire
    soft_absorption          1 - mean of f_p where both fire / mean of f_p where p fires without any child

and for each family, with the sum or the largest value of the children on every token:

    coverage_by_children     share of the tokens of p on which a child fires
    children_active          mean number of children that fire where p fires
    children_active_share    the same as a share of the children
    pearson_..., spearman_...  correlation of f_p and that sum (or maximum) where a child fires
    sibling_cosine           mean cosine of the decoder rows of two children
    sibling_random           the same of any two features of the graph
    sibling_nearest          the same of groups of the family's size: a feature and those nearest to it
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from ..progress import progress
from ..structure.graph import FeatureGraph
from ..structure.pairs import PairStatistics
from .bootstrap import FloatArray

EDGE_VALUES = (
    "p_parent_child",
    "p_parent_child_weighted",
    "child_rate",
    "mcs",
    "pearson",
    "spearman",
    "parent_larger",
    "child_parent_ratio",
    "soft_absorption",
)
FIRING_VALUES = (
    "coverage_by_children",
    "children_active",
    "children_active_share",
    "pearson_sum",
    "spearman_sum",
    "pearson_max",
    "spearman_max",
)
SIBLING_VALUES = ("sibling_cosine", "sibling_random", "sibling_nearest")
#: A correlation, and a mean of values, need so many tokens.
FEW = 10
# Groups of nearest features are formed about so many features.
_SEEDS = 100

Families = Mapping[int, Sequence[int]]


class _Fired(NamedTuple):
    """The tokens on which a feature fires, ascending, and its values there."""

    token: NDArray[np.int32]
    value: FloatArray

    def at(self, token: NDArray[np.int32]) -> FloatArray:
        """The feature's values on these tokens, 0 where it does not fire."""
        place = np.searchsorted(self.token, token)
        place[place == len(self.token)] = 0
        found = self.token[place] == token if len(self.token) else np.zeros(len(token), dtype=np.bool_)
        return np.where(found, self.value[place] if len(self.token) else 0.0, 0.0)


@dataclass(frozen=True)
class FamilyNumbers:
    """The numbers of edges and families; NaN where undefined.

    child:  `[edges]` the child of each edge, family after family.
    family: `[edges]` the place of each edge's family.
    edge:   `[edges, EDGE_VALUES]`.
    firing: `[families, FIRING_VALUES]`.
    """

    child: NDArray[np.int64]
    family: NDArray[np.int64]
    edge: FloatArray
    firing: FloatArray


def family_numbers(pairs: PairStatistics, families: Families, what: str) -> FamilyNumbers:
    """The numbers of edges and families. Every feature in them must fire on some token. what: for the progress bar."""
    child: list[int] = []
    family: list[int] = []
    edges: list[list[float]] = []
    firing: list[list[float]] = []
    with progress(what, len(families), "families") as advance:
        for place, (parent, children) in enumerate(families.items()):
            by_edge, of_family = _family(_fired(pairs, parent), [_fired(pairs, c) for c in children])
            child += children
            family += [place] * len(children)
            edges += by_edge
            firing.append(of_family)
            advance(1)
    return FamilyNumbers(
        np.array(child, dtype=np.int64),
        np.array(family, dtype=np.int64),
        np.array(edges, dtype=np.float64).reshape(-1, len(EDGE_VALUES)),
        np.array(firing, dtype=np.float64).reshape(-1, len(FIRING_VALUES)),
    )


def _fired(pairs: PairStatistics, feature: int) -> _Fired:
    token, value = pairs.firings(feature)
    return _Fired(token.numpy(), value.double().numpy())


def _family(parent: _Fired, children: list[_Fired]) -> tuple[list[list[float]], list[float]]:
    """The values of each edge and of the family, in the order of EDGE_VALUES and FIRING_VALUES."""
    some, where = np.unique(np.concatenate([c.token for c in children]), return_inverse=True)
    values = np.concatenate([c.value for c in children])
    total: FloatArray = np.bincount(where, values, minlength=len(some)).astype(np.float64)
    largest: FloatArray = np.zeros(len(some))
    np.maximum.at(largest, where, values)
    above = parent.at(some)
    alone = parent.value[~np.isin(parent.token, some, assume_unique=True)]
    alone_mean = alone.mean() if len(alone) >= FEW else np.nan

    edges, together = [], 0
    for child in children:
        of_parent = parent.at(child.token)
        both = of_parent > 0
        together += int(both.sum())
        edges.append(_edge(parent, child, of_parent, both, alone_mean))
    n_parent = len(parent.token)
    return edges, [
        float((above > 0).sum() / n_parent),
        together / n_parent,
        together / n_parent / len(children),
        _pearson(above, total),
        _spearman(above, total),
        _pearson(above, largest),
        _spearman(above, largest),
    ]


def _edge(
    parent: _Fired, child: _Fired, of_parent: FloatArray, both: NDArray[np.bool_], alone_mean: float
) -> list[float]:
    square = (child.value @ child.value) ** 0.5 * (of_parent @ of_parent) ** 0.5
    p, c = of_parent[both], child.value[both]
    enough = len(p) >= FEW
    return [
        float(both.mean()),
        float(c.sum() / child.value.sum()),
        len(child.token) / len(parent.token),
        float(of_parent @ child.value / square) if square > 0 else 0.0,
        _pearson(p, c),
        _spearman(p, c),
        float((p > c).mean()) if enough else np.nan,
        float((c / p).mean()) if enough else np.nan,
        float(1 - p.mean() / alone_mean) if enough else np.nan,
    ]


def _pearson(x: FloatArray, y: FloatArray) -> float:
    if len(x) < FEW or np.ptp(x) == 0 or np.ptp(y) == 0:
        return np.nan
    x, y = x - x.mean(), y - y.mean()
    return float(np.clip(x @ y / ((x @ x) ** 0.5 * (y @ y) ** 0.5), -1, 1))


def _spearman(x: FloatArray, y: FloatArray) -> float:
    from scipy.stats import rankdata  # slow to import: not for `saeforest eval --help`

    return _pearson(rankdata(x), rankdata(y)) if len(x) >= FEW else np.nan


def swapped(families: Families, n: Int[Tensor, "d_sae"], seed: int = 0, among: int = 10) -> Families:
    """The same families with their children swapped: each with one of the `among` children of like frequency.

    What would be an edge already, or a feature's own child, is left out, and so is a family that then has no child.
    """
    children = np.unique([c for family in families.values() for c in family]).astype(np.int64)
    children = children[np.argsort(n.numpy()[children], kind="stable")]
    generator = np.random.default_rng(seed)
    instead: dict[int, int] = {}
    for start in range(0, len(children), among):
        group = children[start : start + among]
        # Turning a shuffled group by one gives each member another one, if there is another.
        drawn = generator.permutation(group)
        instead |= dict(zip(drawn.tolist(), np.roll(drawn, 1).tolist(), strict=True))
    found = {
        p: [new for c in family if (new := instead[c]) not in {p, *family}] for p, family in families.items()
    }
    return {p: family for p, family in found.items() if family}


def sibling_cosines(rows: Float[Tensor, "d_sae d_in"], graph: FeatureGraph) -> FloatArray:
    """`[families, SIBLING_VALUES]` of the families of a graph; NaN for a family of one child. rows: unit decoder rows.

    The groups to compare with are drawn from the features of the graph.
    """
    families = graph.families
    sizes = sorted({len(family) for family in families.values()} - {1})
    found = np.full((len(families), len(SIBLING_VALUES)), np.nan)
    if not sizes:
        return found
    features = graph.features
    rows = rows[features]
    nearest = _nearest_groups(rows, sizes)
    by_chance = _mean_cosine(rows.sum(0, dtype=torch.float64), len(rows))
    for i, family in enumerate(families.values()):
        if (size := len(family)) > 1:
            at = torch.searchsorted(features, torch.tensor(family))
            found[i] = _mean_cosine(rows[at].sum(0, dtype=torch.float64), size), by_chance, nearest[size]
    return found


def _nearest_groups(rows: Float[Tensor, "nodes d_in"], sizes: list[int]) -> dict[int, float]:
    """For each size, the mean cosine within groups of a feature and those nearest to it, over drawn features."""
    seeds = np.random.default_rng(0).permutation(len(rows))[:_SEEDS]
    mean = dict.fromkeys(sizes, 0.0)
    for seed in seeds.tolist():
        cosine = rows @ rows[seed]
        cosine[seed] = torch.inf
        order = cosine.sort(descending=True, stable=True).indices
        total, taken = torch.zeros(rows.shape[1], dtype=torch.float64), 0
        for size in sizes:
            total += rows[order[taken:size]].sum(0, dtype=torch.float64)
            taken = size
            mean[size] += _mean_cosine(total, size) / len(seeds)
    return mean


def _mean_cosine(total: Float[Tensor, "d_in"], size: int) -> float:
    """The mean cosine of two of `size` unit rows, from their sum."""
    return (float(total @ total) - size) / (size * (size - 1))
