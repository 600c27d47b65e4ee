"""Which families of a forest to show first."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..structure.forest import Forest
from .index import Index

# Read token by token, a feature on more of the text than this says nothing (section 2.2's "PCA feature").
_MAX_DENSITY = 0.05
_SCORED_CHILDREN = 3


@dataclass(frozen=True)
class Family:
    """A parent with the children that fired often enough to be judged, the most frequent first."""

    parent: int
    children: tuple[int, ...]
    passing: tuple[int, ...]
    """Those of them whose edge meets the paper's criterion. The criterion serves to choose what is shown: a tree that
    was never trained meets it too, so it says nothing about the hierarchy."""
    score: float


@dataclass(frozen=True)
class Families:
    """The most telling families, and the whole they were chosen from."""

    shown: tuple[Family, ...]
    n_edges: int
    """Edges of the forest, those from the root left out."""
    n_judged: int
    """Edges whose child fired often enough to be judged."""


def telling_families(index: Index, forest: Forest, n: int = 10) -> Families:
    """The `n` most telling families, best first. The rule:

    1. An edge passes when parent and child are both among the 5 features nearest the child's direction (the
       paper's criterion, approximate here).
    2. A passing child adds something when its strongest token is none of its parent's strongest, and better than
       a sibling with the same strongest token. It counts S_res, divided by the fourth root of the number of
       different tokens in its strongest contexts: one that says what it is at a glance counts more.
    3. A family counts when its parent fires, on at most 5 % of the tokens, and at least 2 children add something.
       Its score is the sum over its best 3 of these, times log2 of 1 / density of the parent: rare parents are
       specific. More children would only favour the parents with the most, which are the ones that mean the least.
    4. For variety, a family is skipped whose parent lies above or below the parent of a better one.
    """
    found = sorted(
        (
            family
            for parent in forest.edges[0].unique().tolist()
            if (family := _family(index, forest, parent))
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
    return Families(tuple(shown), forest.edges.shape[1], int(index.measured.sum()))


def _family(index: Index, forest: Forest, parent: int) -> Family | None:
    """The family under a parent, if it counts."""
    if not 0 < index.density[parent] <= _MAX_DENSITY:
        return None
    judged = [c for c in forest.children(parent) if index.measured[c]]
    children = tuple(sorted(judged, key=lambda c: (-int(index.n_fired[c]), c)))
    passing = tuple(c for c in children if index.passes[c])
    own = set(_strongest_tokens(index, parent))
    by_token: dict[int, float] = {}
    for child in passing:
        tokens = _strongest_tokens(index, child)
        if tokens[0] not in own:
            worth = float(index.s_res[child]) / len(set(tokens)) ** 0.25
            by_token[tokens[0]] = max(worth, by_token.get(tokens[0], 0.0))
    if len(by_token) < 2:
        return None
    best = sorted(by_token.values(), reverse=True)[:_SCORED_CHILDREN]
    return Family(parent, children, passing, sum(best) * -math.log2(float(index.density[parent])))


def _strongest_tokens(index: Index, feature: int) -> list[int]:
    """Token ids of its strongest contexts, strongest first."""
    rows = index.top_row[feature]
    return index.tokens.ids.flatten()[rows[rows >= 0]].tolist()
