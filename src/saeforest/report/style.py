"""How every figure looks: one colour and one marker for each system, wherever it appears."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .load import System

WIDTH = 9.0
"""Of a figure, in inches."""
GREY = "#767676"
"""Of what the papers report: always hollow, always in a panel of its own."""

# Okabe and Ito's colours, which the colour-blind tell apart; systems of one family have shades of one hue.
_LOOK: dict[str, tuple[str, str]] = {
    "tree": ("#D55E00", "o"),
    "tree-fixed": ("#7F3800", "X"),
    "hsae": ("#009E73", "s"),
    "hsae-baseline": ("#66C5AB", "D"),
    "topk": ("#000000", "^"),
    "batchtopk": ("#7A7A7A", "v"),
    "matryoshka": ("#0072B2", "P"),
    "jumprelu": ("#9C8B00", "<"),
    "matching_pursuit": ("#CC79A7", "*"),
}
_TWO_LAYERS = {"tree": "#E69F00", "matryoshka": "#56B4E9"}

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


def color(system: System) -> str:
    own = _LOOK.get(system.kind, ("#444444", "o"))[0]
    return _TWO_LAYERS.get(system.kind, own) if system.layers == 2 else own


def marker(system: System) -> str:
    return _LOOK.get(system.kind, ("#444444", "o"))[1]


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
