"""What a report reads: labels, damage, and what cannot be compared."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from report_cases import (
    ALONE,
    TOPK,
    TREE,
    hierarchy,
    make_run,
    measured_as,
    record,
    sparsity,
)
from saeforest.errors import InputError
from saeforest.measures import Record
from saeforest.report import compare
from saeforest.report.load import load_runs
from saeforest.report.page import build_page


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
    with pytest.raises(
        InputError, match=r"bare: nothing was measured yet; first run `saeforest eval .*bare`"
    ):
        compare([bare], tmp_path / "out")
    with pytest.raises(InputError, match=r"no config\.yaml; expected a run folder"):
        compare([tmp_path], tmp_path / "out")
    with pytest.raises(InputError, match="at least one run folder"):
        compare([], tmp_path / "out")
    used = tmp_path / "used"
    used.mkdir()
    (used / "file").write_text("mine")
    with pytest.raises(InputError, match="exists and is not empty"):
        compare([run], used)
    assert [path.name for path in used.iterdir()] == ["file"]
    damaged = shutil.copytree(run, tmp_path / "damaged")
    (damaged / "eval" / "tree" / "hierarchy.json").write_text('{"measure": "hierarchy"}')
    with pytest.raises(InputError, match=r"hierarchy\.json: not the record of a measure"):
        compare([damaged], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    inside = run / "eval" / "report"
    with pytest.raises(InputError, match=r"is inside the run .*; choose a folder outside"):
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
    with pytest.raises(
        InputError, match=r"hierarchy\.json: not (the record of a measure|valid JSON)"
    ) as info:
        Record.read(path)
    assert "\n" not in str(info.value)


@pytest.mark.parametrize("text", ["[]", "3", "null", '"record"'])
def test_a_record_that_is_no_object_is_damaged(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(InputError, match="not the record of a measure"):
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
    with pytest.raises(InputError, match=rf"run/eval/{measure}\.json: its detail lacks") as info:
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
