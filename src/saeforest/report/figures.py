"""Figures 3 to 8 of the Tree SAE paper, for the runs of a report.

The paper's numbers are shown in a separate panel, in hollow gray marks or thin lines and under their model's name: they
come from another model, other text and a larger dictionary, and never share an axis with what was measured here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from .load import Value
from .nulls import mark_nulls, nulls_caption
from .panel import NULLS, Panel
from .papers import Along, Reported, reported
from .seed_groups import SeedGroup
from .style import GRAY, new_figure, note
from .system import System

_INTERVAL = "Bars are 95% intervals"
_TITLE = 48  # characters that leave room for the paper's title beside them
_SEEDS = "small dots are single seeds, large ones their mean"


class Metric(NamedTuple):
    """A value of a measure as a row of a figure."""

    measure: str
    value: str
    title: str
    better: str = ""


_PATHOLOGIES = (
    Metric("absorption", "splitting", "Feature splitting", "lower is better"),
    Metric("absorption", "full_absorption", "Full absorption", "lower is better"),
    Metric("autointerp", "autointerp_score", "AutoInterp", "higher is better"),
    Metric("composition", "mean", "Composition", "lower is better"),
)
_HIERARCHY = (
    Metric("hierarchy", "tree", "Hierarchy, by tree structure", "higher is better"),
    Metric("hierarchy", "mcs", "Hierarchy, by MCS", "higher is better"),
)
_FIDELITY = (
    Metric("reconstruction", "fve_tree", "Variance explained", "the paper's formula; higher is better"),
    Metric("cross_entropy", "spliced", "Downstream loss", "nats; lower is better"),
)


class Spec(NamedTuple):
    """A figure of the paper. paper: what it shows there, for the caption."""

    key: str
    title: str
    metrics: tuple[Metric, ...]
    by: Along
    """Quantity on the paper's horizontal axis."""
    paper: str


SPECS = (
    Spec("figure-3", "Splitting, absorption, AutoInterp, composition (Figure 3)", _PATHOLOGIES, "l0",
         "The paper's Figure 3 shows less splitting and absorption in Tree and Matryoshka SAEs than in TopK, and more "
         "in Matching Pursuit."),
    Spec("figure-4", "Hierarchy (Figure 4)", _HIERARCHY, "l0",
         "The paper's Figure 4 shows the fraction of parent-child pairs in which both are among the 5 features nearest "
         "to the direction of the child's concept: far higher in Tree SAEs than in others, by their tree and by MCS. "
         f"{NULLS}"),
    Spec("figure-5", "Hierarchy by size (Figure 5)", _HIERARCHY, "size",
         "The paper's Figure 5 shows the same for 6,144, 24,576 and 49,152 features at L0 8, 32 and 64. "
         f"{NULLS}"),
    Spec("figure-6", "Reconstruction (Figure 6)", _FIDELITY, "l0",
         "In the paper's Figure 6, Matching Pursuit is best, and Tree SAEs are clearly better than TopK and "
         "Matryoshka."),
    Spec("figure-7", "Reconstruction by size (Figure 7)", _FIDELITY, "size",
         "The paper's Figure 7 shows the same for three sizes of Tree and Matryoshka SAEs."),
    Spec("figure-8", "Splitting, absorption, AutoInterp, composition by size (Figure 8)", _PATHOLOGIES, "size",
         "The paper's Figure 8 shows Tree and Matryoshka SAEs of three sizes."),
)  # fmt: skip


def compared(spec: Spec, groups: Sequence[SeedGroup]) -> Panel | str:
    """A figure with a row for each metric: measured here on the left, the paper's numbers on the right.

    Returns the reason, as a string, if there is nothing to show.
    """
    rows = [(metric, having(groups, metric.measure, metric.value)) for metric in spec.metrics]
    missing = [metric.title for metric, found in rows if not found]
    rows = [(metric, found) for metric, found in rows if found]
    if not rows:
        return "not measured in any run"
    as_lines = _varies((s for _, found in rows for s, _ in found), spec.by)
    if spec.by == "size" and not as_lines:
        return "no system was trained in more than one size"
    heights = [2.3 if as_lines else 0.75 + 0.25 * max(len(found), 4) for _, found in rows]
    figure = new_figure(sum(heights) + (0.6 if as_lines else 0.25))
    grid = figure.subplots(len(rows), 2, squeeze=False, height_ratios=heights, width_ratios=(3, 2))
    for (ours, theirs), (metric, found) in zip(grid, rows, strict=True):
        title, better = metric.title, f"({metric.better})"
        gap = " " if len(title) + len(better) < _TITLE else "\n"
        ours.set_title(title + gap + better, fontsize=9.5)
        papers_own = reported(metric.measure, metric.value, spec.by)
        paper_title(theirs, papers_own, "24,576 features" if spec.by == "l0" else "6k to 49k features")
        if as_lines:
            lines(ours, found, spec.by, metric)
            _paper_lines(theirs, papers_own, spec.by)
        else:
            dots(ours, found)
            mark_nulls(ours, rows_of(found), metric.measure, metric.value)
            paper_dots(theirs, papers_own)
    if as_lines:
        legend(figure, [s.system for _, found in rows for s, _ in found])
    told = f"Not measured: {', '.join(missing)}. " if missing else ""
    shown = "in gray" if not as_lines else "thin lines with hollow marks"
    right = (
        "one mark for each L0 of 32, 48, 64 and 80" if spec.by == "l0" else "6,144, 24,576, 49,152 features"
    )
    average = ""
    if as_lines:
        other = (
            "of the size that has the most SAEs"
            if spec.by == "l0"
            else "with L0 nearest to the largest one's"
        )
        average = f" The marks at the right end are means. A line connects the SAEs {other}."
    nulls = nulls_caption(
        ((m.measure, m.value, [s for s, _ in found]) for m, found in rows),
        "In the color of the SAE, pale" if as_lines else "Gray",
    )
    nulls = nulls and f"{nulls} "
    caption = (
        f"{spec.paper} Left: measured here, {measured(v for _, found in rows for _, v in found)}. "
        f"{bars(v for _, found in rows for _, v in found)}.{average} {nulls}{told}"
        f"Right, {shown}: the paper's numbers for another model ({right}), on a separate axis."
    )
    return Panel(spec.key, spec.title, caption, figure)


def having(groups: Iterable[SeedGroup], measure: str, value: str) -> list[tuple[SeedGroup, Value]]:
    """The SAEs that have the value. For scores of a forest's edges, only SAEs that learned their forest."""
    of_forest = measure == "hierarchy" and "tree" in value
    able = [s for s in groups if s.system.learns_forest or not of_forest]
    return [(s, found) for s in able if (found := s.value(measure, value)).value is not None]


def paper_title(axes: Axes, theirs: Reported | None, size: str) -> None:
    """Title a panel of the paper's numbers with the paper's model and size."""
    model = theirs.paper.model if theirs else "no numbers"
    axes.set_title(f"paper: {model}, {size}", loc="right", fontsize=8.5, color=GRAY, fontweight="normal")


def measured(values: Iterable[Value]) -> str:
    """The number of measured tokens, for a caption."""
    tokens = sorted({v.tokens for v in values})
    if not tokens:
        return "on no tokens"
    return f"on {tokens[0]:,} tokens" if len(tokens) == 1 else f"on {tokens[0]:,} to {tokens[-1]:,} tokens"


def bars(values: Iterable[Value]) -> str:
    """What bars and dots mean, for a caption."""
    return f"{_INTERVAL}; {_SEEDS}" if any(v.each for v in values) else _INTERVAL


def _varies(groups: Iterable[SeedGroup], by: str) -> bool:
    """Whether some system was trained with two values of L0 in one size, or (by "size") in two sizes.

    SAEs with one aim for L0 are measured at some percent around it: only more than a tenth makes two values.
    """
    seen: dict[tuple[System, int], set[float]] = {}
    for s in groups:
        line, place = ((s.system, s.d_sae), s.l0) if by == "l0" else ((s.system, 0), s.d_sae)
        seen.setdefault(line, set()).add(place)
    apart = 1.1 if by == "l0" else 1.0
    return any(max(places) > apart * min(places) for places in seen.values())


def error(value: Value) -> list[list[float]] | None:
    """The interval as matplotlib expects it: distances below and above the value."""
    if value.interval is None or value.value is None:
        return None
    low, high = value.interval
    return [[max(value.value - low, 0.0)], [max(high - value.value, 0.0)]]


def dots(axes: Axes, points: Sequence[tuple[SeedGroup, Value]]) -> None:
    """Draw a row for each SAE, from the top: its value with its interval."""
    for row, (group, value) in enumerate(points):
        look: dict[str, Any] = {"color": group.system.color, "marker": group.system.marker}
        if value.value is None:
            continue
        if value.each:
            axes.plot(value.each, [row] * len(value.each), ls="", ms=3, alpha=0.55, **look)
        axes.errorbar([value.value], [row], xerr=error(value), capsize=2.5, elinewidth=1.3, **look)
    axes.set_yticks(range(len(points)), _row_names([s for s, _ in points]))
    axes.set_ylim(len(points) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")
    axes.margins(x=0.08)


def rows_of(points: Sequence[tuple[SeedGroup, Value]]) -> list[tuple[SeedGroup, float]]:
    """The SAEs with their rows in `dots`."""
    return [(group, float(row)) for row, (group, _) in enumerate(points)]


def _row_names(groups: Sequence[SeedGroup]) -> list[str]:
    """Row names: the system, with the SAE's label, which is cut last, if a system has several rows."""
    systems = [s.system for s in groups]
    return [
        s.system.title if systems.count(s.system) == 1 else _with_label(s.system.title, s.label)
        for s in groups
    ]


def _with_label(title: str, label: str, limit: int = 42) -> str:
    room = limit - len(label) - 2
    return short(label, limit) if room < 8 else f"{short(title, room)}: {label}"


def short(text: str, limit: int = 42) -> str:
    """The text, cut to `limit` characters with an ellipsis."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def paper_dots(axes: Axes, theirs: Reported | None) -> None:
    """Draw the paper's numbers, a row for each system."""
    if theirs is None:
        note(axes, "no numbers")
        return
    keys = sorted(theirs.series, key=lambda key: System(*key).rank)
    for row, key in enumerate(keys):
        axes.plot(
            theirs.series[key], [row] * len(theirs.series[key]), ls="", marker="o", mfc="none", mec=GRAY, ms=5
        )
    axes.set_yticks(range(len(keys)), [System(*key).title for key in keys], color=GRAY, fontsize=8)
    axes.set_ylim(len(keys) - 0.4, -0.6)
    axes.tick_params(axis="x", labelcolor=GRAY, labelsize=8)
    axes.grid(visible=False, axis="y")
    axes.margins(x=0.08)


def lines(
    axes: Axes, points: Sequence[tuple[SeedGroup, Value]], by: str, metric: Metric | None = None
) -> None:
    """Draw a line for each system along L0 or size; the mark after its end is the mean of its points.

    metric: the value that is drawn, whose nulls are marked where it has some.
    """
    of: dict[System, list[tuple[float, Value]]] = {}
    for group, value in one_line(points, by):
        place = group.l0 if by == "l0" else group.d_sae
        of.setdefault(group.system, []).append((place, value))
        if metric is not None:
            pale = to_hex((*to_rgb(group.system.color), 0.5), keep_alpha=True)
            mark_nulls(axes, [(group, place)], metric.measure, metric.value, upright=True, color=pale)
    places = sorted({x for line in of.values() for x, _ in line})
    end = places[-1] * 1.25 if by == "size" else places[-1] + 0.12 * max(places[-1] - places[0], 1.0)
    for system, line in of.items():
        line.sort(key=lambda point: point[0])
        x, y = [p for p, _ in line], [v.value for _, v in line if v.value is not None]
        look: dict[str, Any] = {"color": system.color, "marker": system.marker}
        axes.plot(x, y, label=system.title, **look)
        for place, value in line:
            if value.value is None:
                continue
            axes.errorbar([place], [value.value], yerr=error(value), capsize=2.5, elinewidth=1.1, ls="",
                          ecolor=system.color)  # fmt: skip
            axes.plot([place] * len(value.each), value.each, ls="", ms=2.5, alpha=0.55, **look)
        if len(y) > 1:
            axes.plot([end], [sum(y) / len(y)], ls="", ms=7, mec="white", **look)
    _along(axes, by, places, end)


def one_line(points: Sequence[tuple[SeedGroup, Value]], by: str) -> list[tuple[SeedGroup, Value]]:
    """The points of each system that form a line, differing only in L0 or only in size.

    Along L0: those of the size with the most points, the smallest if several have as many. Along size: for each size,
    the one with L0 nearest to that of the system's largest SAE.
    """
    chosen: list[tuple[SeedGroup, Value]] = []
    for system in dict.fromkeys(s.system for s, _ in points):
        mine = [(s, v) for s, v in points if s.system == system]
        sizes = sorted({s.d_sae for s, _ in mine})
        of_size = {size: [(s, v) for s, v in mine if s.d_sae == size] for size in sizes}
        if by == "l0":
            chosen += max(of_size.values(), key=len)
        else:
            l0 = min(s.l0 for s, _ in of_size[sizes[-1]])
            chosen += [min(same, key=lambda point: abs(point[0].l0 - l0)) for same in of_size.values()]
    return chosen


def _along(axes: Axes, by: str, places: Sequence[float], mean_at: float | None = None) -> None:
    if by == "size":
        axes.set_xscale("log")
    ticks = {f"{place:,.0f}": place for place in places} | ({} if mean_at is None else {"mean": mean_at})
    axes.set_xticks(list(ticks.values()), list(ticks), fontsize=8)
    axes.set_xticks([], minor=True)
    axes.set_xlabel("L0" if by == "l0" else "features", fontsize=8.5, labelpad=1)


def _paper_lines(axes: Axes, theirs: Reported | None, by: Along) -> None:
    if theirs is None:
        note(axes, "no numbers")
        return
    paper = theirs.paper
    places = paper.l0 if by == "l0" else paper.sizes
    for key, numbers in theirs.series.items():
        system = System(*key)
        x = paper.measured_l0.get(system.kind, places) if by == "l0" else places
        axes.plot(
            x, numbers, color=system.color, marker=system.marker, mfc="white", lw=0.8, ms=4.5, alpha=0.8
        )
    _along(axes, by, places)
    axes.tick_params(labelcolor=GRAY, labelsize=8)


def legend(figure: Figure, systems: Sequence[System]) -> None:
    """Add a legend of the systems above a figure."""
    handles = [Line2D([], [], color=s.color, marker=s.marker, label=s.title) for s in dict.fromkeys(systems)]
    columns = 4 if max((len(s.title) for s in systems), default=0) < 25 else 3  # what is wider is cut off
    figure.legend(
        handles=handles,
        loc="outside upper center",
        ncols=min(len(handles), columns),
        fontsize=8.5,
        handlelength=1.2,
        columnspacing=1.2,
    )
