"""Figures of single features: what is drawn is what the records hold."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection, QuadMesh
from matplotlib.colors import to_hex
from matplotlib.patches import StepPatch
from matplotlib.text import Annotation

from saeforest.measures.record import Record
from saeforest.report.feature_figures import geometry_panels, landscape_panels, probe_panels
from saeforest.report.panel import Panel
from saeforest.report.style import styled


def family(parent: int, n_children: int, centroid: list[float] | None = None) -> dict[str, Any]:
    rng = np.random.default_rng(parent)
    children = [
        {
            "child": 10 * parent + i,
            "n": 20,
            "cosine": -0.5 if centroid is None else None,
            "agrees": True if centroid is None else None,
            "encoder": rng.normal(size=2).tolist(),
            "centroid": rng.normal(size=2).tolist() if centroid is None else None,
        }
        for i in range(n_children)
    ]
    points = [[*rng.normal(size=2).tolist(), i % n_children] for i in range(60)]
    return {"parent": parent, "explained": [0.4, 0.2], "children": children, "points": points}


def geometry_record(
    families: list[dict[str, Any]], umap: dict[str, Any], agreement: float | None = 0.75
) -> Record:
    names: tuple[str, ...] = ("agreement", "toward", "explained_2", "sibling_cosine", "unrelated_cosine")
    value: dict[str, float | None] = dict.fromkeys(names, agreement)
    null = {} if agreement is not None else dict.fromkeys(names, "nothing there")
    detail = {
        "families": families,
        "umap": umap,
        "chance": 0.25 if agreement is not None else None,
        "null": null,
    }
    groups = {"config": {"parents": [], "max_points": 300}}
    return Record("geometry", value, dict.fromkeys(names), "fraction", 100, groups, detail)


def test_captions_state_the_nulls() -> None:
    families, umap = [family(1, 3)], {"points": [[0.0, 1.0, 0], [1.0, 0.0, -1]], "parents": [1]}
    bare = geometry_record(families, umap)
    for panel in geometry_panels(bare):
        assert "null not measured" in panel.caption
    nulls = {"agreement_shuffled": 0.5, "agreement_untrained": 0.875, "toward_untrained": 0.25}
    nulls |= {"toward_shuffled": None, "sibling_cosine_shuffled": 0.125, "sibling_cosine_untrained": 0.0625}
    value = bare.value | nulls
    detail = bare.detail | {"null": {"toward_shuffled": "no edges"}}
    below, beside = geometry_panels(replace(bare, value=value, interval=dict.fromkeys(value), detail=detail))
    said = "own child's cluster (with parents shuffled 50%, of the untrained SAE 88%), with a mean cosine of 0.75"
    assert said in below.caption
    assert "(with parents shuffled undefined, of the untrained SAE 0.25)" in below.caption
    assert (
        "between siblings is 0.750 (with parents shuffled 0.125, of the untrained SAE 0.062)"
        in beside.caption
    )


def child(number: int, cos_child: float | None, cos_parent: float) -> dict[str, Any]:
    counts, edges = np.histogram(np.random.default_rng(number).normal(0, 0.1, 500), bins=40, range=(-1, 1))
    return {
        "child": number,
        "n": 1234,
        "coverage": 0.98,
        "cos_child": cos_child,
        "cos_parent": cos_parent,
        "rank_child": None if cos_child is None else 1,
        "rank_parent": 2345,
        "s_res": None,
        "histogram": {"edges": edges.tolist(), "counts": counts.tolist()},
    }


def probe_record(focus: list[dict[str, Any]]) -> Record:
    return Record("reconstruction_score", {}, {}, "cosine", 100, {}, {"focus": focus})


def visible(panel: Panel) -> list[Axes]:
    return [axis for axis in panel.figure.axes if axis.get_visible()]


def scattered(axis: Axes) -> dict[str, np.ndarray]:
    """The points of each label."""
    return {
        str(c.get_label()): np.asarray(c.get_offsets())
        for c in axis.collections
        if isinstance(c, PathCollection)
    }


def fits(panel: Panel) -> None:
    """It can be drawn, without a warning, nine inches wide; and no text leaves the figure."""
    figure = panel.figure
    assert figure.get_figwidth() == 9
    figure.savefig(io.BytesIO(), format="png", dpi=50)
    figure.draw_without_rendering()  # boxes at the figure's own resolution
    whole = figure.bbox
    for axis in visible(panel):
        box = axis.get_tightbbox()
        assert box is not None
        assert box.x0 >= -1 and box.y0 >= -1 and box.x1 <= whole.x1 + 1 and box.y1 <= whole.y1 + 1  # noqa: PT018


def test_families_are_drawn_as_recorded() -> None:
    families = [family(1, 3), {"parent": 2, "why": "has no children"}, family(3, 8)]
    (panel,) = geometry_panels(geometry_record(families, {"why": "not installed"}))
    assert panel.key == "geometry-families"
    for axis, own in zip(visible(panel), (families[0], families[2]), strict=True):
        assert axis.get_title() == f"parent {own['parent']}"
        points = np.array(own["points"])
        drawn = scattered(axis)
        arrows = [text for text in axis.texts if isinstance(text, Annotation)]
        colors = set()
        for i, entry in enumerate(own["children"]):
            label = f"{entry['child']}  cos −0.50"
            assert np.array_equal(drawn[label], points[points[:, 2] == i, :2])
            # Of each child one broad white arrow and one in its color above it.
            tip = np.array(arrows[2 * i + 1].xy)
            encoder = np.array(entry["encoder"])
            assert tip @ encoder == pytest.approx(np.linalg.norm(tip) * np.linalg.norm(encoder))
            crosses = [line for line in axis.lines if np.allclose(line.get_xydata(), entry["centroid"])]
            colors.add(to_hex(crosses[-1].get_color()))
        assert len(colors) == len(own["children"])
    assert "75%" in panel.caption
    assert (
        "For random directions it would be 25%; but the clusters are labeled by the same encoder"
        in panel.caption
    )
    fits(panel)


@pytest.mark.parametrize("n", [1, 4, 7])
def test_any_number_of_families_fits(n: int) -> None:
    (panel,) = geometry_panels(geometry_record([family(i, 3) for i in range(n)], {"why": "no"}))
    assert len(visible(panel)) == min(n, 6)
    assert ("The first 6 of 7 families" in panel.caption) == (n == 7)
    fits(panel)


def test_more_children_than_colors_are_told_apart() -> None:
    (panel,) = geometry_panels(geometry_record([family(1, 20)], {"why": "no"}))
    (axis,) = visible(panel)
    looks = {
        (to_hex(np.asarray(c.get_facecolor())[0]), np.asarray(c.get_paths()[0].vertices).tobytes())
        for c in axis.collections
        if isinstance(c, PathCollection)
    }
    assert len(looks) == 20
    panel.figure.savefig(io.BytesIO(), format="png", dpi=50)


def test_nothing_to_draw() -> None:
    assert (
        geometry_panels(geometry_record([{"parent": 2, "why": "has no children"}], {"why": "no"}, None)) == []
    )
    assert probe_panels(probe_record([])) == []
    assert probe_panels(probe_record([{"parent": 1, "density": 0.1, "children": [], "why": "rare"}])) == []


def test_siblings_are_drawn_as_recorded() -> None:
    points = [[0.0, 1.0, 0], [1.0, 2.0, 1], [2.0, 3.0, -1], [3.0, 5.0, 0]]
    umap = {"points": points, "features": [4, 5, 6, 7], "parents": [8, 9]}
    (panel,) = geometry_panels(geometry_record([], umap))
    drawn = scattered(panel.figure.axes[0])
    assert drawn.keys() == {"unrelated features", "children of 8", "children of 9"}
    assert drawn["children of 8"].tolist() == [[0, 1], [3, 5]]
    assert drawn["unrelated features"].tolist() == [[2, 3]]
    assert "0.750" in panel.caption
    fits(panel)


@pytest.mark.parametrize("n", [1, 5])
def test_probes_are_drawn_as_recorded(n: int) -> None:
    children = [child(100 + i, 0.6, -0.1 * i) for i in range(n)]
    (panel,) = probe_panels(probe_record([{"parent": 7, "density": 0.0123, "children": children}]))
    assert panel.key == "probes-7"
    assert "1.23%" in panel.caption
    for axis, own in zip(visible(panel), children, strict=True):
        assert str(own["child"]) in axis.get_title()
        (bars,) = [patch for patch in axis.patches if isinstance(patch, StepPatch)]
        values, edges, _ = bars.get_data()
        assert values.tolist() == own["histogram"]["counts"]
        assert edges.tolist() == own["histogram"]["edges"]
        assert axis.get_yscale() == "log"
        assert [float(np.asarray(line.get_xdata())[0]) for line in axis.lines] == [
            own["cos_child"],
            own["cos_parent"],
        ]
        left, right = axis.get_xlim()
        assert left < own["cos_parent"] < right
        assert any("rank 2,345" in text.get_text() for text in axis.texts)
    fits(panel)


def test_a_cosine_that_is_undefined_is_said_to_be() -> None:
    (panel,) = probe_panels(probe_record([{"parent": 7, "density": 0.01, "children": [child(1, None, 0.2)]}]))
    (axis,) = panel.figure.axes
    assert "child: undefined" in [text.get_text() for text in axis.texts]
    assert len(axis.lines) == 1


def test_a_child_without_a_centroid_has_no_cross() -> None:
    (panel,) = geometry_panels(geometry_record([family(1, 3, centroid=[])], {"why": "no"}, None))
    assert not panel.figure.axes[0].lines
    assert "No encoder direction" in panel.caption
    fits(panel)


def test_the_landscape_shows_equations_12_and_13() -> None:
    (panel,) = landscape_panels(0.05)
    (left,), (right,) = (
        [c for c in axis.collections if isinstance(c, QuadMesh)] for axis in panel.figure.axes[:2]
    )
    l1, l2 = (np.ma.filled(np.ma.asarray(mesh.get_array()), np.nan) for mesh in (left, right))
    middle, last = len(l1) // 2, len(l1) - 1
    assert l1[middle, middle] == pytest.approx(1.275)
    assert l2[middle, middle] == pytest.approx(0.525)
    # Rows are S_c, columns S_p: the loss falls faster with the parent.
    assert l1[0, middle] == pytest.approx(1.5)
    assert l1[middle, 0] == pytest.approx(1.75)
    assert np.isnan(l1[last, last])
    assert np.isnan(l2[last, last])
    assert np.nanmin(l2) >= 0
    with styled():  # which takes a $ for a $
        (plain,) = landscape_panels()
    for axis in plain.figure.axes[:2]:
        assert axis.xaxis.label.get_parse_math()
        assert axis.yaxis.label.get_parse_math()
    fits(panel)
