"""`--json`: one document on the standard output, with the keys that docs/command-line.md lists."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from saeforest.presets import PRESETS

from .said import FAST, Call, Said


def document(said: Said) -> Any:
    assert said.status == 0, said.err
    assert said.out.isascii()
    return json.loads(said.out)


def test_a_run_from_training_to_its_report(config_file: Path, call: Call) -> None:
    """train (dry, in earnest, and complete already), eval, index, show, verify, compare."""
    plan = document(call("train", "--config", config_file, "--dry-run", "--json"))
    assert plan["d_in"] == 16
    assert plan["n_steps"] > 0
    assert plan["memory"]["peak"] > 0
    assert list(Path.cwd().iterdir()) == []

    trained = document(call("train", "--config", config_file, "--out", "run", "--json"))
    assert trained == document(call("train", "--config", config_file, "--out", "run", "--json"))
    assert trained["run"] == "run"
    (sae,) = trained["saes"].values()
    assert (sae["folder"], sae["architecture"], sae["features"]) == ("run/sae", "tree", 112)
    log = [json.loads(line) for line in Path("run/log.jsonl").read_text().splitlines()]
    assert sae["last_step"] == [line for line in log if "event" not in line][-1]

    found = document(call("eval", "run", "--tokens", 1600, "--ce-tokens", 320, "--json"))
    (records,) = found["saes"].values()
    assert set(records) == FAST
    for name, record in records.items():
        kept = json.loads(Path(f"run/eval/{name}.json").read_text())
        assert record.items() <= kept.items()

    made = document(call("index", "run", "--tokens", 2000, "--json"))
    assert (made["folder"], made["sae"]) == ("run/index", "tree")
    assert 0 < made["about"]["n_tokens"] <= 2000
    families = document(call("show", "run", "--json", "-n", 2))
    assert families["overview"]["n_features"] == 112
    assert len(families["families"]) <= 2
    assert document(call("show", "run", 8, "--json"))["feature"]["id"] == 8

    checked = document(call("verify", "run", "--json"))
    assert checked["sound"]
    assert "run/sae/sae_weights.safetensors" in {file["path"] for file in checked["files"]}
    Path("run/eval/dead.json").write_text("{")
    said = call("verify", "run", "--json")
    assert said.status == 1
    (bad,) = [file for file in json.loads(said.out)["files"] if not file["sound"]]
    assert bad["path"] == "run/eval/dead.json"
    assert bad["problem"]
    assert bad["remedy"]
    Path("run/eval/dead.json").unlink()

    report = document(call("compare", "run", "--out", "report", "--json"))
    for path in (report["html"], report["markdown"], report["json"], *report["figures"]):
        assert Path(path).is_file(), path


def test_activations_a_forest_and_known_trees(config_file: Path, call: Call) -> None:
    """harvest, infer, synthetic."""
    from saeforest.config import load_config

    config = load_config(config_file)
    options = ["--model", config.model, "--site", config.site, "--data", config.data, "--tokens", 3072]
    options += ["--text.context", 32, "--text.held-out", 0.2, "--lm.dtype", "float32", "--device", "cpu"]
    store = document(call("harvest", *options, "--out", "store", "--json"))
    assert (store["folder"], store["width"]) == ("store", 16)
    assert 0 < store["activations"] <= store["tokens"] <= 3072

    sizes = ["--sae.layer-sizes", "32", "--sae.k-per-layer", "4"]
    flat = ["--architecture", "topk", *sizes, "--tokens", "1024", "--out", "flat"]
    assert call("train", "--config", config_file, *flat).status == 0
    forest = document(call("infer", "flat", "--tokens", 1000, "--json"))
    assert (forest["folder"], forest["features"]) == ("flat/forest", 32)
    assert Path(forest["folder"]).is_dir()
    assert forest["settings"]["method"] == "reconstruction"

    few = ["--seeds", "1", "--steps", "5", "--batch-size", "64", "--held-out", "500", "--out", "found"]
    scores = document(call("synthetic", "matryoshka", "--systems", "topk", *few, "--json"))
    assert scores["seeds"] == [0]
    assert scores["systems"] == json.loads(Path(scores["file"]).read_text())


def test_presets(call: Call) -> None:
    found = document(call("train", "--list-presets", "--json"))
    assert {about["name"] for about in found} == set(PRESETS)
    assert {"architecture", "layer_sizes", "k_per_layer", "model", "site", "data", "tokens"} < set(found[0])
    listed = call("train", "--list-presets").out
    assert all(f"  {name} " in listed for name in PRESETS)


def test_an_error_is_a_line_all_the_same(call: Call) -> None:
    for args in (["eval", "nowhere"], ["show", "nowhere"], ["train", "--tokens", "x"], ["verify", "nowhere"]):
        said = call(*args, "--json")
        assert (said.status, said.out) == (2, "")
        assert len(said.err.splitlines()) == 1
