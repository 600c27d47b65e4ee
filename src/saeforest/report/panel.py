"""Panel: a figure of the report with its title and caption."""

from __future__ import annotations

from typing import NamedTuple

from matplotlib.figure import Figure

#: Note added to the caption of every figure of hierarchy scores.
NULLS = (
    "A Tree SAE scores high here even if it has learned no hierarchy: see the note below the table of values."
)


class Panel(NamedTuple):
    """A figure of the report.

    key:     name of its files, figures/KEY.png and figures/KEY.svg: lower-case letters, digits and hyphens.
    title:   a heading of a few words.
    caption: what is shown, on what it was measured, what the interval is. Plain text, which the page escapes.
    figure:  drawn with `layout="constrained"`, 9 inches wide.
    """

    key: str
    title: str
    caption: str
    figure: Figure
