"""`saeforest steer`: a prompt continued twice, and a steering file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from saeforest.activations import ActivationReader
from saeforest.interventions import set_to
from saeforest.interventions.side_by_side import side_by_side
from saeforest.run_folder import RunFolder
from saeforest.session import open_reader

from .said import Call

PROMPT = "the cat sat on the red moon"


def strongest(run: Path) -> int:
    """A feature that is active on the prompt."""
    config, sae = RunFolder(run).load()
    reader: ActivationReader = open_reader(config)
    ids = torch.tensor([reader.lm.tokenizer(PROMPT, add_special_tokens=False)["input_ids"]])
    return int(sae.encode(reader.lm.activations(ids, reader.site)[0, 1:]).dense(sae.d_sae).sum(0).argmax())


def test_texts_side_by_side(finished_run: Path, call: Call) -> None:
    f = strongest(finished_run)
    options = ["steer", finished_run, "--feature", f, "--set", 30, "--tokens", 8, "--prompt", PROMPT]
    said = call(*options, "--json")
    assert said.status == 0, said.err
    found = json.loads(said.out)
    config, sae = RunFolder(finished_run).load()
    expected = side_by_side(open_reader(config).lm, sae, [set_to(f, 30)], PROMPT, n_tokens=8)
    assert found.items() >= json.loads(json.dumps(expected.to_json())).items()
    assert (found["site"], found["sae"], found["edit"]["features"]) == (config.site, "tree", [f])
    assert found["clean"] != found["steered"]

    said = call(*options)
    assert said.status == 0, said.err
    assert PROMPT in said.out
    assert f"KL {found['kl']:.4f} nats" in said.out
    assert f"{found['changed']} of {found['read']} positions" in said.out
    first = found["next"][0]
    assert f"{first['steered'] - first['clean']:+.4f}" in said.out
    assert said.err == ""
    assert list(Path.cwd().iterdir()) == []


def test_selections_and_operations(finished_run: Path, call: Call) -> None:
    _, sae = RunFolder(finished_run).load()
    forest = sae.forest
    parent = int(forest.n_children.argmax())
    child = forest.children(parent)[0]

    def edit(*options: object) -> dict[str, object]:
        said = call("steer", finished_run, "--prompt", PROMPT, "--tokens", 1, "--json", *options)
        assert said.status == 0, said.err
        return json.loads(said.out)["edit"]

    assert edit("-f", parent, "--subtree", "--scale", 4) == {
        "features": sorted(forest.subtree(parent)), "factor": 4.0, "plus": 0.0, "where_active": False
    }  # fmt: skip
    assert edit("-f", child, "--siblings", "--ablate")["features"] == forest.siblings(child)
    below = sorted({g for f in forest.siblings(child) for g in forest.subtree(f)})
    assert edit("-f", child, "--siblings", "--subtree", "--add", -1)["features"] == below
    clamped = edit("--layer", 1, "--clamp", 0, 2)
    assert (clamped["features"], clamped["low"], clamped["high"]) == (list(forest.in_layer(1)), 0, 2)
    assert edit("-f", 3, 5, "--ablate", "--at", "2:5", "--no-error", "--open")["features"] == [3, 5]


def test_a_feature_that_is_silent_is_pointed_out(finished_run: Path, call: Call) -> None:
    config, sae = RunFolder(finished_run).load()
    lm = open_reader(config).lm
    ids = torch.tensor([lm.tokenizer(PROMPT, add_special_tokens=False)["input_ids"]])
    active = sae.encode(lm.activations(ids, config.site)).dense(sae.d_sae).sum((0, 1))
    silent = int((active == 0).nonzero()[0])
    said = call("steer", finished_run, "-f", silent, "--scale", 9, "-n", 1, "-p", PROMPT)
    assert said.status == 0
    assert "values changed at 0 of" in said.out
    assert "the features are silent on the prompt" in said.err


def test_a_steering_file(finished_run: Path, call: Call) -> None:
    said = call(
        "steer", finished_run, "-f", 3, "--add", 2, "--export", "steer.pt", "--prompt", PROMPT, "--json"
    )
    assert said.status == 0, said.err
    assert json.loads(said.out)["hookpoint"] == "layers.1"
    assert set(torch.load("steer.pt", weights_only=True)) == {"layers.1"}
    again = call("steer", finished_run, "-f", 3, "--add", 2, "--export", "steer.pt", "--prompt", PROMPT)
    assert again.status == 2
    assert "steer.pt: exists" in again.err
    assert (
        call(
            "steer", finished_run, "-f", 3, "--add", 2, "--export", "steer.pt", "-p", PROMPT, "--force"
        ).status
        == 0
    )


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (["-f", 1, "--scale", 2], "--prompt: expected some text"),
        (["-f", 1, "-p", "a"], "expected one of --scale, --set, --add, --clamp, --ablate"),
        (["-f", 1, "-p", "a", "--scale", 2, "--ablate"], "not 2 of them"),
        (["-p", "a", "--scale", 2], "expected --feature or --layer"),
        (["-f", 1, "--layer", 1, "-p", "a", "--scale", 2], "not both"),
        (["--layer", 1, "--subtree", "-p", "a", "--scale", 2], "--layer: all features"),
        (["--layer", 9, "-p", "a", "--scale", 2], "layer 9: expected 0 to 2"),
        (["-f", 112, "-p", "a", "--scale", 2], "feature 112: expected 0 to 111"),
        (["-f", 112, "--subtree", "-p", "a", "--scale", 2], "feature 112"),
        (["-f", 1, "-p", "a", "--scale", 2, "--at", "here"], "--at here: expected all, prompt"),
        (["-f", 1, "-p", "a", "--scale", 2, "--at", ":"], "--at :"),
        (["-f", 1, "-p", "a", "--scale", "inf"], "factor = inf"),
        (["-f", 1, "-p", "a", "--clamp", 2, 1], "low = 2.0, high = 1.0"),
        (["-f", 1, "-p", "a", "--scale", 2, "--tokens", 0], "--tokens 0"),
        (["-f", 1, "-p", "a", "--scale", 2, "--export", "x.pt"], "expected an edit by add"),
        (["-f", 1, "-p", "a", "--add", 2, "--export", "x.csv"], "ends with .pt"),
        (["-f", 1, "--add", 2, "--export", "x.pt"], "prompt: this SAE normalizes every activation"),
    ],
)
def test_what_it_refuses(
    options: list[object], part: str, finished_run: Path, fails: Callable[..., str]
) -> None:
    assert part in fails("steer", finished_run, *options)
