"""`saeforest infer`: a forest for a flat SAE of a run, or for an SAE alone, that measures then take."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from saeforest import InputError, cli
from saeforest.config import TrainConfig
from saeforest.evaluation import MeasureOptions, infer, measure_run
from saeforest.explore import index_run
from saeforest.infer import InferConfig
from saeforest.kept_forest import forest_of
from saeforest.run_folder import RunFolder
from saeforest.saes import TopKConfig
from saeforest.stopping import Interrupted
from saeforest.training import run_training
from saeforest.verify import verify

MakeConfig = Callable[..., TrainConfig]
COVERAGE = InferConfig(method="coverage", min_score=0.5, min_count=2)
ARGUMENTS = ("--method", "coverage", "--min-score", "0.5", "--min-count", "2", "--tokens", "1500")


@pytest.fixture(scope="module")
def trained(tiny_config: MakeConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("flat") / "run"
    run_training(replace(tiny_config(), sae=TopKConfig((48,), (5,), dead_after_tokens=512)), out)
    return out


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


def test_measures_of_a_run_take_the_forest_that_was_asked_for(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["infer", str(run), *ARGUMENTS]) == 0
    said = capsys.readouterr().out
    assert "of 48 features have a parent, by coverage on" in said
    kept = (run / "forest" / "forest.json").read_bytes()
    assert all(finding.sound for finding in verify(run / "forest"))
    options = MeasureOptions(tokens=640)
    (record,) = measure_run(run, ["coverage"], options)["topk"]
    assert record.settings["forest"].startswith("inferred by coverage, parents by frequency")
    assert (record.value["edges_measured"] or 0) > 0
    assert (run / "forest" / "forest.json").read_bytes() == kept
    other = replace(options, infer=replace(COVERAGE, min_score=0.9))
    with pytest.raises(InputError, match="holds a forest that was inferred with other settings"):
        measure_run(run, ["coverage"], other)
    same = replace(options, infer=COVERAGE, infer_tokens=1500)
    assert measure_run(run, ["coverage"], same)["topk"] == [record]
    found = infer(run, replace(COVERAGE, min_score=0.9), tokens=1500)
    assert measure_run(run, ["coverage"], options)["topk"][0] != record
    assert found.forest.edges.shape[1] < json.loads(json.dumps(record.value))["edges_measured"]


def test_an_sae_alone_knows_what_it_reads(run: Path, tmp_path: Path) -> None:
    """Where and on which model; the run alone knows its sample of the text, which decides what is counted."""
    config, _ = RunFolder(run).load()
    out = tmp_path / "forest"
    alone = [str(run / "sae"), "--out", str(out), "--data", config.data]
    assert cli.run(["infer", *alone, *ARGUMENTS]) == 0
    assert all(finding.sound for finding in verify(out))
    assert {path.name for path in out.iterdir()} == {"forest.json", "forest.safetensors"}
    of_run = infer(run, COVERAGE, tokens=1500)
    copy = tmp_path / "copy"
    found = infer(run / "sae", COVERAGE, tokens=1500, out=copy, data=config.data)
    assert found.forest.d_sae == of_run.forest.d_sae
    assert (copy / "forest.safetensors").read_bytes() == (out / "forest.safetensors").read_bytes()


def test_an_sae_that_saelens_saved(run: Path, tmp_path: Path) -> None:
    """Its cfg.json has fewer keys, and says as much of what the SAE reads."""
    config, _ = RunFolder(run).load()
    theirs = Path(shutil.copytree(run / "sae", tmp_path / "theirs"))
    cfg = json.loads((theirs / "cfg.json").read_text())
    ours = (
        "format_version",
        "layer_sizes",
        "k_per_layer",
        "activation_threshold",
        "parent",
        "checksums",
        "checksum",
    )
    (theirs / "cfg.json").write_text(json.dumps({key: cfg[key] for key in cfg if key not in ours}))
    found = infer(theirs, COVERAGE, tokens=1500, out=tmp_path / "forest", data=config.data)
    same = infer(run / "sae", COVERAGE, tokens=1500, out=tmp_path / "same", data=config.data)
    # Our own counts as firing what is above 1e-3, SAELens' what is above 0.
    assert found.n_tokens == same.n_tokens
    assert bool((found.n_fired >= same.n_fired).all())
    assert found.forest.edges.shape[1] > 0
    assert all(finding.sound for finding in verify(theirs))


def test_what_does_not_go_together(run: Path, finished_run: Path, tmp_path: Path) -> None:
    cases: tuple[tuple[dict[str, Any], str], ...] = (
        ({"out": tmp_path / "out"}, "its forest goes to RUN/forest; leave out model"),
        ({"data": "packaged"}, "a run has its own model, site and data"),
        ({"sae": "hsae"}, "holds no SAE named 'hsae'"),
        ({"tokens": 0}, "tokens = 0: expected 1 or more"),
    )
    for arguments, message in cases:
        with pytest.raises(InputError, match=message):
            infer(run, COVERAGE, **arguments)
    with pytest.raises(InputError, match=r"learned a forest of its own; expected an SAE without one"):
        infer(finished_run, COVERAGE)
    with pytest.raises(InputError, match=r"give another folder for its forest \(out\)"):
        infer(run / "sae", COVERAGE)
    with pytest.raises(InputError, match="exists and is not empty"):
        infer(run / "sae", COVERAGE, out=run)
    with pytest.raises(InputError, match="not a run, so it has no SAE named 'a'"):
        infer(run / "sae", COVERAGE, out=tmp_path / "out", sae="a")
    assert not (run / "forest").exists()
    assert not (tmp_path / "out").exists()


def test_stopped_it_leaves_nothing(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*_: object) -> None:
        raise Interrupted

    with monkeypatch.context() as patch:
        patch.setattr("saeforest.infer.ForestInference.forest", stop)
        assert cli.run(["infer", str(run), *ARGUMENTS]) == 130
    assert "nothing was written: the same command starts over" in capsys.readouterr().err
    assert not list((run / "forest").glob("*")) if (run / "forest").exists() else True
    assert cli.run(["infer", str(run), *ARGUMENTS]) == 0


def test_the_forest_that_was_inferred_is_indexed_and_shown(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = RunFolder(run)
    _, sae = folder.load()
    assert forest_of(sae, folder.forest("topk"))[1] == "none"
    assert cli.run(["show", str(run)]) == 0  # makes an index of a forest without edges
    assert "this SAE has no forest. Infer one with `saeforest infer RUN`" in shown(capsys)

    found = infer(run, COVERAGE, tokens=1500)
    capsys.readouterr()
    assert cli.run(["show", str(run)]) == 2
    assert f"to another SAE or forest; run `saeforest index {run}` again" in shown(capsys)
    index = index_run(folder, 1500)
    forest, origin = forest_of(sae, folder.forest("topk"))
    assert torch.equal(forest.parent, found.forest.parent)
    assert origin.startswith("inferred by coverage, parents by frequency, from ")
    parents, children = forest.edges
    assert index.n_with_parent[forest.parent < 0].sum() == 0
    assert (index.n_with_parent[children] <= index.n_fired[parents]).all()
    assert (index.n_with_parent[children] >= 0.5 * index.n_fired[children]).float().mean() > 0.8
    assert cli.run(["show", str(run)]) == 0
    assert f"{len(parents)} parent-child edges, {origin}" in shown(capsys)
    assert cli.run(["show", str(run), str(int(children[0]))]) == 0
    assert all(finding.sound for finding in verify(run))

    (run / "forest" / "forest.json").write_text("{")
    assert cli.run(["show", str(run)]) == 2
    assert f"`saeforest infer {run}` infers the forest again" in shown(capsys)


def shown(capsys: pytest.CaptureFixture[str]) -> str:
    said = capsys.readouterr()
    return " ".join((said.out + said.err).split())
