"""How every figure looks. The colors and markers of systems are their own (`saes/`)."""

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
"""Of a figure, in inches."""
GREY = "#767676"
"""Of what the papers report: always hollow, always in a panel of its own."""

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
    "text.parse_math": False,  # names are data: a $ in one is a $
    "svg.hashsalt": "saeforest",
    "savefig.dpi": 160,
}


@contextmanager
def styled() -> Iterator[None]:
    with matplotlib.rc_context(_RC), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # a sign in a name that the font lacks
        yield


def new_figure(height: float) -> Figure:
    """Of the common width; `height` in inches."""
    return Figure(figsize=(WIDTH, height), layout="constrained")


def note(axes: Axes, text: str) -> None:
    """In the middle of a panel that has nothing to show, why."""
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=GREY, fontsize=8.5)
    axes.set(xticks=[], yticks=[])
    axes.grid(visible=False)


def render(figure: Figure, kind: str) -> bytes:
    """The figure as png or svg; of the same figure always the same bytes."""
    out = io.BytesIO()
    with styled():
        figure.savefig(out, format=kind, metadata={"Date": None} if kind == "svg" else {"Software": None})
    return out.getvalue()
