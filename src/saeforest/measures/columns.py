"""What a report shows of measures: columns, in blocks that several measures share."""

from __future__ import annotations

from typing import Literal, NamedTuple


class Block(NamedTuple):
    """Columns that a report shows side by side, and what a reader must know of them."""

    title: str
    note: str = ""


class Column(NamedTuple):
    """A value of a measure as a column of a report. better: ↑ or ↓, where more or less is better."""

    block: Block
    value: str
    title: str
    better: Literal["", "↑", "↓"] = ""


RECONSTRUCTION = Block("Reconstruction and sparsity")
HIERARCHY = Block(
    "Hierarchy: the share of parent-child pairs that meet both of the Tree SAE paper's conditions",
    "A Tree SAE meets these conditions without having learned a hierarchy: where a child fires only with its "
    "parent, every direction found for the child points along the parent too. Read its scores beside those of the "
    "untrained SAE and of shuffled parents (benchmarks/hierarchy_nulls.py). Scores also rise with how often "
    "children fire, and fall the longer probes are trained.",
)
FLAT = Block("What hierarchy breaks in flat SAEs")
INTERPRETABILITY = Block("Interpretability and probing")
LEVELS = Block(
    "Agreement of neighbouring levels (HSAE)",
    "Of a Tree SAE P(parent | child) is 1 by construction. The Hamming distance grows with the number of features "
    "that are active, so SAEs of different L0 are compared by it per active feature only; where parents have few "
    "children, as in a Tree SAE, neither says much.",
)
