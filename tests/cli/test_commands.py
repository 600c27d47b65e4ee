"""What a finished run goes through, from text to the terminal, end to end on a tiny model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import saeforest
from saeforest.activations.sources import open_store
from saeforest.config import load_config

from .said import FAST, FINISHED, Call


def test_from_text_to_the_terminal(config_file: Path, call: Call, tiny_text: Path) -> None:
    """train, eval, index, show, harvest, train on what was harvested, eval."""
    said = call("train", "--config", config_file, "--out", "run")
    assert said.status == 0
    assert " show run FEATURE" in said.out
    assert {p.name for p in Path("run").iterdir()} == FINISHED
    sae = saeforest.load("run/sae")
    assert sae.forest.layer_sizes == (8, 40, 64)
    x = torch.randn(5, 16)
    assert sae(x).shape == x.shape
    assert sae.encode(x).ids.shape == (5, 7)

    said = call("eval", "run", "--tokens", "1600", "--ce-tokens", "320")
    assert said.status == 0, said.err
    check_records(Path("run/eval"), data=str(tiny_text))
    assert "fve" in said.out

    assert call("index", "run", "--tokens", "2000").status == 0
    families = call("show", "run")
    assert families.status == 0
    assert families.err == ""
    assert len(families.out) > 20
    for feature in (0, 8, 111):
        shown = call("show", "run", feature)
        assert shown.status == 0
        assert str(feature) in shown.out
        assert "\x1b" not in shown.out + families.out

    config = load_config(config_file)
    options = ["--model", config.model, "--site", config.site, "--data", config.data, "--tokens", 3072]
    options += ["--text.context", 32, "--text.held-out", 0.2, "--lm.dtype", "float32", "--device", "cpu"]
    said = call("harvest", *options, "--out", "store")
    assert said.status == 0
    store = open_store(Path("store"))
    assert said.out.startswith(f"{store.n_rows:,} activations in store")
    again = call("harvest", *options, "--out", "store")
    assert (again.status, again.out.splitlines()[0]) == (0, said.out.splitlines()[0])
    assert "store: this harvest is complete; nothing is left to do" in again.err
    assert call("harvest", *options, "--seed", "1", "--data-seed", "7", "--out", "store").status == 2

    assert call("train", "--config", config_file, "--data", "store", "--out", "second").status == 0
    assert {p.name for p in Path("second").iterdir()} == FINISHED
    said = call("eval", "second", "--tokens", "1600", "--ce-tokens", "320")
    assert said.status == 0, said.err
    check_records(Path("second/eval"))
    assert {p.name for p in Path.cwd().iterdir()} == {"run", "second", "store"}


def check_records(folder: Path, data: str | None = None) -> None:
    assert {p.stem for p in folder.iterdir()} == FAST
    found = {p.stem: json.loads(p.read_text()) for p in folder.iterdir()}
    for name, record in found.items():
        assert {"measure", "value", "interval", "unit", "tokens", "settings"} <= set(record)
        assert record["measure"] == name
        assert record["value"]
        assert record["interval"].keys() == record["value"].keys()
        assert 0 < record["tokens"] <= 1600
        assert record["settings"]
        for value, interval in zip(record["value"].values(), record["interval"].values(), strict=True):
            if value is not None and interval is not None:
                assert interval[0] <= interval[1]
    assert {"fve", "fve_legacy"} <= set(found["reconstruction"]["value"])
    assert {"clean", "spliced", "ablated", "ce_loss_score"} <= set(found["cross_entropy"]["value"])
    assert 0 < found["reconstruction"]["value"]["fve"] < 1
    # The gate: a child fires only where its parent does.
    assert found["coverage"]["value"]["edges_measured"] > 5
    assert found["coverage"]["value"]["min"] == 1
    if data:
        assert data in json.dumps(found["reconstruction"]["settings"])


def test_show_makes_a_missing_index_once(a_run: Path, call: Call) -> None:
    said = call("show", a_run, 3)
    assert said.status == 0
    assert "has no index yet; making it, once" in said.err
    assert (a_run / "index").is_dir()
    assert call("show", a_run, 3).err == ""


@pytest.mark.parametrize("feature", ["112", "-1", "1000000"])
def test_a_feature_out_of_range(feature: str, finished_run: Path, fails: Callable[..., str]) -> None:
    assert feature in fails("show", finished_run, feature)
    assert not (finished_run / "index").exists()
