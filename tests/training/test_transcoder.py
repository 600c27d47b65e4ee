"""A transcoder, end to end: trained from one site to another, saved, loaded, measured, indexed, shown."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from llama_cases import MakeConfig
from saeforest import InputError, cli
from saeforest.config import TrainConfig, load_config, to_dict
from saeforest.files import read_json
from saeforest.interventions import put
from saeforest.measures.record import Record
from saeforest.run_folder import RunFolder
from saeforest.saes import HSAEConfig
from saeforest.session import open_reader, read_tokens
from saeforest.training import Run, run_training
from saeforest.training.harvest import run_harvest
from saeforest.training.log import read_log

SITE, TARGET = "blocks.1.ln2.hook_normalized", "blocks.1.hook_mlp_out"
MEASURES = ["reconstruction", "cross_entropy", "sparsity", "dead", "coverage"]


@pytest.fixture(scope="module")
def config(tiny_config: MakeConfig) -> TrainConfig:
    return tiny_config(site=SITE, target=TARGET)


@pytest.fixture(scope="module")
def run(config: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run_training(config, tmp_path_factory.mktemp("transcoder") / "run")


def test_it_is_trained_to_predict_the_target(run: Run, config: TrainConfig) -> None:
    lines = [line for line in read_log(run.folder.path) if "fve" in line]
    assert lines[-1]["fve"] > lines[0]["fve"] + 0.1
    assert run.sae.is_transcoder
    batch = run.blocks.block(0, 0)
    target = batch.others[TARGET].float()
    with torch.no_grad():
        error = (target - run.sae(batch.x.float())).square().sum()
    assert 1 - error / (target - target.mean(0)).square().sum() > 0.1


def test_the_folder_says_what_it_is(run: Run, config: TrainConfig) -> None:
    about = read_json(run.folder.path / "sae" / "cfg.json")
    assert (about["metadata"]["hook_name"], about["metadata"]["hook_name_out"]) == (SITE, TARGET)
    assert load_config(run.folder.config_file).target == TARGET
    loaded, sae = run.folder.load()
    assert loaded.target == TARGET
    x = run.blocks.block(0, 0).x.float()
    with torch.no_grad():
        assert torch.equal(sae(x), run.sae(x))


def test_without_a_target_the_configuration_is_as_before(tiny_config: MakeConfig) -> None:
    assert "target" not in to_dict(tiny_config())


def test_the_same_from_activations_on_disk_live_and_harvested(
    run: Run, config: TrainConfig, tmp_path: Path
) -> None:
    expected = {name: t.clone() for name, t in run.sae.tensors().items()}
    done = run_harvest(config, tmp_path / "store")
    assert done is not None
    harvested = done.store
    assert harvested.manifest["sites"] == {SITE: run.sae.d_in, TARGET: run.sae.d_out}
    on_disk = replace(config, activations=replace(config.activations, store="disk"))
    from_store = replace(config, data=str(tmp_path / "store"))
    found = [
        run_training(given, tmp_path / str(i)).sae.tensors() for i, given in enumerate((on_disk, from_store))
    ]
    assert all(torch.equal(found[0][name], found[1][name]) for name in expected)
    live = replace(config, activations=replace(config.activations, store="live"))
    assert run_training(live, tmp_path / "live").sae.is_transcoder
    alone = replace(from_store, target=None)
    assert not run_training(alone, tmp_path / "alone").sae.is_transcoder
    with pytest.raises(InputError, match="no activations of site 'blocks"):
        run_training(replace(from_store, target="blocks.0.hook_mlp_out"), tmp_path / "other")


def test_it_is_measured_where_it_writes(run: Run, config: TrainConfig) -> None:
    """FVE of the target; cross-entropy with the MLP's output replaced, in one pass, by what is read at its input."""
    folder = run.folder
    assert cli.run(["eval", str(folder.path), "--measures", ",".join(MEASURES), "--tokens", "512"]) == 0
    records = {name: Record.read(folder.record("tree", name)) for name in MEASURES}
    assert records["reconstruction"].settings["target"] == TARGET
    reader, sae = open_reader(folder.config()), run.sae
    text = read_tokens(folder.config(), reader, "held_out", 512)
    ids = text.ids.long()
    read: dict[str, torch.Tensor] = {}
    keep = reader.keep(ids, reader.lm.activations(ids, SITE))

    def encode(x: torch.Tensor) -> None:
        read["x"] = x

    @torch.no_grad()
    def decode(y: torch.Tensor) -> torch.Tensor:
        read["y"] = y
        return put(y, sae(read["x"][keep].float()), keep)

    with torch.no_grad():
        losses = reader.lm.token_losses(ids, {SITE: encode, TARGET: decode})
        y = read["y"][keep].double()
        error = (y - sae(read["x"][keep].float())).square().sum()
    fve = records["reconstruction"].value["fve"]
    assert fve == pytest.approx(float(1 - error / (y - y.mean(0)).square().sum()), abs=1e-5)
    spliced = records["cross_entropy"].value["spliced"]
    assert spliced == pytest.approx(float(losses[keep[:, :-1]].double().mean()), abs=1e-5)
    ablated = reader.lm.token_losses(ids, {TARGET: torch.zeros_like})[keep[:, :-1]]
    assert records["cross_entropy"].value["ablated"] == pytest.approx(
        float(ablated.double().mean()), abs=1e-5
    )


@pytest.mark.parametrize("measure", ["tpp", "absorption", "hierarchy", "reconstruction_score", "geometry"])
def test_measures_that_mean_nothing_refuse(
    measure: str, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["eval", str(run.folder.path), "--measures", measure]) != 0
    said = capsys.readouterr().err
    assert f"measure '{measure}': not defined for a transcoder" in said


def test_it_is_indexed_and_shown(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["index", str(run.folder.path), "--tokens", "1024"]) == 0
    assert cli.run(["show", str(run.folder.path)]) == 0
    # Where a line is broken depends on how long the run's path is.
    said = " ".join(capsys.readouterr().out.split())
    assert f"{SITE} to {TARGET}" in said
    assert "since a transcoder's decoder writes at another site" in said


def test_a_dry_run_counts_the_target(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["train", "--config", str(run.folder.config_file), "--dry-run"]) == 0
    assert TARGET in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"target": SITE}, "the same as the site"),
        ({"sae": HSAEConfig(), "target": TARGET}, "an SAE of architecture hsae reconstructs its input"),
    ],
)
def test_wrong_targets(change: dict[str, Any], part: str, config: TrainConfig) -> None:
    with pytest.raises(InputError, match=part):
        replace(config, **change)


@pytest.mark.model
@pytest.mark.usefixtures("embedded_in_memory")
def test_a_tree_transcoder_of_the_embedded_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From the command line, in place of an MLP of SmolLM2."""
    folder = tmp_path / "run"
    train = ["train", "--site", "blocks.15.ln2.hook_normalized", "--target", "blocks.15.hook_mlp_out"]
    train += [
        "--tokens",
        "1500",
        "--epochs",
        "6",
        "--sae.layer-sizes",
        "64",
        "192",
        "--sae.k-per-layer",
        "8",
        "4",
    ]
    train += ["--optim.batch-size", "256", "--optim.lr", "2e-3", "--device", "cpu", "--out", str(folder)]
    assert cli.run(train) == 0
    measure = ["eval", str(folder), "--measures", "reconstruction,cross_entropy", "--tokens", "384"]
    assert cli.run(measure) == 0
    assert cli.run(["index", str(folder), "--tokens", "512"]) == 0
    assert cli.run(["show", str(folder)]) == 0
    run = RunFolder(folder)
    fve = Record.read(run.record("tree", "reconstruction")).value["fve"]
    losses = Record.read(run.record("tree", "cross_entropy")).value
    assert fve is not None
    assert 0.05 < fve < 1
    clean, spliced = losses["clean"], losses["spliced"]
    assert clean is not None
    assert spliced is not None
    assert clean < spliced < clean + 1
