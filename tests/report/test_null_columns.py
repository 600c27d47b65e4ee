"""Values about a hierarchy stand beside their nulls, in tables and figures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from report_cases import TOPK, TREE, groups_in, make_run, record, sparsity
from saeforest.measures import Record
from saeforest.report import compare, curves, figures
from saeforest.report.load import load_runs
from saeforest.report.nulls import KINDS, in_order, without_nulls
from saeforest.report.page import build_page
from saeforest.report.style import NULL_GRAY, styled


def edges() -> Record:
    values = {
        "ungated": (0.75, 0.02), "ungated_shuffled": (0.125, 0.01), "ungated_untrained": "no seed is known",
        "lift": (2.5, 0.1),
    }  # fmt: skip
    return record("coverage", values)


def with_nulls(seed: int) -> Record:
    values = {
        "tree": (0.75 + seed / 8, 0.05), "mcs": (0.5, 0.05), "mcs_unconditional": (0.25, 0.05),
        "tree_shuffled": (0.625 + seed / 8, 0.05), "tree_untrained": (0.875, 0.05),
    }  # fmt: skip
    return record("hierarchy", values)


def test_a_value_has_its_nulls_below_it(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", {"tree": (TREE, 0, [sparsity(4.0), edges()])})
    page, _ = build_page(load_runs([run]), [run], tmp_path / "out")
    (block,) = (table for table in page.summary if table.title.startswith("Parent and child"))
    (row,) = block.rows
    ungated, lift = (
        row[block.head.index(title)] for title in ("coverage without the gate ↑", "lift, log2 ↑")
    )
    assert (ungated.text, ungated.small) == ("0.7500", "0.7300 to 0.7700")
    assert [null.text for null in ungated.nulls] == ["shuffled 0.1250", "untrained –"]
    assert ungated.nulls[0].note is None
    assert page.footnotes[(ungated.nulls[1].note or 0) - 1] == "no seed is known"
    assert [null.text for null in lift.nulls] == ["null not measured"]
    note = page.footnotes[(lift.nulls[0].note or 0) - 1]
    assert note == "null not measured: coverage was measured without its nulls"
    (reconstruction,) = (table for table in page.summary if table.title.startswith("Reconstruction"))
    assert not any(cell.nulls for cell in reconstruction.rows[0])  # they say nothing about a hierarchy
    (details,) = (table for table in page.details[0].tables if table.title == "coverage")
    assert [row[0].text for row in details.rows] == [
        "ungated",
        "ungated_shuffled",
        "ungated_untrained",
        "lift",
    ]
    assert details.note.endswith("Measured without nulls, so they show no hierarchy: lift.")


def test_the_share_of_copies_has_its_nulls_below_it(tmp_path: Path) -> None:
    shares = {"copies": (0.25, 0.02), "copies_shuffled": (0.0625, 0.01), "copies_untrained": (0.125, 0.01)}
    run = make_run(tmp_path / "run", {"tree": (TREE, 0, [sparsity(4.0), record("edges", shares)])})
    page, _ = build_page(load_runs([run]), [run], tmp_path / "out")
    (block,) = (table for table in page.summary if table.title.startswith("Parent and child"))
    ((*_, copies),) = block.rows
    assert block.head[-1] == "children that copy their parent ↓"
    assert (copies.text, [null.text for null in copies.nulls]) == (
        "0.2500",
        ["shuffled 0.0625", "untrained 0.1250"],
    )


def test_the_mean_over_seeds_has_the_mean_of_the_nulls(tmp_path: Path) -> None:
    saes = {f"tree-seed-{i}": (TREE, i, [sparsity(4.0), with_nulls(i)]) for i in (0, 1)}
    run = make_run(tmp_path / "run", saes)
    page, _ = build_page(load_runs([run]), [run], tmp_path / "out")
    (block,) = (table for table in page.summary if table.title.startswith("Hierarchy"))
    mean = block.rows[-1][block.head.index("by its forest ↑")]
    assert mean.text == "0.8125"
    assert [null.text for null in mean.nulls] == ["shuffled 0.6875", "untrained 0.8750"]


@pytest.mark.usefixtures("undrawn")
def test_both_files_show_the_nulls(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", {"tree": (TREE, 0, [sparsity(4.0), edges(), with_nulls(0)])})
    compare([run], tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert '<small class="null">shuffled 0.1250</small>' in page
    assert '<small class="null">untrained –<sup><a href="#note-' in page
    text = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert "0.7500 (0.7300 to 0.7700)<br>shuffled 0.1250<br>untrained – <sup>" in text


def test_figures_mark_the_nulls(tmp_path: Path) -> None:
    groups = groups_in(
        tmp_path / "run",
        {
            "tree": (TREE, 0, [sparsity(4.0), with_nulls(0)]),
            "topk": (TOPK, 0, [sparsity(4.0), record("hierarchy", {"mcs": (0.1, 0.05)})]),
        },
    )
    with styled():
        panel = figures.compared(figures.SPECS[1], groups)
    assert not isinstance(panel, str)
    by_tree = panel.figure.axes[0]
    marks = {
        str(line.get_marker()): (line.get_xydata()[0].tolist(), line.get_color())  # pyright: ignore
        for line in by_tree.lines
        if line.get_marker() in {kind.marker for kind in KINDS}
    }
    assert marks == {"x": ([0.625, 0.0], NULL_GRAY), "+": ([0.875, 0.0], NULL_GRAY)}
    assert "Gray marks: the same value × with parents shuffled, + of the untrained SAE." in panel.caption
    assert "Null not measured: tree (mcs), topk (mcs)." in panel.caption


def test_variants_of_mcs_and_curves_of_precision_are_drawn_with_their_nulls(tmp_path: Path) -> None:
    values = {
        "variant_mcs_binary": (0.75, 0.05), "variant_mcs_binary_shuffled": (0.5, 0.05),
        "variant_mcs_binary_untrained": (0.625, 0.05), "variant_mcs_correlation": (0.25, 0.05),
        "variant_mcs_correlation_shuffled": (0.125, 0.05), "variant_mcs_correlation_untrained": "no seed is known",
    }  # fmt: skip
    curve = {"tree": [[1, 1.0], [8, 0.75]], "mcs": [[1, 1.0], [8, 0.5]]}
    shuffled = {"tree": [[1, 0.0], [8, 0.25]], "mcs": curve["mcs"]}
    of_nulls = {"shuffled": {"curve": shuffled}, "untrained": {}}
    groups = groups_in(
        tmp_path / "run",
        {
            "tree": (TREE, 0, [sparsity(4.0), record("hierarchy", values, curve=curve, of_nulls=of_nulls)]),
            "topk": (TOPK, 0, [sparsity(4.0), record("hierarchy", {"mcs": (0.1, 0.05)}, curve=curve)]),
        },
    )
    with styled():
        variants, precision = curves.variants(groups), curves.precision(groups)
    assert not isinstance(variants, str)
    assert not isinstance(precision, str)
    marks = [
        (str(line.get_marker()), line.get_xdata()[0])  # pyright: ignore
        for axes in variants.figure.axes
        for line in axes.lines
        if line.get_color() == NULL_GRAY
    ]
    assert marks == [("x", 0.5), ("+", 0.625), ("x", 0.125)]
    assert "Gray marks: the same value × with parents shuffled, + of the untrained SAE." in variants.caption
    assert "Without one of its nulls or both: tree (variant_mcs_correlation)." in variants.caption
    (axes, *_) = precision.figure.axes
    thin = [line for line in axes.lines if line.get_linewidth() < 1]
    assert [np.asarray(line.get_xydata()).tolist() for line in thin] == [shuffled["tree"]]
    assert "Thin lines: the same × with parents shuffled." in precision.caption
    assert "Null not measured: topk (by MCS)." in precision.caption


def test_names_in_order() -> None:
    names = ["mcs", "tree", "pairs", "mcs_untrained", "tree_auc", "tree_shuffled"]
    assert in_order("hierarchy", names) == [
        "mcs", "mcs_untrained", "tree", "tree_auc", "tree_shuffled", "pairs",
    ]  # fmt: skip
    assert in_order("unknown", ["a_shuffled", "a"]) == ["a_shuffled", "a"]
    assert without_nulls("hierarchy", names) == ""
    assert without_nulls("sparsity", ["l0"]) == ""
