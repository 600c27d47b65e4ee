"""`--json`: one document on the standard output, with the keys that docs/command-line.md lists."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from saeforest import cli
from saeforest.cli.commands import COMMANDS, Command
from saeforest.cli.completion import options_of_all
from saeforest.output import note, results, say, say_json
from saeforest.presets import PRESETS

from .said import FAST, Call, Said

PAGE = Path(__file__).parents[2] / "docs/command-line.md"


def document(said: Said) -> Any:
    assert said.status == 0, said.err
    assert said.out.isascii()
    return json.loads(said.out)


def test_every_command_has_it() -> None:
    """What it prints then is one document, because `cli.run` sees to it."""
    options = options_of_all()
    _, _, keys = PAGE.read_text().partition("## Results as JSON")
    for command in COMMANDS:
        flags = {flag for option in options[command] for flag in option.flags}
        assert "--json" in flags, command
        assert re.search(rf"^\| `{command}\b", keys, re.MULTILINE), f"{PAGE.name} lists the keys of {command}"


def given(function: Callable[[Sequence[str]], int | None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes a function the command `show`."""
    monkeypatch.setattr(Command, "load", lambda self: function)


def test_all_else_goes_to_the_standard_error(monkeypatch: pytest.MonkeyPatch, call: Call) -> None:
    def command(argv: Sequence[str]) -> int:
        say("a line")
        print("of a library")
        results().print("a table")
        note("a note")
        say_json({"at": "last"})
        sys.stdout.write("more\n")
        return 1

    given(command, monkeypatch)
    assert call("show", "--json") == Said(
        1, '{\n  "at": "last"\n}\n', "a line\nof a library\na table\na note\nmore\n"
    )
    plain = call("show")
    assert plain.out.splitlines()[:3] == ["a line", "of a library", "a table"]


@pytest.mark.parametrize("n", [0, 2])
def test_a_command_that_prints_none_or_two_is_an_error_of_ours(
    n: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def command(argv: Sequence[str]) -> None:
        for _ in range(n):
            say_json({})

    given(command, monkeypatch)
    with pytest.raises(RuntimeError, match="saeforest show --json: one JSON document"):
        cli.run(["show", "--json"])


def test_help_is_no_document(call: Call) -> None:
    said = call("show", "--json", "--help")
    assert (said.status, said.err) == (0, "")
    assert said.out.startswith("usage: saeforest show")


def test_a_document_that_nobody_reads_is_output_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as pipe:
        monkeypatch.setattr("sys.stdout", pipe)
        given(lambda argv: say_json({}), monkeypatch)
        assert cli.run(["show", "--json"]) == 1


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
    assert "with the parents shuffled" in families["nulls"]
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
