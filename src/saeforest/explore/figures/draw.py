"""One figure of a parent as the bytes of an image file."""

from __future__ import annotations

from typing import Literal, get_args

from ...errors import InputError
from ...extras import needs
from ..queries.explorer import Explorer

Kind = Literal["family", "geometry"]
KINDS: tuple[Kind, ...] = get_args(Kind)
SUFFIXES = ("svg", "png", "pdf")


def draw(
    explorer: Explorer,
    feature: int,
    kind: Kind = "family",
    suffix: str = "svg",
    *,
    children: int = 6,
    depth: int = 2,
    nulls: str = "",
) -> bytes:
    """A figure of a parent, as an SVG, PNG or PDF file. The same arguments give the same bytes.

    kind: "family" for the concept tree, "geometry" for the activations under the parent in a plane.
    children, depth: how much of the tree to show (see `concept_tree`).
    nulls: what was measured of the hierarchy beside its nulls (`nulls_line`).

    Raises InputError if there is no such feature, it has nothing to show, or matplotlib is missing.
    """
    if kind not in KINDS:
        raise InputError(f"figure {kind}: expected {' or '.join(KINDS)}")
    if suffix not in SUFFIXES:
        raise InputError(f"figure as {suffix}: expected {', '.join(SUFFIXES)}")
    with needs("report", "a figure"):
        from matplotlib import rc_context

        from ...report.style import render, styled
        from .family import draw_family
        from .geometry import draw_geometry

    # Text is placed by its exact widths, which hinting would round; a PDF keeps its text as text.
    with rc_context({"text.hinting": "none", "pdf.fonttype": 42}), styled():
        if kind == "family":
            figure = draw_family(explorer, feature, children, depth, nulls)
        else:
            figure = draw_geometry(explorer, feature, nulls)
        return render(figure, suffix)
