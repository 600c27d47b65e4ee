"""A graph of features, read off their firings: which feature implies which (docs/spec/hierarchy.md#graph).

A forest gives a feature one parent. A graph may give it several, as long as no feature is its own ancestor. For a
feature c and another, p, the evidence that p is above c is, with sums over the tokens on which c fires,

    weighted      sum of f_c where p fires / sum of f_c        P(p | c), weighted by the child's value
    conditional   n_pc / n_c                                   P(p | c)
    mcs           sum f_p f_c / sqrt(sum f_p^2 sum f_c^2)      masked cosine similarity

p is a parent of c if the evidence for p above c is more than a threshold, and that for c above p less than one. What
follows from other edges is then removed, and so are features with too many children and groups that are too small.

Source: the published code of Grandien et al., arXiv 2606.22994.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from ..errors import InputError
from .forest import Forest
from .pairs import PairStatistics

EdgeEvidence = Literal["weighted", "conditional", "mcs"]
Shape = Literal["dag", "tree"]
#: Thresholds of the published code.
THRESHOLD: dict[EdgeEvidence, float] = {"weighted": 0.9, "conditional": 0.9, "mcs": 0.8}


@dataclass(frozen=True)
class GraphRules:
    """Which pairs of features are edges, and which of them stay. The defaults are those of the published code.

    Raises InputError for a value out of its range.
    """

    evidence: EdgeEvidence = "weighted"
    """What makes a feature the parent of another. weighted: the share of the child's activation that falls on tokens
    where the parent fires too; conditional: the share of the child's tokens; mcs: masked cosine similarity."""
    shape: Shape = "dag"
    """dag: a feature may have several parents; tree: only the one with the strongest evidence."""
    threshold: float | None = None
    """Evidence that a parent must exceed. None: 0.9, or 0.8 with mcs."""
    reverse: float | None = None
    """The evidence for the child as a parent of its parent must stay below this. None: the same as `threshold`."""
    max_children: float = 0.05
    """Features with more children than this fraction of the dictionary are removed."""
    min_descendants: int = 5
    """A topmost feature with fewer descendants than this is removed with all of them."""
    min_count: int = 20
    """Minimum number of tokens that a feature must fire on to be in the graph."""

    def __post_init__(self) -> None:
        for name in ("threshold", "reverse"):
            given = getattr(self, name)
            if given is not None and not 0 <= given <= 1:
                raise InputError(f"graph.{name} = {given}: expected a number from 0 to 1")
        if not 0 < self.max_children <= 1:
            raise InputError(
                f"graph.max_children = {self.max_children}: expected a fraction above 0, up to 1"
            )
        for name in ("min_descendants", "min_count"):
            if (given := getattr(self, name)) < 1:
                raise InputError(f"graph.{name} = {given}: expected 1 or more")

    @property
    def above(self) -> float:
        """What the evidence for a parent must exceed."""
        return THRESHOLD[self.evidence] if self.threshold is None else self.threshold

    @property
    def below(self) -> float:
        """What the evidence in the other direction must stay below."""
        return self.above if self.reverse is None else self.reverse


@dataclass(frozen=True, eq=False, repr=False)
class FeatureGraph:
    """A directed graph of the features `0..d_sae-1` without cycles. Immutable.

    parent, child: `[edges]`, the two ends of each edge, in ascending order of children, then of parents.

    Raises ValueError if a feature is its own ancestor.
    """

    parent: Int[Tensor, "edges"]
    child: Int[Tensor, "edges"]
    d_sae: int

    def __post_init__(self) -> None:
        order = torch.from_numpy(np.lexsort((self.parent, self.child)))
        object.__setattr__(self, "parent", self.parent[order])
        object.__setattr__(self, "child", self.child[order])
        if len(self._parents_first) < self.d_sae:
            raise ValueError("a feature of the graph is its own ancestor")

    def __repr__(self) -> str:
        return f"FeatureGraph({self.d_sae:,} features, {len(self):,} edges between {len(self.features):,})"

    def __len__(self) -> int:
        return len(self.parent)

    @cached_property
    def features(self) -> Int[Tensor, "nodes"]:
        """The features that have a parent or a child, ascending."""
        return torch.cat([self.parent, self.child]).unique()

    @cached_property
    def n_parents(self) -> Int[Tensor, "d_sae"]:
        """The number of parents of each feature."""
        return torch.bincount(self.child, minlength=self.d_sae)

    @cached_property
    def n_children(self) -> Int[Tensor, "d_sae"]:
        """The number of children of each feature."""
        return torch.bincount(self.parent, minlength=self.d_sae)

    @cached_property
    def families(self) -> dict[int, list[int]]:
        """The children of every feature that has some; both in ascending order."""
        return _grouped(self.parent, self.child)

    @cached_property
    def parents(self) -> dict[int, list[int]]:
        """The parents of every feature that has some; both in ascending order."""
        return _grouped(self.child, self.parent)

    @cached_property
    def _parents_first(self) -> list[int]:
        """All features, parents before their children; those in cycles and below them are missing."""
        waiting = self.n_parents.tolist()
        order = [feature for feature, n in enumerate(waiting) if n == 0]
        for feature in order:
            for child in self.families.get(feature, ()):
                waiting[child] -= 1
                if waiting[child] == 0:
                    order.append(child)
        return order

    @cached_property
    def ancestors(self) -> list[int]:
        """The ancestors of each feature: bit p of a number is set if p is one."""
        found = [0] * self.d_sae
        for feature in self._parents_first:
            for parent in self.parents.get(feature, ()):
                found[feature] |= found[parent] | 1 << parent
        return found

    @cached_property
    def depth(self) -> Int[Tensor, "d_sae"]:
        """The number of edges on the longest path from above to each feature."""
        depth = [0] * self.d_sae
        for feature in self._parents_first:
            for parent in self.parents.get(feature, ()):
                depth[feature] = max(depth[feature], depth[parent] + 1)
        return torch.tensor(depth)

    def kept(self, edges: Bool[Tensor, "edges"]) -> FeatureGraph:
        """The graph with these edges alone."""
        return FeatureGraph(self.parent[edges], self.child[edges], self.d_sae)


def _grouped(by: Int[Tensor, "edges"], what: Int[Tensor, "edges"]) -> dict[int, list[int]]:
    groups: dict[int, list[int]] = {}
    for key, member in zip(by.tolist(), what.tolist(), strict=True):
        groups.setdefault(key, []).append(member)
    return dict(sorted(groups.items()))


def graph_of(forest: Forest) -> FeatureGraph:
    """The edges of a forest, without those of the root, as a graph."""
    parent, child = forest.edges
    return FeatureGraph(parent, child, forest.d_sae)


class InferredGraph(NamedTuple):
    """A graph, and how many edges each step of its inference left.

    graph: the result.
    steps: number of edges between pairs that pass both thresholds; after cycles were cut; after the transitive
        reduction; and at the end.
    """

    graph: FeatureGraph
    steps: dict[str, int]


def infer_graph(pairs: PairStatistics, rules: GraphRules) -> InferredGraph:
    """Infer a graph from firings.

    Edges between features that are, by these edges, ancestors of each other are left out. In a tree, evidence that is
    equal in float32 is a tie, and goes to the less frequent parent, then to the lower index.
    """
    parent, child = _implications(pairs, rules)
    n_all = len(parent)
    one_way = acyclic(parent, child, pairs.d_sae)
    graph = FeatureGraph(parent[one_way], child[one_way], pairs.d_sae)
    n_acyclic = len(graph)
    graph = transitive_reduction(graph)
    n_reduced = len(graph)
    graph = pruned(graph, rules.max_children, rules.min_descendants)
    return InferredGraph(
        graph, {"implied": n_all, "acyclic": n_acyclic, "reduced": n_reduced, "kept": len(graph)}
    )


def _implications(
    pairs: PairStatistics, rules: GraphRules
) -> tuple[Int[Tensor, "edges"], Int[Tensor, "edges"]]:
    """The parents and children of all pairs that pass both thresholds."""
    n = pairs.marginals.n
    frequent = n >= rules.min_count
    found = [torch.zeros(2, 0, dtype=torch.int64)]
    scores = [torch.zeros(0, dtype=torch.float64)]
    for block, score in evidence(pairs, rules.evidence, frequent.nonzero().flatten()):
        allowed = (score > rules.above) & frequent
        allowed[torch.arange(len(block)), block] = False
        row, above = allowed.nonzero(as_tuple=True)
        found.append(torch.stack([above, block[row]]))
        scores.append(score[row, above])
    parent, child = torch.cat(found, dim=1)
    one_way = _reverse(pairs, rules, parent, child) < rules.below
    parent, child, score = parent[one_way], child[one_way], torch.cat(scores)[one_way]
    if rules.shape == "tree":
        best_first = np.lexsort((parent, n[parent], -score.float(), child))
        parent, child = parent[best_first], child[best_first]
        first = torch.ones(len(child), dtype=torch.bool)
        first[1:] = child[1:] != child[:-1]
        parent, child = parent[first], child[first]
    return parent, child


def evidence(
    pairs: PairStatistics, kind: EdgeEvidence, children: Int[Tensor, "f"]
) -> Iterator[tuple[Int[Tensor, "b"], Float64[Tensor, "b d_sae"]]]:
    """Yield blocks of `children`, in order, with the evidence for each feature as their parent.

    That of a feature for itself has no meaning.
    """
    if kind == "weighted":
        for block, sums in pairs.sums_of(children, "parent"):
            yield block, sums.parent_sum / pairs.marginals.sum[block, None].clamp(min=1e-300)
    else:
        yield from pairs.scores("coverage" if kind == "conditional" else "mcs_correlation", children)


def _reverse(
    pairs: PairStatistics, rules: GraphRules, parent: Int[Tensor, "m"], child: Int[Tensor, "m"]
) -> Float64[Tensor, "m"]:
    """The evidence for each child as the parent of its parent."""
    above, which = parent.unique(return_inverse=True)
    found = torch.zeros(len(parent), dtype=torch.float64)
    first = 0
    for block, score in evidence(pairs, rules.evidence, above):
        here = ((which >= first) & (which < first + len(block))).nonzero().flatten()
        found[here] = score[which[here] - first, child[here]]
        first += len(block)
    return found


def acyclic(parent: Int[Tensor, "edges"], child: Int[Tensor, "edges"], d_sae: int) -> Bool[Tensor, "edges"]:
    """Which edges are in no cycle."""
    ones = np.ones(len(parent), dtype=np.int8)
    adjacency = coo_array((ones, (parent.numpy(), child.numpy())), shape=(d_sae, d_sae)).tocsr()
    component = torch.from_numpy(connected_components(adjacency, connection="strong")[1])
    return component[parent] != component[child]


def transitive_reduction(graph: FeatureGraph) -> FeatureGraph:
    """The graph without the edges from a parent to a child that can also be reached by a longer way."""
    keep = torch.ones(len(graph), dtype=torch.bool)
    edge = 0  # edges are in ascending order of children, then of parents
    for child in graph.child.unique().tolist():
        parents = graph.parents[child]
        farther = 0
        for parent in parents:
            farther |= graph.ancestors[parent]
        for parent in parents:
            keep[edge] = not farther >> parent & 1
            edge += 1
    return graph.kept(keep)


def pruned(graph: FeatureGraph, max_children: float, min_descendants: int) -> FeatureGraph:
    """The graph without features that have too many children, and without groups that are too small.

    max_children: a feature goes if it has more children than this fraction of all features.
    min_descendants: a feature stays only if it is a topmost feature with at least so many descendants, or below one.
    """
    crowded = graph.n_children > max_children * graph.d_sae
    graph = graph.kept(~(crowded[graph.parent] | crowded[graph.child]))
    topmost = sum(1 << f for f in graph.families if f not in graph.parents)
    descendants = [0] * graph.d_sae
    for feature in graph.parents:
        above = graph.ancestors[feature] & topmost
        while above:
            descendants[above.bit_length() - 1] += 1
            above ^= 1 << above.bit_length() - 1
    large = sum(1 << f for f, n in enumerate(descendants) if n >= min_descendants)
    stays = torch.tensor([bool((above | 1 << f) & large) for f, above in enumerate(graph.ancestors)])
    return graph.kept(stays[graph.parent])
