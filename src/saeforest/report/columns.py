"""The values that the report shows side by side, in blocks of columns, as declared by the measures."""

from __future__ import annotations

from typing import NamedTuple

from ..evaluation.registry import MEASURES
from ..measures.columns import Block


class Column(NamedTuple):
    """A value of a measure as a column of the report. better: ↑ or ↓ if higher or lower is better."""

    measure: str
    value: str
    title: str
    better: str = ""


def _blocks() -> dict[Block, list[Column]]:
    blocks: dict[Block, list[Column]] = {}
    for name, spec in MEASURES.items():
        for column in spec.columns:
            blocks.setdefault(column.block, []).append(
                Column(name, column.value, column.title, column.better)
            )
    return blocks


#: Title and columns of each block, in the order in which measures first name it.
BLOCKS: tuple[tuple[str, tuple[Column, ...]], ...] = tuple(
    (block.title, tuple(columns)) for block, columns in _blocks().items()
)
#: Notes that a reader needs to interpret a block of columns.
NOTES: dict[str, str] = {block.title: block.note for block in _blocks() if block.note}
