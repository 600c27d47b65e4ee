"""Figures of a parent: what they say, that nothing overlaps, and that their bytes do not depend on the day."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from matplotlib.text import Annotation

from explore_cases import made_index
from figure_cases import UNGATED, words_explorer
from saeforest.errors import InputError
from saeforest.explore import Explorer
from saeforest.explore.figures import draw
from saeforest.explore.figures.concepts import concept_tree
from saeforest.explore.figures.family import draw_family
from saeforest.explore.figures.geometry import draw_geometry
from saeforest.explore.figures.numbers import edge_scale, edge_value
from saeforest.report.style import styled
from saeforest.structure.forest import Forest

NULLS = "Coverage without the gate: 0.34; 0.06 with the parents shuffled."


@pytest.fixture(scope="module")
def explorer() -> Explorer:
    return words_explorer({2: "months of the year"})


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def test_the_concepts_under_a_feature(explorer: Explorer) -> None:
    scale = edge_scale(explorer.index)
    top = concept_tree(explorer, 0, scale)
    assert [c.card.id for c in top.walk()] == [0, 1, 4, 2, 5, 3]
    assert top.words == ("yesterday", "today", "tomorrow")
    assert (top.value, top.p_child, top.rest) == (None, None, "1 that never fired here")
    weekday, month, _ = top.children
    assert month.words == ("months of the year",)
    assert weekday.value == pytest.approx(0.61)
    assert weekday.p_child == pytest.approx(40 / 90)
    assert [c.passage.token for c in weekday.contexts] == ["Monday", "Tuesday", "Friday"]
    few = concept_tree(explorer, 0, scale, children=2, depth=1)
    assert [c.card.id for c in few.walk()] == [0, 1, 2]
    assert few.rest == "1 more that fires, 1 that never fired here"
    assert few.children[0].rest == "1 more that fires"
    with pytest.raises(InputError, match="feature 7: expected 0 to 6"):
        concept_tree(explorer, 7)


def test_telling_tokens_come_before_those_of_contexts(explorer: Explorer) -> None:
    told = torch.full((7, 5), -1, dtype=torch.int32)
    lamps = explorer.tokenizer.convert_tokens_to_ids("lamps")
    assert isinstance(lamps, int)
    told[1, 0] = lamps
    index = replace(explorer.index, child_tokens=told)
    again = Explorer(index, explorer.forest, explorer.tokenizer)
    assert concept_tree(again, 1).words == ("lamps", "Monday", "Tuesday", "Friday")


def test_words_of_the_parent_come_last() -> None:
    explorer = words_explorer()
    rows = explorer.index.top_row.clone()
    rows[1, 0] = rows[0, 0]  # the strongest context of its parent
    again = Explorer(replace(explorer.index, top_row=rows), explorer.forest, explorer.tokenizer)
    assert concept_tree(again, 0).children[0].words == ("Tuesday", "Friday", "yesterday")


def test_the_scale_of_edges_is_that_of_the_null_pairs(explorer: Explorer) -> None:
    scale = edge_scale(explorer.index)
    assert scale is not None
    null = explorer.index.null_columns["ungated"].double().numpy()
    assert (scale.name, scale.least, scale.most) == ("ungated", 0, 1)
    assert (scale.low, scale.middle, scale.high) == pytest.approx(np.percentile(null, [5, 50, 95]))
    assert [scale.share(x) for x in (-1, 0.25, 2)] == [0, 0.25, 1]
    assert edge_value(explorer.index, scale, 4) == pytest.approx(UNGATED[4])
    assert edge_value(explorer.index, scale, 0) is None
    assert edge_scale(words_explorer(nulls=False).index) is None


def test_a_family_says_each_number_beside_chance(explorer: Explorer) -> None:
    with styled():
        said = texts(draw_family(explorer, 0, 6, 2, NULLS))
    scale = edge_scale(explorer.index)
    assert scale is not None
    for value in (0.61, 0.44, 0.08, 0.83, 0.30):
        assert f"without the gate {value:.2f}, chance {scale.middle:.2f}" in said
    assert "feature 1 · on 44% of its parent's tokens" in said
    assert "months of the year" in said
    assert {"layer 0", "layer 1", "layer 2", "+ 1 that never fired here"} <= set(said)
    assert {"yesterday", "Monday", "Saturday", "June"} <= set(said)  # marked in their texts
    caption = " ".join(said[-4:])
    assert "parents were shuffled" in caption
    assert NULLS in caption


def test_without_nulls_no_number_of_an_edge_is_shown() -> None:
    with styled():
        said = texts(draw_family(words_explorer(nulls=False), 0, 6, 2, NULLS))
    assert not [line for line in said if "coverage" in line and line not in NULLS]


def test_boxes_do_not_overlap_and_text_stays_inside() -> None:
    parents = [-1, *[0] * 4, *[1] * 2, *[2] * 3, 6, 6]  # of an inferred forest: levels are depths
    forest = Forest(torch.tensor(parents), (len(parents),), layered=False)
    few = words_explorer()
    rows = [few.index.top_row[i % 6].tolist() for i in range(len(parents))]
    explorer = Explorer(made_index(few.index.tokens, rows), forest, few.tokenizer)
    with styled():
        figure = draw_family(explorer, 0, 4, 3, NULLS)
        figure.canvas.draw()
    (axes,) = figure.axes
    boxes = [patch.get_window_extent() for patch in axes.patches if isinstance(patch, FancyBboxPatch)]
    assert len(boxes) == 11
    assert not [1 for a, b in combinations(boxes, 2) if a.overlaps(b)]
    for text in axes.texts:
        place = text.get_window_extent()
        assert figure.bbox.x0 <= place.x0 <= place.x1 <= figure.bbox.x1, text.get_text()
        assert figure.bbox.y0 <= place.y0 <= place.y1 <= figure.bbox.y1, text.get_text()


def test_the_geometry_has_the_points_and_directions_of_the_index(explorer: Explorer) -> None:
    with styled():
        figure = draw_geometry(explorer, 0, NULLS)
    _, plot = figure.axes
    geometry = explorer.index.geometry
    drawn = [np.asarray(dots.get_offsets()) for dots in plot.collections]
    assert [len(dots) for dots in drawn] == [16, 16, 16, 16]
    for child, dots in zip((-1, 0, 1, 2), drawn, strict=True):
        assert np.allclose(dots, geometry.points[0][geometry.child[0] == child].numpy())
    arrows = [np.array(text.xy) for text in plot.texts if isinstance(text, Annotation)][::2]
    scale = geometry.direction[1:4].numpy()
    ratio = np.array(arrows) / scale
    assert np.allclose(ratio, ratio[0, 0])
    assert ratio[0, 0] > 0
    said = texts(figure)
    assert "Monday · Tuesday · Friday" in said
    assert "16 points: only the parent fires" in said
    assert "31% of the variance" in plot.get_xlabel()
    assert "untrained SAE too" in " ".join(said)


@pytest.mark.parametrize("suffix", ["svg", "png", "pdf"])
def test_the_same_bytes_every_time(explorer: Explorer, suffix: str) -> None:
    begins = {"svg": b"<?xml", "png": b"\x89PNG", "pdf": b"%PDF"}[suffix]
    kind = "geometry" if suffix == "svg" else "family"
    image = draw(explorer, 0, kind, suffix, nulls=NULLS)
    assert image.startswith(begins)
    assert image == draw(explorer, 0, kind, suffix, nulls=NULLS)
    assert len(image) < 500_000
    for dated in (b"CreationDate", b"<dc:date>", b"tEXtSoftware"):
        assert dated not in image


def test_hostile_text_is_drawn_as_text() -> None:
    explorer = words_explorer({0: "$x^{$ \x1b[31m \u202e <b>&amp;"}, extra="$\\frac{")
    assert draw(explorer, 0).startswith(b"<?xml")
    with styled():
        assert "$x^{$ ␛[31m \ufffd <b>&amp;" in texts(draw_family(explorer, 0, 6, 2, ""))


def test_what_cannot_be_drawn(explorer: Explorer) -> None:
    with pytest.raises(InputError, match="feature 6: never fired"):
        draw(explorer, 6)
    with pytest.raises(InputError, match="feature 3: no geometry in the index"):
        draw(explorer, 3, "geometry")
    with pytest.raises(InputError, match="figure as jpg: expected svg, png, pdf"):
        draw(explorer, 0, suffix="jpg")
