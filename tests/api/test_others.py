"""`saeforest.infer_forest`, `save`, `synthetic` and `compare`."""

from __future__ import annotations

import inspect
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import torch

import saeforest
from api_cases import activations, error
from saeforest import RunFolder, TrainedRun
from saeforest.infer import InferConfig
from saeforest.infer import infer_forest as inferred


def test_a_forest_is_inferred_as_the_library_does(flat: TrainedRun) -> None:
    x = activations(seed=2)
    forest = saeforest.infer_forest(flat.sae, x, method="coverage", min_score=0.3, min_count=5)
    config = InferConfig(method="coverage", min_score=0.3, min_count=5)
    assert torch.equal(forest.parent, inferred(flat.sae, [x], config).forest.parent)
    assert len(forest.edges[0]) > 0
    defaults = inspect.signature(saeforest.infer_forest).parameters
    assert {f.name: defaults[f.name].default for f in fields(InferConfig)} == {
        f.name: f.default for f in fields(InferConfig)
    }
    said = error(lambda: saeforest.infer_forest(flat.sae, x, min_count=0))
    assert said == "min_count = 0: expected 1 or more"
    assert "x: has shape [1000, 2]" in error(lambda: saeforest.infer_forest(flat.sae, x[:, :2]))
    assert "sae: expected an SAE" in error(lambda: saeforest.infer_forest(flat, x))  # pyright: ignore[reportArgumentType]


def test_saving(run: TrainedRun, flat: TrainedRun, tmp_path: Path) -> None:
    place = tmp_path / "sae"
    saeforest.save(run.sae, place)
    saeforest.save(flat.sae, str(place))
    assert torch.equal(saeforest.load(place).decoder, flat.sae.decoder)
    (tmp_path / "note.txt").write_text("mine")
    assert "not empty and holds no SAE" in error(lambda: saeforest.save(run.sae, tmp_path))
    assert "is a file" in error(lambda: saeforest.save(run.sae, tmp_path / "note.txt"))
    assert "sae: expected an SAE" in error(lambda: saeforest.save(run, place))  # pyright: ignore[reportArgumentType]
    assert (tmp_path / "note.txt").read_text() == "mine"


def test_synthetic_worlds() -> None:
    world = saeforest.synthetic("tree", seed=3, depth=2, branching=2, roots=3)
    assert world.forest.layer_sizes == (3, 6)
    assert torch.equal(
        world.held_out(5).x, saeforest.synthetic(seed=3, depth=2, branching=2, roots=3).held_out(5).x
    )
    assert "did you mean tree" in error(lambda: saeforest.synthetic("tre"))
    assert "dept: no setting of generator tree; did you mean depth?" in error(
        lambda: saeforest.synthetic("tree", dept=2)
    )
    said = error(lambda: saeforest.synthetic("matryoshka", balanced=True))
    assert said == "balanced: no setting of generator matryoshka; it has none"


def test_comparing(
    run: TrainedRun, finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[list[Path], Path]] = []
    monkeypatch.setattr("saeforest.report.write.compare", lambda runs, out: asked.append((list(runs), out)))
    page = saeforest.compare([RunFolder(finished_run), str(finished_run)], tmp_path / "report")
    assert page == tmp_path / "report" / "report.html"
    assert asked == [([finished_run, finished_run], tmp_path / "report")]
    saeforest.compare(finished_run, tmp_path / "one")
    assert asked[1] == ([finished_run], tmp_path / "one")
    assert "a run in memory has no records" in error(lambda: saeforest.compare(run, tmp_path / "report"))


def test_a_missing_extra_is_one_line(
    monkeypatch: pytest.MonkeyPatch, finished_run: Path, tmp_path: Path
) -> None:
    for name in [name for name in sys.modules if name.startswith(("matplotlib", "saeforest.report."))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    said = error(lambda: saeforest.compare(finished_run, tmp_path / "report"))
    assert said == "a report needs the package matplotlib: run `pip install 'saeforest[report]'`"
