"""Panel: one figure of the report, with what is said about it."""

from __future__ import annotations

from typing import NamedTuple

from matplotlib.figure import Figure

#: With every figure of hierarchy scores.
NULLS = "A Tree SAE scores high here without having learned a hierarchy: see the note beneath the table of values."


class Panel(NamedTuple):
    """A figure of the report.

    key:     names its files, figures/KEY.png and figures/KEY.svg: lower-case letters, digits and hyphens.
    title:   a heading of a few words.
    caption: what is shown, on what it was measured, what the interval is. Plain text: the page escapes it.
    figure:  drawn with `layout="constrained"`, 9 inches wide.
    """

    key: str
    title: str
    caption: str
    figure: Figure
