"""Columns that a report shows for measures, in blocks that several measures share."""

from __future__ import annotations

from typing import Literal, NamedTuple


class Block(NamedTuple):
    """Columns that a report shows side by side, and a note that a reader needs to understand them."""

    title: str
    note: str = ""


class Column(NamedTuple):
    """A value of a measure as a column of a report. better: ↑ if higher is better, ↓ if lower is."""

    block: Block
    value: str
    title: str
    better: Literal["", "↑", "↓"] = ""


RECONSTRUCTION = Block("Reconstruction and sparsity")
HIERARCHY = Block(
    "Hierarchy: the share of parent-child pairs that meet both of the Tree SAE paper's conditions",
    "A Tree SAE meets these conditions without having learned a hierarchy: where a child fires only with its "
    "parent, every direction found for the child points along the parent too. Read its scores beside those of the "
    "untrained SAE and of shuffled parents. Scores also rise with how often children fire, and fall the longer probes "
    "are trained.",
)
EDGES = Block(
    "Parent and child without the gate",
    "How often the parent is active, in its own right, where the child's own detector is on, without gate and "
    "selection. The lift compares with how often the parent is active anywhere. A copy of its parent has both for "
    "free.",
)
FLAT = Block("What hierarchy breaks in flat SAEs")
INTERPRETABILITY = Block("Interpretability and probing")
LEVELS = Block(
    "Agreement of neighboring levels (HSAE)",
    "In a Tree SAE, P(parent | child) is 1 by construction. The Hamming distance grows with the number of active "
    "features, so compare SAEs of different L0 only by the distance per active feature. If parents have few "
    "children, as in a Tree SAE, neither distance says much.",
)
