"""Drawing the activations under a parent in their principal plane, as in Figure 9 of the Tree SAE paper."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ...errors import InputError, command
from ...text.passages import fit, read_passage
from ..queries.explorer import Explorer
from .concepts import concept_tree
from .lettering import INK, PAPER, QUIET, Lettering

# Okabe and Ito's colors, which color-blind readers can tell apart; the markers can be told apart in print.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D00", "#333333")
_MARKERS = ("o", "^", "s", "D", "v", "P", "X", "*")
_NONE, _GRID = "#b8bec6", "#e6e9ed"
_MARGIN, _AXIS, _PLOT, _GAP, _SIDE, _HEAD = 0.28, 0.3, 5.2, 0.45, 3.6, 0.78
_SMALL, _WORDS = 8.0, 9.5
_LINE = 0.165
#: Children that get a color of their own; the others are gray, like the parent alone.
_MOST = len(_COLORS)


def draw_geometry(explorer: Explorer, feature: int, nulls: str) -> Figure:
    """The figure of a parent's geometry. Raises InputError if the index has none for it."""
    geometry, forest = explorer.index.geometry, explorer.forest
    top = concept_tree(explorer, feature, None, forest.d_sae, 1)
    place = (geometry.parent == feature).nonzero().flatten()
    if not len(place):
        again = command("index", "RUN", "--tokens", "N")
        raise InputError(
            f"feature {feature}: no geometry in the index; expected a parent with two children or more that fired "
            f"(`{again}` indexes more text)"
        )
    g = int(place[0])
    points = geometry.points[g].double().numpy()
    known = np.isfinite(points).all(1)
    points, child = points[known], geometry.child[g].numpy()[known]
    rows = geometry.row[g].numpy()[known]
    children = forest.children(feature)
    counts = {i: int((child == i).sum()) for i in range(len(children))}
    live = sorted(
        (i for i in counts if explorer.index.n_fired[children[i]] > 0), key=lambda i: (-counts[i], i)
    )
    shown = live[:_MOST]
    words = {child.card.id: child.words for child in top.children}

    lettering = Lettering()
    width = _MARGIN + _AXIS + _PLOT + _GAP + _SIDE + _MARGIN
    caption = lettering.wrapped(_caption(len(points), nulls), width - 2 * _MARGIN, _SMALL)
    bottom = _HEAD + _PLOT + 0.55
    height = bottom + 0.12 + _LINE * len(caption) + _MARGIN
    figure = Figure(figsize=(width, height), facecolor=PAPER)
    page = figure.add_axes((0, 0, 1, 1))
    page.set(xlim=(0, width), ylim=(height, 0))
    page.set_axis_off()
    lettering.axes = page
    title = f"Feature {feature}: {' · '.join(top.words)}"
    lettering.text(_MARGIN, 0.4, lettering.cut(title, width - 2 * _MARGIN, 13, "bold"), 13, weight="bold")
    overview = explorer.overview()
    about = f"{overview.model}, {overview.site} · {len(points)} of the activations on which the feature fires"
    lettering.text(_MARGIN, 0.61, lettering.cut(about, width - 2 * _MARGIN, _SMALL), _SMALL, color=QUIET)

    plot = figure.add_axes(
        ((_MARGIN + _AXIS) / width, 1 - (_HEAD + _PLOT) / height, _PLOT / width, _PLOT / height)
    )
    directions = {i: geometry.direction[children[i]].double().numpy() for i in shown}
    _plane(plot, points, child, shown, directions)
    first, second = geometry.explained[g].tolist()
    plot.set_xlabel(f"principal component 1 ({first:.0%} of the variance)", fontsize=_SMALL, color=QUIET)
    plot.set_ylabel(f"principal component 2 ({second:.0%})", fontsize=_SMALL, color=QUIET)

    x, y = _MARGIN + _AXIS + _PLOT + _GAP, _HEAD + 0.12
    for place_, i in enumerate(shown):
        example = rows[child == i]
        _entry(lettering, explorer, x, y, place_, children[i], words.get(children[i], ()), counts[i],
               int(example[0]) if len(example) else None)  # fmt: skip
        y += 0.56
    rest = int(sum(counts[i] for i in counts if i not in shown))
    alone = int((child == -1).sum())
    for n, what in ((alone, "only the parent fires"), (rest, "other children")):
        if n:
            page.plot((x + 0.06,), (y - 0.04,), "o", color=_NONE, markersize=5)
            lettering.text(x + 0.22, y, f"{n} points: {what}", _SMALL, color=QUIET)
            y += 0.24
    for i, line in enumerate(caption):
        lettering.text(_MARGIN, bottom + 0.2 + _LINE * i, line, _SMALL, color=QUIET)
    return figure


def _plane(
    axes: Axes, points: np.ndarray, child: np.ndarray, shown: list[int], directions: dict[int, np.ndarray]
) -> None:
    """The points, and below those of children the encoder directions."""
    extent = 1.12 * float(np.abs(points).max(initial=1e-9))
    axes.set(xlim=(-extent, extent), ylim=(-extent, extent))
    axes.set_aspect("equal")
    axes.set_facecolor(PAPER)
    axes.grid(color=_GRID, linewidth=0.7)
    axes.axhline(0, color="#c9ced5", linewidth=0.8, zorder=1)
    axes.axvline(0, color="#c9ced5", linewidth=0.8, zorder=1)
    for side in axes.spines.values():
        side.set_visible(False)
    axes.tick_params(length=0, labelsize=7, labelcolor=QUIET)
    others = points[~np.isin(child, shown)]
    axes.scatter(others[:, 0], others[:, 1], s=16, color=_NONE, alpha=0.55, linewidths=0, zorder=2)
    for place, i in enumerate(shown):
        own = points[child == i]
        axes.scatter(
            own[:, 0],
            own[:, 1],
            s=30,
            color=_COLORS[place],
            marker=_MARKERS[place],
            edgecolors=PAPER,
            alpha=0.6,
            linewidths=0.4,
            zorder=3,
        )
    longest = max((float(np.hypot(*d)) for d in directions.values() if np.isfinite(d).all()), default=0.0)
    for place, i in enumerate(shown):
        if longest == 0 or not np.isfinite(directions[i]).all():
            continue
        end = tuple(0.82 * extent / longest * directions[i])
        for color, line, order in ((PAPER, 4.6, 2.4), (_COLORS[place], 2.0, 2.5)):
            arrow = {"arrowstyle": "-|>", "color": color, "linewidth": line, "shrinkA": 0, "shrinkB": 0}
            axes.annotate("", end, (0, 0), zorder=order, arrowprops=arrow)


def _entry(
    lettering: Lettering, explorer: Explorer, x: float, y: float, place: int, child: int, words: tuple[str, ...],
    n: int, row: int | None,
) -> None:  # fmt: skip
    """A child in the legend: its look, its words, its number, and the text at one of its points."""
    lettering.axes.plot((x + 0.06,), (y - 0.045,), _MARKERS[place], color=_COLORS[place], markersize=7)
    wide = _SIDE - 0.22
    lettering.text(x + 0.22, y, lettering.joined(words, wide, _WORDS), _WORDS, weight="bold", color=INK)
    fact = f"feature {child} · {n} point{'' if n == 1 else 's'}"
    if row is not None:
        passage = read_passage(explorer.index.tokens, explorer.tokenizer, row)
        text = f"{fit(passage.before, 16, 'end', cut=not passage.starts)}[{passage.token}]"
        fact += f" · {text}{fit(passage.after, 14, 'start', cut=not passage.ends)}"
    lettering.text(x + 0.22, y + 0.19, lettering.cut(fact, wide, _SMALL), _SMALL, color=QUIET)


def _caption(n: int, nulls: str) -> str:
    return (
        f"Activations on which the feature fires (a sample of {n}), projected onto their first two principal "
        "components; the origin is their mean. Color and marker: the child that fires most strongly. Arrows: the "
        "children's encoder directions in this plane, on a common scale. This is no evidence of a hierarchy by itself: "
        "points are labeled by the encoder that the arrows show, so most arrows point at their own points in an "
        f"untrained SAE too. {nulls}"
    ).strip()
