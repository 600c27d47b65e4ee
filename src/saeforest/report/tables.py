"""Tables of the report, the same for HTML and Markdown."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from .claim_text import fewer
from .load import Entry
from .nulls import NOT_MEASURED, not_measured, null_values
from .numbers import DASH, interval, number
from .seed_groups import SeedGroup


class Null(NamedTuple):
    """A value on a null, with its name. note: number of a footnote, if it is undefined."""

    text: str
    note: int | None = None


class Cell(NamedTuple):
    """A cell.

    text: the value; small: small text below it; note: number of a footnote; tone: name of a color; nulls: the same
    value on its nulls, below all of these.
    """

    text: str
    small: str = ""
    note: int | None = None
    tone: str = ""
    nulls: tuple[Null, ...] = ()


class Table(NamedTuple):
    """A table with its title and a note."""

    title: str
    head: list[str]
    rows: list[list[Cell]]
    note: str = ""
    """Text below the table."""


@dataclass
class Footnotes:
    """Numbered footnotes; the same text gets the same number."""

    texts: list[str] = field(default_factory=list)

    def number(self, text: str) -> int:
        """The number of a footnote with this text, from 1."""
        if text not in self.texts:
            self.texts.append(text)
        return self.texts.index(text) + 1


def cell(of: Entry | SeedGroup, measure: str, name: str, notes: Footnotes) -> Cell:
    """A value with its interval and its nulls; a dash with a footnote if it is undefined."""
    value = of.value(measure, name)
    if value.value is None:
        return Cell(DASH, note=notes.number(value.why or "undefined"))
    nulls = null_values(of, measure, name)
    if why := not_measured(nulls):
        return Cell(number(value.value), interval(value), nulls=(Null(NOT_MEASURED, notes.number(why)),))
    shown = tuple(
        Null(f"{kind.title} {DASH}", notes.number(null.why or "undefined"))
        if null.value is None
        else Null(f"{kind.title} {number(null.value)}")
        for kind, null in nulls
    )
    return Cell(number(value.value), interval(value), nulls=shown)


def mean_cell(group: SeedGroup, measure: str, name: str, notes: Footnotes) -> Cell:
    """The mean over seeds with its interval, and the number of seeds if some are missing."""
    made, value = cell(group, measure, name, notes), group.value(measure, name)
    small = "; ".join(text for text in (made.small, fewer(group, value)) if text)
    return made._replace(small=small, tone="mean")
