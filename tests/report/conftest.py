"""Runs and a report that tests share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from report_cases import (
    ALONE,
    LOG,
    MATRYOSHKA,
    PURSUIT,
    TOPK,
    TREE,
    hierarchy,
    make_run,
    record,
    sparsity,
)
from saeforest.report import compare, write


@pytest.fixture(scope="session")
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


@pytest.fixture(scope="session")
def fast_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A single SAE with little measured."""
    records = [sparsity(4.1), record("dead", {"dead_share": 0.1})]
    return make_run(tmp_path_factory.mktemp("module") / "fast", {ALONE: (MATRYOSHKA, 0, records)})


@pytest.fixture(scope="session")
def out(tmp_path_factory: pytest.TempPathFactory, run: Path, fast_run: Path) -> Path:
    out = tmp_path_factory.mktemp("module") / "out"
    compare([run, fast_run], out)
    return out


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are put together, and not rendered: for tests of what stands beside them, as rendering takes longest."""
    monkeypatch.setattr(write, "render", lambda figure, kind: b"")
