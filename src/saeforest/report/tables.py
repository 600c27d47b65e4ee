"""Tables of the report: the same for the page, for Markdown and for JSON."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from .claim_text import fewer
from .load import Value
from .numbers import DASH, interval, number
from .seed_groups import SeedGroup


class Cell(NamedTuple):
    """text: the value; small: beneath it; note: the number of a footnote; tone: names a colour."""

    text: str
    small: str = ""
    note: int | None = None
    tone: str = ""


class Table(NamedTuple):
    title: str
    head: list[str]
    rows: list[list[Cell]]
    note: str = ""
    """One sentence beneath it."""


@dataclass
class Footnotes:
    """Reasons, each numbered once."""

    texts: list[str] = field(default_factory=list)

    def number(self, text: str) -> int:
        if text not in self.texts:
            self.texts.append(text)
        return self.texts.index(text) + 1


def cell(value: Value, notes: Footnotes) -> Cell:
    if value.value is None:
        return Cell(DASH, note=notes.number(value.why or "undefined"))
    return Cell(number(value.value), interval(value))


def mean_cell(group: SeedGroup, value: Value, notes: Footnotes) -> Cell:
    made = cell(value, notes)
    small = "; ".join(text for text in (made.small, fewer(group, value)) if text)
    return made._replace(small=small, tone="mean")
