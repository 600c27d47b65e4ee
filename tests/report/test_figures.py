"""The figures that compare SAEs: what is drawn is what was measured."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text

from report_cases import (
    TOPK,
    TREE,
    groups_in,
    hierarchy,
    record,
    sparsity,
)
from saeforest.report import curves, figures
from saeforest.report.gallery import compare_figures
from saeforest.report.load import load_runs
from saeforest.report.seed_groups import seed_groups
from saeforest.report.style import styled
from saeforest.report.system import System


@pytest.fixture(autouse=True)
def in_style() -> Iterator[None]:
    with styled():
        yield


def axes_of(figure: Figure, title: str) -> Axes:
    return next(axes for axes in figure.axes if axes.get_title(loc="left").startswith(title))


def drawn_x(axes: Axes, n: int) -> list[float]:
    """Of the rows of a dot plot the values, from the marks of the error bars."""
    return [float(container[0].get_xdata()[0]) for container in axes.containers[:n]]  # pyright: ignore


def test_dots_stand_where_the_values_are(run: Path) -> None:
    groups = seed_groups(load_runs([run]))
    panel = figures.compared(figures.SPECS[1], groups)
    assert not isinstance(panel, str)
    by_mcs = axes_of(panel.figure, "Hierarchy, by MCS")
    assert [label.get_text() for label in by_mcs.get_yticklabels()] == [
        "Tree SAE, 2 layers",
        "TopK",
        "Matching Pursuit",
    ]
    assert drawn_x(by_mcs, 3) == [0.5, 0.1, 0.01]
    segment = by_mcs.containers[0][2][0].get_segments()[0]  # pyright: ignore
    assert segment[:, 0] == pytest.approx([0.45, 0.55])
    by_tree = axes_of(panel.figure, "Hierarchy, by tree")
    assert len(by_tree.containers) == 1
    theirs = panel.figure.axes[3]
    assert theirs.get_title(loc="right") == "paper: GPT-2 small, 24,576 features"
    rows = {
        label.get_text(): line for label, line in zip(theirs.get_yticklabels(), theirs.lines, strict=True)
    }
    assert np.asarray(rows["Tree SAE, 4 layers"].get_xdata()).tolist() == [0.63, 0.63, 0.59, 0.57]
    assert rows["TopK"].get_markerfacecolor() == "none"
    assert "1,000 tokens" in panel.caption


def test_several_l0_make_lines_with_means_and_seeds(tmp_path: Path) -> None:
    saes = {
        f"topk-{k}-seed-{seed}": (
            replace(TOPK, k_per_layer=(k,)),
            seed,
            [sparsity(float(k)), record("composition", {"mean": 0.1 * k + 0.02 * seed})],
        )
        for k in (2, 4)
        for seed in (0, 1)
    }
    panel = figures.compared(figures.SPECS[0], groups_in(tmp_path / "run", saes))
    assert not isinstance(panel, str)
    axes = axes_of(panel.figure, "Composition")
    line = next(line for line in axes.lines if line.get_label() == "TopK")
    assert np.asarray(line.get_xdata()).tolist() == [2.0, 4.0]
    assert np.asarray(line.get_ydata()).tolist() == pytest.approx([0.21, 0.41])
    seeds = [list(map(float, other.get_ydata())) for other in axes.lines if len(other.get_ydata()) == 2]  # pyright: ignore
    assert [0.2, pytest.approx(0.22)] in seeds
    mean = axes.lines[-1]
    assert mean.get_xdata()[0] > 4  # pyright: ignore
    assert mean.get_ydata()[0] == pytest.approx(0.31)  # pyright: ignore
    assert "Not measured: Feature splitting, Full absorption, AutoInterp." in panel.caption


def test_sizes_that_differ_in_l0_too_are_dots(tmp_path: Path) -> None:
    """A line along L0 holds one size: with one L0 of each, all but one would be lost."""
    saes = {
        f"topk-{size}": (
            replace(TOPK, layer_sizes=(size,)),
            0,
            [sparsity(l0), record("composition", {"mean": 0.1 * l0})],
        )
        for size, l0 in ((16, 4.0), (32, 8.0))
    }
    panel = figures.compared(figures.SPECS[0], groups_in(tmp_path / "run", saes))
    assert not isinstance(panel, str)
    assert drawn_x(axes_of(panel.figure, "Composition"), 2) == pytest.approx([0.4, 0.8])


def test_l0_that_was_meant_to_be_the_same_makes_no_line(tmp_path: Path) -> None:
    """Two SAEs of one system and one k, measured at 126.9 and 127.9: a row for each, and no axis of L0."""
    saes = {
        f"topk-{l0}": (
            replace(TOPK, activation_threshold=threshold),
            0,
            [sparsity(l0), record("composition", {"mean": l0 / 1000})],
        )
        for l0, threshold in ((126.9, 0.001), (127.9, 0.002))
    }
    panel = figures.compared(figures.SPECS[0], groups_in(tmp_path / "run", saes))
    assert not isinstance(panel, str)
    assert drawn_x(axes_of(panel.figure, "Composition"), 2) == pytest.approx([0.1269, 0.1279])


def test_a_legend_of_many_long_names_is_within_the_figure(tmp_path: Path) -> None:
    figure = Figure(figsize=(7.2, 4), layout="constrained")
    systems = [
        System(kind, layers)
        for kind in ("tree-fixed", "tree-from-data", "hsae-baseline")
        for layers in (2, 3, 4)
    ]
    figures.legend(figure, systems)
    figure.savefig(tmp_path / "figure.png")
    box = figure.legends[0].get_window_extent()
    assert box.x0 >= 0
    assert box.x1 <= figure.bbox.x1


def test_a_row_of_a_long_name_keeps_what_tells_it_apart(tmp_path: Path) -> None:
    saes = {
        name: (
            replace(TREE, activation_threshold=threshold),
            0,
            [sparsity(4.0), record("composition", {"mean": 0.1})],
        )
        for name, threshold in (("a-tree-that-earns-its-edges", 0.001), ("a-tree-that-does-not", 0.002))
    }
    panel = figures.compared(figures.SPECS[0], groups_in(tmp_path / "run", saes))
    assert not isinstance(panel, str)
    rows = [tick.get_text() for tick in axes_of(panel.figure, "Composition").get_yticklabels()]
    assert sorted(row.rpartition(": ")[2] for row in rows) == sorted(saes)
    assert max(map(len, rows)) <= 42


def test_a_title_leaves_room_for_the_papers(tmp_path: Path) -> None:
    saes = {"topk": (TOPK, 0, [sparsity(4.0), record("reconstruction", {"fve_tree": 0.9})])}
    spec = next(spec for spec in figures.SPECS if spec.key == "figure-6")
    panel = figures.compared(spec, groups_in(tmp_path / "run", saes))
    assert not isinstance(panel, str)
    panel.figure.savefig(tmp_path / "figure.png")
    ends, starts = (
        {text.get_text(): text.get_window_extent() for text in axes.findobj(Text)}
        for axes in panel.figure.axes[:2]
    )
    end = next(box.x1 for text, box in ends.items() if text.startswith("Variance explained"))
    start = next(box.x0 for text, box in starts.items() if text.startswith("paper:"))
    assert end < start


def test_lines_by_size_take_one_l0_of_each(tmp_path: Path) -> None:
    big = replace(TREE, layer_sizes=(8, 24))
    saes = {
        "small": (TREE, 0, [sparsity(4.0), hierarchy(0.5, 0.4)]),
        "small-dense": (replace(TREE, k_per_layer=(4, 4)), 0, [sparsity(8.0), hierarchy(0.9, 0.4)]),
        "big": (big, 0, [sparsity(4.0), hierarchy(0.7, 0.4)]),
    }
    groups = groups_in(tmp_path / "run", saes)
    panel = figures.compared(figures.SPECS[2], groups)
    assert not isinstance(panel, str)
    line = next(
        line
        for line in axes_of(panel.figure, "Hierarchy, by tree").lines
        if line.get_label() == "Tree SAE, 2 layers"
    )
    assert np.asarray(line.get_xdata()).tolist() == [16, 32]
    assert np.asarray(line.get_ydata()).tolist() == [0.5, 0.7]
    one_size = [group for group in groups if group.d_sae == 16]
    assert figures.compared(figures.SPECS[2], one_size) == "no system was trained in more than one size"


def test_the_curves_are_the_records(run: Path) -> None:
    groups = seed_groups(load_runs([run]))
    rank = curves.rank_curve(groups)
    assert not isinstance(rank, str)
    assert np.asarray(rank.figure.axes[0].lines[0].get_ydata()).tolist() == pytest.approx(
        np.linspace(0.5, 0.1, 20)
    )
    precision = curves.precision(groups)
    assert not isinstance(precision, str)
    lines = {str(line.get_label()): line for line in precision.figure.axes[0].lines}
    assert list(lines) == ["Tree SAE, 2 layers, by its tree", "Tree SAE, 2 layers, by MCS", "TopK, by MCS"]
    assert np.asarray(lines["Tree SAE, 2 layers, by its tree"].get_xdata()).tolist() == [1, 10, 40]
    assert np.asarray(lines["TopK, by MCS"].get_ydata()).tolist() == [1.0, 0.5, 0.3]
    variants = curves.variants(groups)
    assert not isinstance(variants, str)
    assert drawn_x(axes_of(variants.figure, "Correlation MCS"), 1) == [0.3]
    assert not axes_of(variants.figure, "Scaled binary").containers


def test_dead_features_are_read_from_the_log(run: Path) -> None:
    groups = seed_groups(load_runs([run]))
    panel = curves.dead_over_training(groups)
    assert not isinstance(panel, str)
    (axes,) = panel.figure.axes
    lines = {str(line.get_label()): line for line in axes.lines}
    assert np.asarray(lines["layer 0"].get_ydata()).tolist() == [0.0, 0.25, 0.0]
    assert np.asarray(lines["layer 1"].get_ydata()).tolist() == [0.0, 0.5, 0.25]
    moved = [line.get_xdata()[0] for line in axes.lines if str(line.get_label()).startswith("_")]  # pyright: ignore
    assert moved == [5, 15]


def test_panels_of_dead_features_share_an_axis_that_holds_them_all(run: Path) -> None:
    small, large = seed_groups(load_runs([run])), seed_groups(load_runs([run]))
    rates = small[0].entries[0].dead_rates
    assert rates is not None
    tenth = rates._replace(rate=[[rate / 10 for rate in layer] for layer in rates.rate])
    small[0].entries[0].__dict__["dead_rates"] = tenth
    panel = curves.dead_over_training([*small, *large])
    assert not isinstance(panel, str)
    assert all(axes.get_ylim()[1] >= 0.5 for axes in panel.figure.axes)


def test_figures_without_data_say_so(tmp_path: Path) -> None:
    groups = groups_in(tmp_path / "run", {"topk": (TOPK, 0, [sparsity(4.0)])})
    gallery = compare_figures(groups)
    assert gallery.panels == []
    assert len(gallery.skipped) == len(figures.SPECS) + len(curves.FIGURES)
    assert all(": n" in line or ": the" in line for line in gallery.skipped)
