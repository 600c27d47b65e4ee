"""The common style of all figures. Colors and markers of systems are defined with them (`saes/`)."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

WIDTH = 9.0
"""Width of a figure in inches."""
GRAY = "#767676"
"""Color of the papers' numbers, which have hollow marks and a separate panel."""
NULL_GRAY = "#9A9A9A"
"""Color of values on nulls, which are × and +."""

_RC: Any = {
    "font.size": 9.5,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#E6E6E6",
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "lines.markersize": 6,
    "text.parse_math": False,  # a $ in a name is a plain $
    "svg.hashsalt": "saeforest",
    "savefig.dpi": 160,
}

# What matplotlib would write of the day and of itself.
_UNDATED: Any = {
    "png": {"Software": None},
    "svg": {"Date": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}


@contextmanager
def styled() -> Iterator[None]:
    """Context in which figures are drawn in the common style."""
    with matplotlib.rc_context(_RC), warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message="Glyph .* missing"
        )  # a character in a name that the font lacks
        yield


def new_figure(height: float) -> Figure:
    """A new figure of the common width; `height` in inches."""
    return Figure(figsize=(WIDTH, height), layout="constrained")


def height_beside(n_entries: int) -> float:
    """Height in inches that a legend beside a figure needs for its entries."""
    return 0.3 + 0.175 * n_entries


def note(axes: Axes, text: str) -> None:
    """Write in the middle of an empty panel why it is empty."""
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=GRAY, fontsize=8.5)
    axes.set(xticks=[], yticks=[])
    axes.grid(visible=False)


def render(figure: Figure, kind: str) -> bytes:
    """The figure as png, svg or pdf; the same figure always gives the same bytes."""
    out = io.BytesIO()
    with styled():
        figure.savefig(out, format=kind, metadata=_UNDATED[kind])
    return out.getvalue()
