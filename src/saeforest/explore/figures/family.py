"""Drawing the concept tree of a parent, as in Figures 17 to 20 of the Tree SAE paper."""

from __future__ import annotations

from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, PathPatch
from matplotlib.path import Path
from rich.cells import cell_len

from ...errors import InputError
from ...text.passages import fit
from ..queries.cards import ContextCard
from ..queries.explorer import Explorer
from ..views.percent import percent
from .concepts import Concept, concept_tree
from .lettering import LINE, NULL, PAPER, QUIET, RULE, SIGNAL, SOFT, Lettering
from .numbers import EdgeScale, edge_scale

# Lengths in inches, sizes of type in points.
_MARGIN, _GAP, _COLUMN_GAP, _PAD = 0.28, 0.13, 0.85, 0.12
_WIDEST_TOP, _WIDEST = 3.3, 4.7
_WORDS, _SMALL, _MONO = 10.5, 8.0, 7.6
_LINE = 0.165
_ROUND = 0.07
_TOP_CONTEXTS = 4
_SCALE = 1.05
_SHORT = {"ungated": "without the gate", "lift": "lift without the gate"}


@dataclass(frozen=True)
class _Placed:
    """A concept's box: its left edge, top, width and height in inches, y downwards."""

    concept: Concept
    x: float
    y: float
    width: float
    height: float
    children: tuple[_Placed, ...]

    @property
    def middle(self) -> float:
        return self.y + self.height / 2


def draw_family(explorer: Explorer, feature: int, children: int, depth: int, nulls: str) -> Figure:
    """The figure of a feature's concept tree. Raises InputError if there is no such feature, or it never fired."""
    scale = edge_scale(explorer.index)
    top = concept_tree(explorer, feature, scale, children, depth)
    if not top.card.alive:
        raise InputError(f"feature {feature}: never fired on the indexed text, so there is nothing to draw")
    levels = sorted({concept.level for concept in top.walk()})
    columns = {level: i for i, level in enumerate(levels)}
    n = len(levels)
    inner = _WIDEST if n < 3 else 3.75
    lefts, x = [], _MARGIN
    for i in range(n):
        lefts.append(x)
        x += (_WIDEST_TOP if i == 0 else inner) + _COLUMN_GAP
    width = x - _COLUMN_GAP + _MARGIN
    widths = [_WIDEST_TOP] + [inner] * (n - 1)
    head = 1.02
    placed, bottom = _place(top, head, columns, lefts, widths)
    caption = _caption(explorer, top, scale, nulls)
    lettering = Lettering()
    lines = lettering.wrapped(caption, width - 2 * _MARGIN, _SMALL)
    height = bottom + 0.22 + _LINE * len(lines) + _MARGIN
    figure = Figure(figsize=(width, height), facecolor=PAPER)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.set_axis_off()
    lettering.axes = axes
    _head(lettering, explorer, top, levels, lefts, width)
    _links(axes, placed)
    _boxes(lettering, placed, scale, top=True)
    for i, line in enumerate(lines):
        lettering.text(_MARGIN, bottom + 0.3 + _LINE * i, line, _SMALL, color=QUIET)
    return figure


# -- where things are


def _place(
    concept: Concept,
    y: float,
    columns: dict[int, int],
    lefts: list[float],
    widths: list[float],
    top: bool = True,
) -> tuple[_Placed, float]:
    """Place a concept and those below it from `y` on. Returns it and where the next one may start."""
    height = _height(concept, top)
    placed, at = [], y
    for child in concept.children:
        below, at = _place(child, at, columns, lefts, widths, top=False)
        placed.append(below)
        at += _GAP
    at = at - _GAP if placed else at
    if placed and concept.rest:
        at += 0.2
    extent = max(at - y, height)
    if (
        extent > at - y and placed
    ):  # the box is taller than all its children together: they are centered on it
        shift = (extent - (at - y)) / 2
        placed = [_shifted(child, shift) for child in placed]
    column = columns[concept.level]
    middle = (placed[0].middle + placed[-1].middle) / 2 if placed else y + height / 2
    own = min(max(middle - height / 2, y), y + extent - height)
    return _Placed(concept, lefts[column], own, widths[column], height, tuple(placed)), y + extent


def _shifted(placed: _Placed, by: float) -> _Placed:
    below = tuple(_shifted(child, by) for child in placed.children)
    return _Placed(placed.concept, placed.x, placed.y + by, placed.width, placed.height, below)


def _height(concept: Concept, top: bool) -> float:
    lines = min(len(concept.contexts), _TOP_CONTEXTS if top else 1)
    numbers = 0 if concept.value is None else 1
    return 2 * _PAD + 0.36 + _LINE * (lines + numbers)


# -- what is drawn


def _head(
    lettering: Lettering,
    explorer: Explorer,
    top: Concept,
    levels: list[int],
    lefts: list[float],
    width: float,
) -> None:
    overview = explorer.overview()
    title = f"Feature {top.card.id} and the features below it"
    lettering.text(_MARGIN, 0.4, title, 13, weight="bold")
    about = (
        f"{overview.model}, {overview.site} · {overview.n_features:,} features · forest {overview.forest} · "
        f"measured on {overview.n_tokens:,} tokens"
    )
    lettering.text(_MARGIN, 0.61, lettering.cut(about, width - 2 * _MARGIN, _SMALL), _SMALL, color=QUIET)
    word = "layer" if explorer.forest.layered else "level"
    for level, left in zip(levels, lefts, strict=True):
        lettering.text(left + 0.02, 0.93, f"{word} {level}", _SMALL, color=LINE, weight="bold")


def _links(axes: Axes, placed: _Placed) -> None:
    for child in placed.children:
        start, end = (placed.x + placed.width, placed.middle), (child.x, child.middle)
        bend = end[0] - _COLUMN_GAP / 2
        path = Path(
            [start, (bend, start[1]), (bend, end[1]), end],
            [Path.MOVETO, Path.CURVE4, Path.CURVE4, Path.CURVE4],
        )
        width = 0.8 + 3.2 * (child.concept.p_child or 0) ** 0.5
        axes.add_patch(
            PathPatch(path, facecolor="none", edgecolor=LINE, linewidth=width, alpha=0.75, capstyle="round")
        )
        _links(axes, child)


def _boxes(lettering: Lettering, placed: _Placed, scale: EdgeScale | None, top: bool) -> None:
    _box(lettering, placed, scale, top)
    for child in placed.children:
        _boxes(lettering, child, scale, top=False)
    rest = placed.concept.rest
    if rest:
        below = placed.children[-1] if placed.children else placed
        if placed.children:
            lettering.text(below.x + 0.02, below.y + below.height + 0.19, f"+ {rest}", _SMALL, color=QUIET)
        elif top:
            lettering.text(
                below.x + 0.02, below.y + below.height + 0.19, f"children: {rest}", _SMALL, color=QUIET
            )


def _box(lettering: Lettering, placed: _Placed, scale: EdgeScale | None, top: bool) -> None:
    concept, x, y, width = placed.concept, placed.x, placed.y, placed.width
    corner, w, h = (x + _ROUND, y + _ROUND), width - 2 * _ROUND, placed.height - 2 * _ROUND
    face = SOFT if top else PAPER
    style = f"round,pad={_ROUND}"
    patch = FancyBboxPatch(corner, w, h, boxstyle=style, facecolor=face, edgecolor=LINE, linewidth=1.1)
    lettering.axes.add_patch(patch)
    inner, left = width - 2 * _PAD, x + _PAD
    words = lettering.joined(concept.words, inner, _WORDS)
    lettering.text(left, y + _PAD + 0.13, words, _WORDS, weight="bold")
    lettering.text(left, y + _PAD + 0.31, _fact(concept), _SMALL, color=QUIET)
    line = y + _PAD + 0.5
    if scale is not None and concept.value is not None:
        _number(lettering, scale, concept.value, left, line, inner)
        line += _LINE + 0.02
    for context in concept.contexts[: _TOP_CONTEXTS if top else 1]:
        _context(lettering, context, left, line, inner)
        line += _LINE


def _number(lettering: Lettering, scale: EdgeScale, value: float, x: float, y: float, width: float) -> None:
    """A line with the value of an edge and what chance gives, in figures and on a scale."""
    text = f"{_SHORT.get(scale.name, scale.title)} {value:.2f}, chance {scale.middle:.2f}".replace("-", "−")
    lettering.text(x, y, lettering.cut(text, width - _SCALE - 0.1, _SMALL), _SMALL)
    left, middle = x + width - _SCALE, y - 0.045
    places = {name: left + _SCALE * scale.share(v) for name, v in (
        ("low", scale.low), ("middle", scale.middle), ("high", scale.high), ("value", value)
    )}  # fmt: skip
    axes = lettering.axes
    axes.plot(
        (left, left + _SCALE), (middle, middle), color=RULE, linewidth=1, solid_capstyle="round", zorder=2
    )
    axes.plot(
        (places["low"], places["high"]),
        (middle, middle),
        color=NULL,
        linewidth=5,
        solid_capstyle="butt",
        zorder=3,
    )
    axes.plot((places["middle"],) * 2, (middle - 0.045, middle + 0.045), color=QUIET, linewidth=1.2, zorder=4)
    axes.plot((places["value"],), (middle,), "o", color=SIGNAL, markersize=4.6, markeredgecolor=PAPER,
              markeredgewidth=0.6, zorder=5)  # fmt: skip


def _fact(concept: Concept) -> str:
    card = concept.card
    fact = f"feature {card.id} · on {percent(card.density)} of tokens"
    if concept.p_child is not None:
        fact = f"feature {card.id} · on {percent(concept.p_child)} of its parent's tokens"
    if concept.rest and not concept.children and card.children:
        fact += f" · {len(card.children)} {'child' if len(card.children) == 1 else 'children'}"
    return fact


def _context(lettering: Lettering, context: ContextCard, x: float, y: float, width: float) -> None:
    """A line of text around the active token, which is marked."""
    columns = lettering.columns(width, _MONO)
    passage = context.passage
    token = fit(passage.token, columns // 2, "start")
    left = min(cell_len(passage.before), max((columns - cell_len(token)) * 3 // 5, 0))
    before = fit(passage.before, left, "end", cut=not passage.starts)
    after = fit(passage.after, columns - cell_len(before) - cell_len(token), "start", cut=not passage.ends)
    lettering.marked(x, y, before, token, after, _MONO)


def _caption(explorer: Explorer, top: Concept, scale: EdgeScale | None, nulls: str) -> str:
    parts = [
        "In bold, a feature's label or the tokens that tell it from its parent; "
        "in the texts, the active token is marked."
    ]
    if top.children:
        parts.append("The thicker a line, the more of its parent's tokens a child fires on.")
    if scale is not None:
        parts.append(
            f"{scale.title} (orange): {scale.description[0].lower()}{scale.description[1:]} Gray: 90% of the pairs "
            "whose parents were shuffled among features of like density; the stroke is their median."
        )
    return " ".join([*parts, nulls]).strip()
