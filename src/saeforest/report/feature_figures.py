"""Figures of individual features, as in the Tree SAE paper: Figures 1, 9, 10 to 12, and 15."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from ..evaluation.null_values import SHUFFLED, UNTRAINED
from ..measures import landscape
from ..measures.record import Record
from .nulls import KINDS, NOT_MEASURED
from .panel import Panel

# Okabe and Ito's colors, which color-blind readers can tell apart; the markers can be told apart in print.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#B5A900")
_MARKERS = ("o", "^", "s", "D", "v", "P", "X", "*")
_CHILD, _PARENT, _BARS, _OTHERS = "#0072B2", "#D55E00", "#B8B8B8", "#9A9A9A"
_WIDTH = 9.0
_FAMILIES = 6
_GRID = 401


def geometry_panels(record: Record) -> list[Panel]:
    """The figures of a record of "geometry": families beneath their parents, and siblings among unrelated features."""
    panels = []
    families = [family for family in record.detail["families"] if "children" in family]
    if families:
        panels.append(_families(record, families))
    if "points" in record.detail["umap"]:
        panels.append(_umap(record))
    return panels


def _families(record: Record, families: Sequence[Mapping[str, Any]]) -> Panel:
    shown = families[:_FAMILIES]
    columns = 2 if len(shown) == 4 else min(len(shown), 3)
    rows = -(-len(shown) // columns)
    figure = Figure(figsize=(_WIDTH, (4.3 if columns > 1 else 6) * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis, family in zip(axes.flat, shown, strict=False):
        _family(axis, family)
    for axis in axes.flat[len(shown) :]:
        axis.set_visible(False)
    value, chance = record.value, record.detail["chance"]
    config = record.settings["config"]
    more = (
        f" The first {len(shown)} of {len(families)} families are shown."
        if len(shown) < len(families)
        else ""
    )
    measured = (
        "No encoder direction could be compared with a cluster. "
        if value["agreement"] is None or value["toward"] is None
        else f"Here {value['agreement']:.0%} of the encoder directions are nearest, in this plane, to their own "
        f"child's cluster ({_on_nulls(record, 'agreement', '.0%')}), with a mean cosine of {value['toward']:.2f} "
        f"({_on_nulls(record, 'toward', '.2f')}). For random directions it would be {chance:.0%}; but the clusters "
        "are labeled by the same encoder, so an untrained SAE agrees far more often, and is the right comparison. "
    )
    caption = (
        "Activations on which any child of the parent fires, projected onto their first two principal components. "
        "Color and marker show the child that fires most strongly, crosses the means, and arrows the children's "
        "encoder directions (with the same scale within a family, starting at the mean of its points). In the paper's "
        "Figure 9, the directions of two of three families point toward their children's clusters. "
        f"{measured}Activations are in the SAE's normalized units, at most {config['max_points']} per child; "
        + (
            "the families were named by the user."
            if config["parents"]
            else "the families were chosen for least overlap, so they are favorable examples; the paper does not say "
            "how it chose its families."
        )
        + more
    )
    return Panel("geometry-families", "Children beneath their parent", caption, figure)


def _on_nulls(record: Record, name: str, form: str) -> str:
    """A value on each of its nulls, in words. form: how a number is written."""
    if not any(name + kind.suffix in record.value for kind in KINDS):
        return NOT_MEASURED
    of = {SHUFFLED: "with parents shuffled", UNTRAINED: "of the untrained SAE"}
    nulls = [(of[kind.suffix], record.value.get(name + kind.suffix)) for kind in KINDS]
    return ", ".join(
        f"{words} {'undefined' if null is None else format(null, form)}" for words, null in nulls
    )


def _family(axis: Axes, family: Mapping[str, Any]) -> None:
    points = np.array(family["points"])
    extent = np.abs(points[:, :2]).max()
    longest = max(np.hypot(*child["encoder"]) for child in family["children"])
    # The longest arrow reaches most of the way to the outermost point.
    scale = 0.8 * extent / longest if longest > 0 else 1.0
    for i, child in enumerate(family["children"]):
        own = points[points[:, 2] == i]
        color, marker = _look(i)
        cosine = "" if child["cosine"] is None else f"  cos {child['cosine']:.2f}".replace("-", "−")
        axis.scatter(
            own[:, 0], own[:, 1], s=14, alpha=0.45, color=color, marker=marker, linewidths=0,
            label=f"{child['child']}{cosine}",
        )  # fmt: skip
    for i, child in enumerate(family["children"]):
        own_color, _ = _look(i)
        if child["centroid"] is not None:
            axis.plot(*child["centroid"], "x", color="white", markersize=9, markeredgewidth=4, zorder=3)
            axis.plot(*child["centroid"], "x", color=own_color, markersize=8, markeredgewidth=2, zorder=3)
        x, y = (scale * part for part in child["encoder"])
        for color, width in (("white", 5.0), (own_color, 2.2)):
            axis.annotate(
                "", (x, y), (0, 0), zorder=4,
                arrowprops={"arrowstyle": "-|>", "color": color, "linewidth": width, "shrinkA": 0, "shrinkB": 0},
            )  # fmt: skip
    first, second = family["explained"]
    axis.set_title(f"parent {family['parent']}", fontsize=11)
    axis.set_xlabel(f"component 1 ({first:.0%})")
    axis.set_ylabel(f"component 2 ({second:.0%})")
    axis.set_aspect("equal", adjustable="datalim")
    legend = axis.legend(
        loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2, fontsize=8, frameon=False,
        title="child, cosine with its cluster", title_fontsize=8, handletextpad=0.2, columnspacing=1.0, markerscale=1.8,
    )  # fmt: skip
    for handle in legend.legend_handles:
        if handle is not None:
            handle.set_alpha(1)


def _look(i: int) -> tuple[str, str]:
    """Color and marker of the i-th child. When colors repeat, each comes with another marker."""
    turn, place = divmod(i, len(_COLORS))
    return _COLORS[place], _MARKERS[(place + turn) % len(_MARKERS)]


def _umap(record: Record) -> Panel:
    umap = record.detail["umap"]
    points = np.array(umap["points"])
    figure = Figure(figsize=(_WIDTH, 5.2), layout="constrained")
    axis = figure.subplots()
    others = points[points[:, 2] == -1]
    if len(others):
        axis.scatter(
            *others[:, :2].T, s=22, color=_OTHERS, marker="x", linewidths=1, label="unrelated features"
        )
    for i, parent in enumerate(umap["parents"]):
        own = points[points[:, 2] == i]
        color, marker = _look(i)
        axis.scatter(
            own[:, 0], own[:, 1], s=34, color=color, marker=marker,
            edgecolors="white", linewidths=0.5, label=f"children of {parent}",
        )  # fmt: skip
    axis.set_xticks([])
    axis.set_yticks([])
    axis.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=9, frameon=False)
    value = record.value
    measured = (
        ""
        if value["sibling_cosine"] is None or value["unrelated_cosine"] is None
        else "Measured in the decoder itself, on all families: the mean cosine between siblings is "
        f"{value['sibling_cosine']:.3f} ({_on_nulls(record, 'sibling_cosine', '.3f')}), between unrelated features "
        f"{value['unrelated_cosine']:.3f}. "
    )
    caption = (
        "Decoder rows of the children of randomly chosen parents, and of the same number of features of the same "
        "layers from other families, projected by UMAP (cosine distance), as in the HSAE paper. "
        f"{measured}Distances between distant clusters have no meaning in UMAP."
    )
    return Panel("geometry-siblings", "Siblings among unrelated features", caption, figure)


def probe_panels(record: Record) -> list[Panel]:
    """The figures of a record of "reconstruction_score": the children's concepts of each parent shown in detail."""
    return [
        _probes(focus)
        for focus in record.detail.get("focus", [])
        if focus.get("children") and "why" not in focus
    ]


def _probes(focus: Mapping[str, Any]) -> Panel:
    children = focus["children"]
    columns = min(len(children), 3)
    rows = -(-len(children) // columns)
    figure = Figure(figsize=(_WIDTH, 2.4 * rows + 0.5), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    for axis, child in zip(axes.flat, children, strict=False):
        _probe(axis, child)
    for axis in axes.flat[len(children) :]:
        axis.set_visible(False)
    axes[0, 0].set_xlim(*_cosines(children))
    for axis in axes[:, 0]:
        axis.set_ylabel("features")
    for column in range(columns):
        lowest = max(row for row in range(rows) if row * columns + column < len(children))
        axes[lowest, column].set_xlabel("cosine with the child's probe")
        axes[lowest, column].tick_params(labelbottom=True)
    caption = (
        f"Feature {focus['parent']}, which fires on {focus['density']:.2%} of the tokens, as the parent of features "
        "that fire where it fires. For each child: the cosines between all features' decoder vectors and the direction "
        "that a probe finds for the child's concept (gray), that of the child itself (solid line) and of the parent "
        "(dashed line), with their ranks among all features. A parent that shares the concept ranks high; one that "
        "merely fires there does not, whatever its coverage. These correspond to Figures 1 and 10 to 12 of the Tree "
        "SAE paper, for this SAE and this text."
    )
    key, title = f"probes-{focus['parent']}", f"Probes for the children of {focus['parent']}"
    return Panel(key, title, caption, figure)


def _cosines(children: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """The range of cosines that occur."""
    found = [c for child in children for c in (child["cos_child"], child["cos_parent"]) if c is not None]
    for child in children:
        edges, filled = child["histogram"]["edges"], np.flatnonzero(child["histogram"]["counts"])
        found += [edges[i + side] for i in filled for side in (0, 1)]
    return min(found) - 0.05, max(found) + 0.05


def _probe(axis: Axes, child: Mapping[str, Any]) -> None:
    axis.set_title(
        f"{child['child']}   n {child['n']:,}   coverage {child['coverage']:.2f}", fontsize=8.5, pad=16
    )
    axis.set_yscale("log")
    axis.yaxis.set_major_formatter("{x:,.0f}")
    axis.stairs(child["histogram"]["counts"], child["histogram"]["edges"], fill=True, color=_BARS)
    axis.set_ylim(bottom=0.7)
    for role, color, dash, place in (("child", _CHILD, "-", 0.0), ("parent", _PARENT, "--", 1.0)):
        cosine, rank = child[f"cos_{role}"], child[f"rank_{role}"]
        text = f"{role}: undefined"
        if cosine is not None:
            axis.axvline(cosine, color=color, linestyle=dash, linewidth=2)
            text = f"{role} {cosine:.2f}, rank {rank:,}".replace("-", "−")
        axis.text(
            place, 1.03, text, color=color, fontsize=7.5, transform=axis.transAxes,
            ha="left" if place == 0 else "right",
        )  # fmt: skip


def landscape_panels(k: float = 0.05) -> list[Panel]:
    """The minimum loss of a parent and a child by their cosines with a concept (App. H). k: their mutual cosine."""
    figure = Figure(figsize=(_WIDTH, 4.4), layout="constrained")
    s = np.linspace(0, 1, _GRID)
    parent, child = np.meshgrid(s, s)
    impossible = ~landscape.possible(parent, child, k)
    losses = {
        "multi-level loss (Eq. 12)": landscape.l1_converged(parent, child, k),
        "ordinary loss (Eq. 13)": landscape.l2_converged(parent, child, k),
    }
    for axis, (title, loss) in zip(figure.subplots(1, 2), losses.items(), strict=True):
        loss = np.where(impossible, np.nan, loss)
        mesh = axis.pcolormesh(s, s, loss, cmap="viridis", shading="nearest", rasterized=True, vmin=0)
        lines = axis.contour(s, s, loss, levels=np.arange(0.2, 2, 0.2), colors="white", linewidths=0.8)
        for text in axis.clabel(lines, fontsize=8, fmt="%.1f"):
            text.set_path_effects([withStroke(linewidth=2, foreground="black")])
        axis.contourf(s, s, impossible, levels=[0.5, 1.5], colors="none", hatches=["///"])
        axis.set_facecolor("#e8e8e8")
        axis.set_aspect("equal")
        axis.set_title(title)
        axis.set_xlabel("$S_p$: cosine of parent and concept", parse_math=True)
        axis.set_ylabel("$S_c$: cosine of child and concept", parse_math=True)
        figure.colorbar(mesh, ax=axis, label="minimum loss", shrink=0.75)
    caption = (
        "The minimum loss on one concept that a parent and a child can reach if their decoder vectors have cosine "
        f"{k:g}, by the cosine of each with the concept: Figure 15 of the Tree SAE paper, from its Eq. 12 and 13. "
        "Left: with a Tree SAE's multi-level loss, a child alone (upper left) stays at a loss of 1; reducing it takes "
        "the parent. Right: with an ordinary loss, the child alone already reaches 0, with a parent unrelated to the "
        "concept. Hatched: no three unit vectors have these cosines; the paper plots the formulas there too, and notes "
        "that the losses become negative."
    )
    return [
        Panel("loss-landscape", "Why the multi-level loss ties a parent to its children", caption, figure)
    ]
