"""The null of a recovered tree: the same features under shuffled parents (docs/spec/synthetic.md#nulls)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from ..seeds import seeded
from ..structure.forest import Forest
from ..structure.shuffled import shuffled_within_levels

#: Increased when nulls are made in another way, so that a run is not continued with scores of older ones.
VERSION = 2
#: Number of shuffles that a null is the mean of.
SHUFFLES = 20
_OF_EDGES = (
    "edge_precision",
    "edge_precision_all",
    "edge_recall",
    "edge_f1",
    "ancestor_precision",
    "ancestor_recall",
    "ancestor_f1",
    "parent_accuracy",
)
#: All scores that depend on who is whose parent, by their names in recovery.json: they have nulls.
NULLED = (
    *_OF_EDGES,
    *(f"{name}_06" for name in _OF_EDGES),
    "hierarchy",
    "hierarchy_mean",
    "coverage_mean",
    "coverage_min",
)


def shuffles(forest: Forest, seed: int) -> Iterator[Forest]:
    """The forest with its parents shuffled, `SHUFFLES` times."""
    for i in range(SHUFFLES):
        parent = shuffled_within_levels(forest, seeded(seed, "shuffled parents", i))
        yield Forest(parent, forest.layer_sizes, layered=forest.layered)


def means(scores: Sequence[Mapping[str, float | None]]) -> dict[str, float | None]:
    """The mean of each of the NULLED scores where it is defined; None where it never is."""
    found: dict[str, float | None] = {}
    for name in NULLED:
        known = [value for of_one in scores if (value := of_one[name]) is not None]
        found[name] = sum(known) / len(known) if known else None
    return found
