"""Choosing which families of a forest to show first."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from ...structure.forest import Forest
from ..index import Index

# A feature that is denser than this tells a reader nothing (like the "PCA feature" in section 2.2 of the paper).
_MAX_DENSITY = 0.05
_SCORED_CHILDREN = 3


@dataclass(frozen=True)
class Family:
    """A parent with the children that fired often enough to be judged, the most frequent first."""

    parent: int
    children: tuple[int, ...]
    passing: tuple[int, ...]
    """The children whose edge meets the paper's criterion. It only serves to choose what is shown: an untrained tree
    meets it too, so it says nothing about the hierarchy."""
    score: float
    """Score of the family in `telling_families`."""


@dataclass(frozen=True)
class ChosenFamilies:
    """The most telling families, and the numbers of edges they were chosen from."""

    shown: tuple[Family, ...]
    n_edges: int
    """Number of edges of the forest, without those from the root."""
    n_judged: int
    """Number of edges whose child fired often enough to be judged."""


def telling_families(
    index: Index, forest: Forest, n: int = 10, *, readable: Callable[[int], bool] = lambda token: True
) -> ChosenFamilies:
    """The `n` most telling families, best first, by these rules:

    1. An edge passes if parent and child are both among the 5 features nearest to the child's direction (the
       paper's criterion, approximated with LDA directions).
    2. A passing child is informative if its strongest token is `readable` and not among its parent's strongest ones; of
       siblings with the same strongest token, only the best counts. Its score is S_res divided by the fourth root of
       the number of distinct tokens in its strongest contexts, so that children with an obvious meaning score higher.
    3. A family qualifies if its parent fires, on at most 5% of the tokens, and at least 2 children are informative. Its
       score is the sum over its best 3 children, times log2(1 / density of the parent), since rare parents are more
       specific. Counting more children would favor the parents with the most children, which mean the least.
    4. For variety, a family is skipped if its parent is an ancestor or descendant of a better family's parent.

    readable: whether a token, by its id, tells a reader something, as a word does and a digit does not.
    """
    found = sorted(
        (
            family
            for parent in forest.edges[0].unique().tolist()
            if (family := _family(index, forest, parent, readable))
        ),
        key=lambda family: (-family.score, family.parent),
    )
    shown: list[Family] = []
    taken: set[int] = set()
    for family in found:
        if len(shown) == n:
            break
        if family.parent not in taken:
            shown.append(family)
            taken.update(forest.subtree(family.parent), forest.ancestors(family.parent))
    return ChosenFamilies(tuple(shown), forest.edges.shape[1], int(index.measured.sum()))


def _family(index: Index, forest: Forest, parent: int, readable: Callable[[int], bool]) -> Family | None:
    """The family of a parent; None if it does not qualify."""
    if not 0 < index.density[parent] <= _MAX_DENSITY:
        return None
    judged = [c for c in forest.children(parent) if index.measured[c]]
    children = tuple(sorted(judged, key=lambda c: (-int(index.n_fired[c]), c)))
    passing = tuple(c for c in children if index.passes[c])
    own = set(_strongest_tokens(index, parent))
    by_token: dict[int, float] = {}
    for child in passing:
        tokens = _strongest_tokens(index, child)
        if tokens[0] not in own and readable(tokens[0]):
            worth = float(index.s_res[child]) / len(set(tokens)) ** 0.25
            by_token[tokens[0]] = max(worth, by_token.get(tokens[0], 0.0))
    if len(by_token) < 2:
        return None
    best = sorted(by_token.values(), reverse=True)[:_SCORED_CHILDREN]
    return Family(parent, children, passing, sum(best) * -math.log2(float(index.density[parent])))


def _strongest_tokens(index: Index, feature: int) -> list[int]:
    """Token ids of a feature's strongest activations, strongest first."""
    rows = index.top_row[feature]
    return index.tokens.ids.flatten()[rows[rows >= 0]].tolist()
