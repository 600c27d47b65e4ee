"""Figures 13, 14 and 16 of the Tree SAE paper, and two that are not in the paper.

The latter show precision against the number of pairs, and hierarchy scores with and without the tree's parents.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from .figures import bars, dots, having, measured, paper_dots, paper_title, rows_of, short
from .load import VARIANTS, Entry, Value
from .load import rank_curve as rank_curve_of
from .nulls import KINDS, NullKind, mark_nulls, nulls_caption
from .panel import NULLS, Panel
from .papers import reported
from .seed_groups import SeedGroup
from .style import height_beside, new_figure, note

_MOST_PANELS = 8
_MOST_INSIDE = 6  # more lines than these leave no room for a legend among them
_LINESTYLES = ("-", "--", ":", "-.")


def rank_curve(groups: Sequence[SeedGroup]) -> Panel | str:
    """Figure 13: cosine between the parent and the child's direction, by the child's rank."""
    found: list[tuple[SeedGroup, np.ndarray, int, Value]] = []
    for group in groups:
        rows = []
        for entry in _measured(group):
            with entry.showing("hierarchy"):
                rows.append(rank_curve_of(entry.records["hierarchy"]))
        if rows := [row for row in rows if len(row[0])]:
            length = min(len(curve) for curve, _ in rows)
            curve = np.mean([curve[:length] for curve, _ in rows], axis=0)
            parents = min(n for _, n in rows)
            found.append((group, curve, parents, group.value("hierarchy", "rank_trend")))
    if not found:
        return "not measured in any run"
    figure = new_figure(max(3.4, height_beside(len(found))))
    axes = figure.subplots()
    for (group, curve, parents, _), style in zip(found, _styles([s for s, *_ in found]), strict=True):
        look: dict[str, Any] = {"color": group.system.color, "marker": group.system.marker, "ls": style}
        label = short(f"{_name(group, groups)} ({parents} parents)", 70)
        axes.plot(range(1, len(curve) + 1), curve, ms=4, label=label, **look)
    axes.set(xlabel="rank of the child by coverage", ylabel="cosine of parent and child's direction")
    axes.set_xticks([1, *range(5, max(len(c) for _, c, *_ in found) + 1, 5)])
    if len(found) > _MOST_INSIDE:
        figure.legend(loc="outside right upper", fontsize=8, handlelength=3)
    else:
        axes.legend(fontsize=8, handlelength=3)
    trends = ", ".join(
        f"{_name(s, groups)} {trend.value:+.2f}" for s, *_, trend in found if trend.value is not None
    )
    caption = (
        "The paper's Figure 13 shows the mean cosine between a parent and the probes of its first to twentieth child "
        "by coverage, for 100 parents in TopK SAEs: the higher the coverage, the higher the cosine. Here the same for "
        f"all parents with enough children, {measured(v for *_, v in found)}, without intervals. Rank correlation: "
        f"{trends or 'none'}. The paper gives no numbers. Nulls have no such curve, so it does not tell a learned "
        "hierarchy from an arbitrary one."
    )
    return Panel("figure-13", "Parents lie near children they cover (Figure 13)", caption, figure)


def dead_over_training(groups: Sequence[SeedGroup]) -> Panel | str:
    """Figure 14: the rate of dead features by layer, with and without reallocation."""
    entries = [e for s in groups if s.system.gated for e in s.entries]
    entries = entries or [e for s in groups for e in s.entries]
    entries = [e for e in entries if e.dead_rates is not None]
    if not entries:
        return "no run has its training log"
    shown, columns = entries[:_MOST_PANELS], min(len(entries), 2)
    n_rows = -(-len(shown) // columns)
    figure = new_figure(0.5 + 2.6 * n_rows)
    grid = figure.subplots(n_rows, columns, squeeze=False, sharey=True)
    for axes, entry in zip(grid.flat, shown, strict=False):
        _dead(axes, entry)
    grid[0, 0].set_ylim(bottom=0)  # once all are drawn: the axis is shared
    for axes in grid.flat[len(shown) :]:
        axes.set_visible(False)
    for axes in grid[:, 0]:
        axes.set_ylabel("dead features")
    left_out = f" {len(entries) - len(shown)} more SAEs are not drawn." if len(entries) > len(shown) else ""
    caption = (
        "The paper's Figure 14 shows a Tree SAE with 4 layers and L0 32 over 97,657 steps: with reallocation, "
        "almost no feature is dead in any layer after step 40,000; without it, 8% of layer 3 are. Here: the fraction "
        "of each layer's features that were counted as dead during training, from the runs' logs. Thin vertical lines "
        f"mark steps at which dead children were moved to other parents. Counts have no interval.{left_out}"
    )
    return Panel("figure-14", "Dead features over training (Figure 14)", caption, figure)


def _dead(axes: Axes, entry: Entry) -> None:
    rates = entry.dead_rates
    if rates is None:
        return
    for step in rates.reallocations:
        axes.axvline(step, color="#D0D0D0", lw=0.7, zorder=0)
    shades = matplotlib.colormaps["viridis"](np.linspace(0.0, 0.85, len(rates.rate)))
    for layer, (rate, shade) in enumerate(zip(rates.rate, shades, strict=True)):
        axes.plot(rates.steps, rate, color=shade, ls=_LINESTYLES[layer % 4], label=f"layer {layer}")
    axes.set_title(short(f"{entry.system.title}: {entry.label}", 58), fontsize=8.5)
    axes.set_xlabel("step", fontsize=8.5, labelpad=1)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.grid(visible=False, axis="x")
    axes.legend(fontsize=8, loc="upper right")


def variants(groups: Sequence[SeedGroup]) -> Panel | str:
    """Figure 16: the hierarchy score of Tree SAEs by each variant of MCS."""
    found = [
        (s, [s.value("hierarchy", f"variant_{key}") for key, _ in VARIANTS])
        for s in groups
        if s.system.learns_forest
    ]
    found = [(s, values) for s, values in found if any(v.value is not None for v in values)]
    if not found:
        return "no hierarchy record of a Tree SAE or HSAE compares the variants of MCS"
    height = 0.75 + 0.25 * max(len(found), 2)
    figure = new_figure(height * len(VARIANTS) + 0.2)
    grid = figure.subplots(len(VARIANTS), 2, width_ratios=(3, 2), sharex="col", squeeze=False)
    for i, ((ours, theirs), (key, name)) in enumerate(zip(grid, VARIANTS, strict=True)):
        rows = [(s, values[i]) for s, values in found if values[i].value is not None]
        ours.set_title(f"{name.capitalize()} MCS", fontsize=9.5)
        if rows:
            dots(ours, rows)
            mark_nulls(ours, rows_of(rows), "hierarchy", f"variant_{key}")
        else:
            note(ours, "not measured")
        papers_own = reported("hierarchy", f"variant_{key}")
        paper_title(theirs, papers_own, "24,576 features")
        paper_dots(theirs, papers_own)
    values = [v for _, row in found for v in row if v.value is not None]
    nulls = nulls_caption(
        ("hierarchy", f"variant_{key}", [s for s, row in found if row[i].value is not None])
        for i, (key, _) in enumerate(VARIANTS)
    )
    caption = (
        "The paper's Figure 16 shows the hierarchy score of Tree SAEs with four variants of MCS: binary is best, "
        f"scaled correlation worst. Left: measured here, {measured(values)}. {bars(values)}. Right, in gray: the "
        "paper's numbers for another model (one mark for each L0 of 32, 48, 64 and 80), on a separate axis. "
        f"{f'{nulls} ' if nulls else ''}{NULLS}"
    )
    return Panel("figure-16", "Variants of MCS (Figure 16)", caption, figure)


def precision(groups: Sequence[SeedGroup]) -> Panel | str:
    """Not in the paper: the fraction of hierarchical pairs among the n best pairs of each SAE."""
    found = [(s, *one) for s in groups for one in _curves(s)]
    if not found:
        return "not measured in any run"
    figure = new_figure(max(3.6, height_beside(len(found))))
    axes = figure.subplots()
    fills = _fills(groups)
    for group, way, curve, nulls in found:
        name = short(f"{_name(group, groups)}, {'by its tree' if way == 'tree' else 'by MCS'}", 70)
        axes.plot(
            curve[:, 0], curve[:, 1], color=group.system.color, ls="-" if way == "tree" else "--",
            marker=group.system.marker, mfc=fills[groups.index(group)], markevery=max(len(curve) // 6, 1), ms=4.5,
            label=name,
        )  # fmt: skip
        for kind, null in nulls.items():
            if np.array_equal(null, curve):  # shuffled parents change nothing
                continue
            axes.plot(
                null[:, 0], null[:, 1], color=group.system.color, ls="-" if way == "tree" else "--", lw=0.7,
                alpha=0.6, marker=kind.marker, markevery=max(len(null) // 6, 1), ms=4.5, zorder=1.5,
            )  # fmt: skip
    if max(curve[-1, 0] for *_, curve, _ in found) > 20 * min(curve[0, 0] for *_, curve, _ in found):
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.xaxis.set_minor_formatter("")
    axes.set(xlabel="number of pairs, best first", ylabel="fraction that are hierarchical")
    axes.set_ylim(bottom=0)
    figure.legend(loc="outside right upper", fontsize=8, handlelength=3.5)
    names = ("tree_unconditional", "mcs_unconditional")
    values = [v for s, *_ in found for name in names if (v := s.value("hierarchy", name)).value is not None]
    on = f", {measured(values)}" if values else ""
    caption = (
        "Not in the paper, which counts as many pairs of each SAE as its tree has children, or 5 per parent. Here "
        "the same number of pairs is counted for every SAE, the best first: solid lines by its own tree, dashed lines "
        f"by MCS. A higher line means more hierarchical pairs among the same number{on}. No intervals. For a Tree "
        f"SAE, both count nearly the same pairs. {_nulls_of_curves(found)} {NULLS}"
    )
    return Panel("precision", "Precision against the number of pairs (not in the paper)", caption, figure)


def _curves(group: SeedGroup) -> Iterator[tuple[str, np.ndarray, dict[NullKind, np.ndarray]]]:
    """For "tree" and "mcs", the curve of the first seed that has one, `[n, 2]` number of pairs and precision; and its
    nulls."""
    for way in ("tree", "mcs") if group.system.learns_forest else ("mcs",):
        for entry in _measured(group):
            with entry.showing("hierarchy"):
                detail = entry.records["hierarchy"].detail
                curve = _curve(detail, way)
                of_nulls = detail.get("of_nulls") or {}
                found = {k: _curve(of_nulls.get(k.suffix.removeprefix("_")) or {}, way) for k in KINDS}
            if len(curve):
                yield way, curve, {kind: null for kind, null in found.items() if len(null)}
                break


def _curve(detail: dict[str, Any], way: str) -> np.ndarray:
    curve = (detail.get("curve") or {}).get(way) or []
    return np.array(curve, dtype=float).reshape(len(curve), 2)


def _nulls_of_curves(found: Sequence[tuple[SeedGroup, str, np.ndarray, dict[NullKind, np.ndarray]]]) -> str:
    """What the thin lines are, and whose are missing."""
    kinds = [kind.legend for kind in KINDS if any(kind in nulls for *_, nulls in found)]
    without = [
        f"{s.label} ({'by its tree' if way == 'tree' else 'by MCS'})" for s, way, _, n in found if not n
    ]
    told = [f"Thin lines: the same {', '.join(kinds)}."] if kinds else []
    told += [f"Null not measured: {', '.join(without)}."] if without else []
    return " ".join(told)


def unconditional(groups: Sequence[SeedGroup]) -> Panel | str:
    """Not in the paper: how restricting parents to those with children in the tree affects the hierarchy score."""
    names = (
        ("tree", "By the tree's edges"),
        ("tree_unconditional", "By the tree's edges, any parents"),
        ("mcs", "By MCS, the paper's protocol"),
        ("mcs_unconditional", "By MCS, any parents"),
    )
    rows = [(name, title, found) for name, title in names if (found := having(groups, "hierarchy", name))]
    if not any(title.endswith("any parents") for _, title, _ in rows):
        return "not measured in any run"
    heights = [0.65 + 0.25 * len(found) for *_, found in rows]
    figure = new_figure(sum(heights) + 0.4)
    grid = figure.subplots(len(rows), 1, squeeze=False, height_ratios=heights, sharex=True)
    for axes, (name, title, found) in zip(grid.flat, rows, strict=True):
        axes.set_title(title, fontsize=9.5)
        dots(axes, found)
        mark_nulls(axes, rows_of(found), "hierarchy", name)
    nulls = nulls_caption(("hierarchy", name, [s for s, _ in found]) for name, _, found in rows)
    values = [v for *_, found in rows for _, v in found]
    caption = (
        "Not in the paper. For a Tree SAE, the paper's protocol counts only parents with children in the tree and, by "
        "MCS, only as many pairs as the tree has; for flat SAEs it counts all sampled parents. This favors Tree SAEs, "
        f"so both ways are shown here, {measured(values)}. {bars(values)}. {f'{nulls} ' if nulls else ''}{NULLS}"
    )
    return Panel("unconditional", "With and without the tree's parents (not in the paper)", caption, figure)


def _measured(group: SeedGroup) -> list[Entry]:
    """One entry for each seed; only the first if the seeds were measured differently."""
    found = group.measured("hierarchy")
    return found[:1] if group.differs("hierarchy") else found


def _name(group: SeedGroup, groups: Sequence[SeedGroup]) -> str:
    """The name of the system, or of the SAE if several have this system."""
    same = [s for s in groups if s.system == group.system]
    return group.system.title if len(same) == 1 else group.label


def _styles(groups: Sequence[SeedGroup]) -> list[str]:
    """Line styles that differ between SAEs of the same system, which have the same color."""
    return [_LINESTYLES[before % 4] for before in _before(groups)]


def _fills(groups: Sequence[SeedGroup]) -> list[str]:
    """Fills of marks that differ between SAEs of the same system, where line styles say something else."""
    return [
        "white" if before % 2 else group.system.color
        for group, before in zip(groups, _before(groups), strict=True)
    ]


def _before(groups: Sequence[SeedGroup]) -> list[int]:
    """How many SAEs of its system come before each."""
    systems = [s.system for s in groups]
    return [systems[:i].count(s) for i, s in enumerate(systems)]


FIGURES: tuple[tuple[str, Callable[[Sequence[SeedGroup]], Panel | str]], ...] = (
    ("Parents lie near children they cover (Figure 13)", rank_curve),
    ("Dead features over training (Figure 14)", dead_over_training),
    ("Variants of MCS (Figure 16)", variants),
    ("Precision against the number of pairs (not in the paper)", precision),
    ("With and without the tree's parents (not in the paper)", unconditional),
)
