"""The report: what it reads, and that what it writes is whole, escaped and of the right numbers."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from report_cases import (
    ALONE,
    LOG,
    MATRYOSHKA,
    PURSUIT,
    TOPK,
    TREE,
    hierarchy,
    make_run,
    measured_as,
    record,
    settings_in,
    sparsity,
)
from saeforest.errors import UserError
from saeforest.measures import Record
from saeforest.report import claims, compare, curves, figures
from saeforest.report.gallery import compare_figures
from saeforest.report.load import load_runs, settings_of
from saeforest.report.numbers import number
from saeforest.report.page import build_page
from saeforest.report.papers import papers
from saeforest.report.style import styled
from saeforest.report.write import markdown


@pytest.fixture(autouse=True)
def in_style() -> Iterator[None]:
    with styled():
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Several systems with most of what a report can show. Shared: copy it before changing anything in it."""
    tmp_path = tmp_path_factory.mktemp("module")
    detail = {
        "curve": {"tree": [[1, 1.0], [10, 0.9], [40, 0.7]], "mcs": [[1, 1.0], [10, 0.5], [50, 0.3]]},
        "rank_curve": {"parents": 7, "cos_parent": list(np.linspace(0.5, 0.1, 20)), "hit": []},
        "variants": {
            name: {"value": value, "interval": [value - 0.03, value + 0.03], "pairs": 9}
            for name, value in (("mcs_binary", 0.6), ("mcs_correlation", 0.3))
        },
    }
    return make_run(
        tmp_path / "runs" / "<script>alert(1)<script> & `x` | $y$",
        {
            "tree": (TREE, 0, [sparsity(3.9), hierarchy(0.8, 0.5, **detail), record("mcs", {"k_all_pairs": 0.04})]),
            "topk": (TOPK, 0, [sparsity(4.0), hierarchy(None, 0.1, **detail)]),
            "mp": (PURSUIT, 0, [sparsity(3.8), hierarchy(None, 0.01)]),
        },
        {"tree": LOG},
    )  # fmt: skip


# -- reading


def test_labels_name_one_sae_each(tmp_path: Path) -> None:
    saes = {"tree": (TREE, 0, [sparsity(4.0)]), "topk": (TOPK, 0, [])}
    one, two = make_run(tmp_path / "x" / "run", saes), make_run(tmp_path / "y" / "run", saes)
    labels = [entry.label for entry in load_runs([one, two, tmp_path / "x" / ".." / "x" / "run"])]
    assert labels == ["x/run/tree", "x/run/topk", "y/run/tree", "y/run/topk"]
    assert [entry.label for entry in load_runs([one])] == ["tree", "topk"]
    single = make_run(tmp_path / "single", {ALONE: (TREE, 0, [sparsity(4.0)])})
    assert [entry.label for entry in load_runs([single])] == ["single"]


def test_what_cannot_be_compared_is_one_clear_line(tmp_path: Path, run: Path) -> None:
    bare = make_run(tmp_path / "bare", {ALONE: (TREE, 0, [])})
    with pytest.raises(UserError, match=r"bare: nothing was measured yet; first run `saeforest eval .*bare`"):
        compare([bare], tmp_path / "out")
    with pytest.raises(UserError, match=r"no config\.yaml; expected a run folder"):
        compare([tmp_path], tmp_path / "out")
    with pytest.raises(UserError, match="one run folder or more"):
        compare([], tmp_path / "out")
    used = tmp_path / "used"
    used.mkdir()
    (used / "file").write_text("mine")
    with pytest.raises(UserError, match="exists and is not empty"):
        compare([run], used)
    assert [path.name for path in used.iterdir()] == ["file"]
    damaged = shutil.copytree(run, tmp_path / "damaged")
    (damaged / "eval" / "tree" / "hierarchy.json").write_text('{"measure": "hierarchy"}')
    with pytest.raises(UserError, match=r"hierarchy\.json: not the record of a measure"):
        compare([damaged], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    inside = run / "eval" / "report"
    with pytest.raises(UserError, match=r"lies in the run .*; choose another --out"):
        compare([run], inside)
    assert not inside.exists()


def test_a_config_beside_the_report_is_no_run(tmp_path: Path, fast_run: Path) -> None:
    shutil.copy(fast_run / "config.yaml", tmp_path / "config.yaml")
    compare([fast_run], tmp_path / "out")
    assert (tmp_path / "out" / "report.html").is_file()


GOOD: dict[str, Any] = {
    "measure": "hierarchy", "value": {"a": 1.0}, "interval": {"a": [0.5, 1.5]}, "unit": "u", "tokens": 3,
    "settings": {}, "detail": {"null": {}, "units": {}},
}  # fmt: skip


@pytest.mark.parametrize(
    "damage",
    [
        {"measure": 3}, {"value": []}, {"value": {"a": "1"}}, {"interval": []}, {"interval": {"a": []}},
        {"interval": {"a": "12"}}, {"unit": None}, {"tokens": "100"}, {"tokens": True}, {"tokens": 1.5},
        {"settings": None}, {"detail": []}, {"detail": {"null": []}}, {"detail": {"units": {"a": 1}}},
        {"detail": {"null": {"a": None}}}, {"detail": {"x": math.nan}}, {"value": {"a": 10**400}}, {"more": 1},
    ],
)  # fmt: skip
def test_a_record_of_wrong_types_is_damaged(tmp_path: Path, damage: dict[str, Any]) -> None:
    path = tmp_path / "hierarchy.json"
    path.write_text(json.dumps(GOOD))
    assert Record.read(path).interval == {"a": (0.5, 1.5)}
    path.write_text(json.dumps({**GOOD, **damage}))
    with pytest.raises(UserError, match=r"hierarchy\.json: not (the record of a measure|valid JSON)") as info:
        Record.read(path)
    assert "\n" not in str(info.value)


@pytest.mark.parametrize("text", ["[]", "3", "null", '"record"'])
def test_a_record_that_is_no_object_is_damaged(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UserError, match="not the record of a measure"):
        Record.read(tmp_path / "a.json")


@pytest.mark.parametrize(
    ("measure", "detail"),
    [
        ("hierarchy", {"rank_curve": [1]}),
        ("hierarchy", {"rank_curve": {"cos_parent": ["a", "b", "c", "d", "e"]}}),
        ("hierarchy", {"curve": {"tree": [[1, 2, 3]]}}),
        ("hierarchy", {"curve": "tree"}),
        ("hierarchy", {"variants": {"mcs_binary": {"value": "high"}}}),
        ("hierarchy", {"variants": {"mcs_binary": {"value": 0.5, "interval": 3}}}),
        ("dead_training", {"steps": [1, 2]}),
        ("dead_training", {"steps": [1], "tokens": [1], "rate": [[0], [0, 1]], "rate_all": [0], "reallocations": []}),
        ("geometry", {"families": {}, "umap": {"points": [["a", 1, 2]], "parents": [1]}}),
        ("geometry", {"families": None, "umap": {}}),
        ("reconstruction_score", {"focus": [3]}),
    ],
)  # fmt: skip
def test_damage_in_a_detail_is_one_line_that_names_the_file(
    tmp_path: Path, measure: str, detail: dict[str, Any]
) -> None:
    damaged = replace(record(measure, {"x": 1.0}), detail=detail)
    run = make_run(tmp_path / "run", {ALONE: (TREE, 0, [damaged])})
    with pytest.raises(UserError, match=rf"run/eval/{measure}\.json: its detail lacks") as info:
        compare([run], tmp_path / "out")
    assert "\n" not in str(info.value)
    assert not (tmp_path / "out").exists()


def test_names_of_files_need_not_be_utf8(tmp_path: Path) -> None:
    run = make_run(Path(f"{tmp_path}/run-\udcff"), {ALONE: (TOPK, 0, [sparsity(4.0)])})
    compare([run], tmp_path / "out")
    text = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert "run-?" in text
    assert "run-\N{REPLACEMENT CHARACTER}" in text


def test_the_commands_measure_as_it_was_measured(tmp_path: Path) -> None:
    judge = {"endpoint": "https://host/v1", "model": "a model", "timeout": 60.0}
    texts = {"train_texts": 4000, "tokens_read": 99_999}
    saes = {
        "tree": (TREE, 0, [
            measured_as(hierarchy(0.8, 0.5)),
            measured_as(sparsity(4.0)),
            measured_as(record("sparse_probing", {"sae_top_1": 0.5}), **texts),
            measured_as(record("absorption", {"splitting": 1.0}), reading="saebench_0.6"),
            measured_as(record("autointerp", {"autointerp_score": 0.5}), config={"judge": judge}),
        ]),
        "topk": (TOPK, 0, [measured_as(sparsity(4.0))]),
    }  # fmt: skip
    run = make_run(tmp_path / "run", saes)
    page, _ = build_page(load_runs([run]), [run], tmp_path / "out")
    assert [line.split(" --measures ")[1] for line in page.commands if " eval " in line] == [
        "absorption --tokens 1000 --preset saebench_0.6",
        "autointerp --tokens 1000 --judge.endpoint https://host/v1 --judge.model 'a model'",
        "hierarchy,sparsity --tokens 1000",
        "sparse_probing",
    ]
    shared = dict(page.shared) | dict(
        zip(page.compared.head, (c.text for c in page.compared.rows[0]), strict=True)
    )
    assert shared["reading"] == "recommended, saebench_0.6"
    assert shared["judge"] == "a"


def test_a_failure_leaves_nothing(tmp_path: Path, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("full")

    monkeypatch.setattr("saeforest.report.write.render", fail)
    with pytest.raises(RuntimeError, match="full"):
        compare([run], tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


# -- writing


class Seen(HTMLParser):
    """Tags, attributes that load or link, and the text of a page; fails where tags are not closed in order."""

    VOID = ("meta", "img", "br", "wbr", "link", "input", "hr")

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.loads: list[tuple[str, str]] = []
        self.ids: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        self.loads += [(tag, value or "") for key, value in attrs if key in ("src", "href", "srcset", "data")]
        self.ids += [value or "" for key, value in attrs if key == "id"]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.text += data


@pytest.fixture(scope="module")
def fast_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A single SAE with little measured."""
    records = [sparsity(4.1), record("dead", {"dead_share": 0.1})]
    return make_run(tmp_path_factory.mktemp("module") / "fast", {ALONE: (MATRYOSHKA, 0, records)})


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory, run: Path, fast_run: Path) -> Path:
    out = tmp_path_factory.mktemp("module") / "out"
    compare([run, fast_run], out)
    return out


def test_the_page_needs_nothing_beside_it(out: Path) -> None:
    page = (out / "report.html").read_text(encoding="utf-8")
    assert page.startswith("<!DOCTYPE html>")
    seen = Seen()
    seen.feed(page)
    assert not seen.open
    assert not {"script", "link", "iframe", "object"} & set(seen.tags)
    links = [value for _, value in seen.loads if not value.startswith(("data:image/svg+xml;base64,", "#"))]
    assert links == [paper.link for paper in papers().values()]
    assert "url(" not in page
    assert "@import" not in page
    anchors = [value[1:] for _, value in seen.loads if value.startswith("#")]
    assert set(anchors) <= set(seen.ids)
    assert len(seen.ids) == len(set(seen.ids))


def test_names_are_data(out: Path) -> None:
    hostile = "<script>alert(1)<script> & `x` | $y$"
    seen = Seen()
    seen.feed((out / "report.html").read_text(encoding="utf-8"))
    assert f"{hostile}/tree" in seen.text
    text = (out / "report.md").read_text(encoding="utf-8")
    outside = re.sub(r"```.*?```", "", text, flags=re.S)
    assert "<script" not in outside
    assert "alert(1)" in outside
    assert markdown("a|b\n<i> `c` *d* [e](f) $g$") == (
        "a&#124;b &lt;i&gt; &#96;c&#96; &#42;d&#42; &#91;e&#93;(f) &#36;g&#36;"
    )
    values = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert "<script>alert(1)<script> & `x` | $y$/tree" in values["saes"]


def test_markdown_is_well_formed(out: Path) -> None:
    lines = (out / "report.md").read_text(encoding="utf-8").splitlines()
    tables = 0
    for i, line in enumerate(lines):
        if not line.startswith("|"):
            continue
        assert line.endswith("|")
        if not lines[i - 1].startswith("|"):  # a table's head: with a blank line before it, dashes beneath it
            assert lines[i - 1] == ""
            assert re.fullmatch(r"\|(---:?\|)+", lines[i + 1])
            tables += 1
        else:
            assert line.count("|") == lines[i - 1].count("|"), line
    assert tables > 8
    images = [name for line in lines for name in re.findall(r"!\[.*?\]\((.*?)\)", line)]
    assert len(images) >= 6
    assert all((out / name).is_file() for name in images)
    assert all("](http" not in line for line in lines if not line.startswith("The papers: "))


def test_the_json_holds_every_value(out: Path) -> None:
    written = json.loads((out / "report.json").read_text(encoding="utf-8"))
    tree = next(sae for label, sae in written["saes"].items() if label.endswith("/tree"))
    found = tree["measures"]["hierarchy"]["tree"]
    assert found == {
        "value": 0.8,
        "interval": [0.75, pytest.approx(0.85)],
        "tokens": 1000,
        "unit": "fraction",
    }
    topk = next(sae for label, sae in written["saes"].items() if label.endswith("/topk"))
    assert topk["measures"]["hierarchy"]["tree"]["null"] == "flat"
    assert all((out / name).is_file() for name in written["figures"])
    on_disk = {f"figures/{path.name}" for path in (out / "figures").iterdir()}
    assert set(written["figures"]) == on_disk
    assert len(written["claims"]) == len(claims.claims())


def test_undefined_values_are_dashes_with_a_footnote(out: Path) -> None:
    seen = Seen()
    seen.feed((out / "report.html").read_text(encoding="utf-8"))
    assert "flat" in seen.text
    assert "note-1" in seen.ids
    assert "Not measured: fast." in seen.text  # in the block on hierarchy


def test_reports_repeat_bit_for_bit(tmp_path: Path, run: Path, fast_run: Path, out: Path) -> None:
    again = tmp_path / "elsewhere" / "out"
    compare([run, fast_run], again)
    for path in (out / "figures").iterdir():
        assert path.read_bytes() == (again / "figures" / path.name).read_bytes(), path.name


def test_numbers_have_as_many_decimals_as_others_of_their_size() -> None:
    shown = [number(x) for x in (None, 0.09, -0.12345, 3.14159, 32.0, 128.26, 12345.6, 7, 0.0, 2e-5)]
    assert shown == ["–", "0.0900", "-0.1235", "3.142", "32.00", "128.3", "12,346", "7", "0.0000", "2.0e-05"]


# -- figures


def axes_of(figure: Figure, title: str) -> Axes:
    return next(axes for axes in figure.axes if axes.get_title(loc="left").startswith(title))


def drawn_x(axes: Axes, n: int) -> list[float]:
    """Of the rows of a dot plot the values, from the marks of the error bars."""
    return [float(container[0].get_xdata()[0]) for container in axes.containers[:n]]  # pyright: ignore


def test_dots_stand_where_the_values_are(run: Path) -> None:
    settings = settings_of(load_runs([run]))
    panel = figures.compared(figures.SPECS[1], settings)
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
    panel = figures.compared(figures.SPECS[0], settings_in(tmp_path / "run", saes))
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
    panel = figures.compared(figures.SPECS[0], settings_in(tmp_path / "run", saes))
    assert not isinstance(panel, str)
    assert drawn_x(axes_of(panel.figure, "Composition"), 2) == pytest.approx([0.4, 0.8])


def test_lines_by_size_take_one_l0_of_each(tmp_path: Path) -> None:
    big = replace(TREE, layer_sizes=(8, 24))
    saes = {
        "small": (TREE, 0, [sparsity(4.0), hierarchy(0.5, 0.4)]),
        "small-dense": (replace(TREE, k_per_layer=(4, 4)), 0, [sparsity(8.0), hierarchy(0.9, 0.4)]),
        "big": (big, 0, [sparsity(4.0), hierarchy(0.7, 0.4)]),
    }
    settings = settings_in(tmp_path / "run", saes)
    panel = figures.compared(figures.SPECS[2], settings)
    assert not isinstance(panel, str)
    line = next(
        line
        for line in axes_of(panel.figure, "Hierarchy, by tree").lines
        if line.get_label() == "Tree SAE, 2 layers"
    )
    assert np.asarray(line.get_xdata()).tolist() == [16, 32]
    assert np.asarray(line.get_ydata()).tolist() == [0.5, 0.7]
    one_size = [setting for setting in settings if setting.d_sae == 16]
    assert figures.compared(figures.SPECS[2], one_size) == "no system was trained in more than one size"


def test_the_curves_are_the_records(run: Path) -> None:
    settings = settings_of(load_runs([run]))
    rank = curves.rank_curve(settings)
    assert not isinstance(rank, str)
    assert np.asarray(rank.figure.axes[0].lines[0].get_ydata()).tolist() == pytest.approx(
        np.linspace(0.5, 0.1, 20)
    )
    precision = curves.precision(settings)
    assert not isinstance(precision, str)
    lines = {str(line.get_label()): line for line in precision.figure.axes[0].lines}
    assert list(lines) == ["Tree SAE, 2 layers, by its tree", "Tree SAE, 2 layers, by MCS", "TopK, by MCS"]
    assert np.asarray(lines["Tree SAE, 2 layers, by its tree"].get_xdata()).tolist() == [1, 10, 40]
    assert np.asarray(lines["TopK, by MCS"].get_ydata()).tolist() == [1.0, 0.5, 0.3]
    variants = curves.variants(settings)
    assert not isinstance(variants, str)
    assert drawn_x(axes_of(variants.figure, "Correlation MCS"), 1) == [0.3]
    assert not axes_of(variants.figure, "Scaled binary").containers


def test_dead_features_are_read_from_the_log(run: Path) -> None:
    settings = settings_of(load_runs([run]))
    panel = curves.dead_over_training(settings)
    assert not isinstance(panel, str)
    (axes,) = panel.figure.axes
    lines = {str(line.get_label()): line for line in axes.lines}
    assert np.asarray(lines["layer 0"].get_ydata()).tolist() == [0.0, 0.25, 0.0]
    assert np.asarray(lines["layer 1"].get_ydata()).tolist() == [0.0, 0.5, 0.25]
    moved = [line.get_xdata()[0] for line in axes.lines if str(line.get_label()).startswith("_")]  # pyright: ignore
    assert moved == [5, 15]


def test_panels_of_dead_features_share_an_axis_that_holds_them_all(run: Path) -> None:
    small, large = settings_of(load_runs([run])), settings_of(load_runs([run]))
    rates = small[0].entries[0].dead_rates
    assert rates is not None
    tenth = rates._replace(rate=[[rate / 10 for rate in layer] for layer in rates.rate])
    small[0].entries[0].__dict__["dead_rates"] = tenth
    panel = curves.dead_over_training([*small, *large])
    assert not isinstance(panel, str)
    assert all(axes.get_ylim()[1] >= 0.5 for axes in panel.figure.axes)


def test_figures_without_data_say_so(tmp_path: Path) -> None:
    settings = settings_in(tmp_path / "run", {"topk": (TOPK, 0, [sparsity(4.0)])})
    gallery = compare_figures(settings)
    assert gallery.panels == []
    assert len(gallery.skipped) == len(figures.SPECS) + len(curves.FIGURES)
    assert all(": n" in line or ": the" in line for line in gallery.skipped)
