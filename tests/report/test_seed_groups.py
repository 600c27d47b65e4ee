"""SAEs that differ in their seeds alone are one, with an interval that covers the spread between them."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from report_cases import (
    ALONE,
    BASELINE,
    HSAE,
    MATRYOSHKA,
    PURSUIT,
    TOPK,
    TREE,
    groups_in,
    hierarchy,
    make_run,
    sparsity,
)
from saeforest.measures import Record
from saeforest.report.claim_text import finding_text
from saeforest.report.load import load_runs
from saeforest.report.page import build_page
from saeforest.report.seed_groups import seed_groups
from saeforest.saes import (
    AllocationConfig,
    SystemConfig,
)


def test_seeds_are_averaged_and_their_spread_widens_the_interval(tmp_path: Path) -> None:
    values = (0.70, 0.80, 0.84)
    saes = {f"tree-seed-{i}": (TREE, i, [hierarchy(v, 0.5)]) for i, v in enumerate(values)}
    (group,) = groups_in(tmp_path / "run", saes)
    assert group.label == "tree (3 seeds)"
    found = group.value("hierarchy", "tree")
    assert found.value == pytest.approx(np.mean(values))
    assert found.each == pytest.approx(values)
    spread = 4.302653 * np.std(values, ddof=1) / math.sqrt(3)  # Student's t, 2 degrees of freedom
    assert found.interval is not None
    assert found.interval[0] == pytest.approx(np.mean(values) - math.hypot(0.05, spread))
    assert found.interval[1] == pytest.approx(np.mean(values) + math.hypot(0.05, spread))


def test_the_same_seed_twice_is_one_seed(tmp_path: Path) -> None:
    records = [hierarchy(0.8, 0.5)]
    twice = [make_run(tmp_path / name, {ALONE: (TREE, 0, records)}) for name in ("a", "b")]
    (group,) = seed_groups(load_runs(twice))
    assert group.label == "a"
    assert group.value("hierarchy", "tree") == group.first.value("hierarchy", "tree")
    other = make_run(tmp_path / "c", {ALONE: (TREE, 1, [hierarchy(0.7, 0.5)])})
    (group,) = seed_groups(load_runs([*twice, other]))
    assert group.label == "a (2 seeds)"
    assert group.value("hierarchy", "tree").each == (0.8, 0.7)
    reordered = make_run(tmp_path / "d", {ALONE: (TREE, 0, [hierarchy(0.6, 0.5)])}, data_seed=1)
    (group,) = seed_groups(load_runs([*twice, reordered]))
    assert group.value("hierarchy", "tree").each == (0.8, 0.6)


def test_a_mean_of_fewer_seeds_says_so(tmp_path: Path) -> None:
    saes: dict[str, tuple[SystemConfig, int, list[Record]]] = {
        f"tree-seed-{i}": (TREE, i, [sparsity(4.0), *([hierarchy(0.8, 0.5)] if i < 2 else [])])
        for i in range(3)
    }
    saes["topk"] = (TOPK, 0, [sparsity(4.0), hierarchy(None, 0.1)])
    run = make_run(tmp_path / "run", saes)
    page, results = build_page(load_runs([run]), [run], tmp_path / "out")
    block = next(table for table in page.summary if table.title.startswith("Hierarchy"))
    (mean,) = (row for row in block.rows if row[0].tone == "mean")
    assert mean[0].text == "mean of 3 seeds"
    assert mean[1].small.endswith("; 2 of 3 seeds")
    sparse = next(table for table in page.summary if table.title.startswith("Reconstruction"))
    (whole,) = (row for row in sparse.rows if row[0].tone == "mean")
    assert "seeds" not in whole[1].small
    finding = next(r.findings[0] for r in results if r.findings)
    assert finding_text(finding).startswith("tree (3 seeds), 2 of 3 seeds and topk: ")


def test_only_seeds_make_one_setting(tmp_path: Path) -> None:
    other = replace(TREE, allocation=AllocationConfig(first=0))
    saes = {"a": (TREE, 0, [sparsity(4.0)]), "b": (TREE, 1, []), "c": (other, 0, [])}
    groups = groups_in(tmp_path / "run", saes)
    assert [len(s.entries) for s in groups] == [2, 1]
    assert [s.system.title for s in groups] == [
        "Tree SAE, 2 layers",
        "Tree SAE without reallocation, 2 layers",
    ]
    assert groups[0].value("sparsity", "l0").value == 4.0  # of the one seed that has it


def test_systems_are_told_apart(tmp_path: Path) -> None:
    saes = {
        "h": (HSAE, 0, [sparsity(8.0)]),
        "b": (BASELINE, 0, []),
        "m": (MATRYOSHKA, 0, []),
        "p": (PURSUIT, 0, []),
    }
    groups = groups_in(tmp_path / "run", saes)
    assert [s.system.kind for s in groups] == ["hsae", "hsae-baseline", "matryoshka", "matching_pursuit"]
