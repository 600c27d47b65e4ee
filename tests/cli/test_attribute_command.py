"""`saeforest attribute`, end to end."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from saeforest.interventions import Where
from saeforest.interventions.contributions import of_prompt, question
from saeforest.run_folder import RunFolder
from saeforest.session import open_reader

from .said import Call

PROMPT = "the cat sat"


def test_a_prediction(finished_run: Path, call: Call) -> None:
    options = ["attribute", finished_run, "-p", PROMPT, "--target", "a", "--against", "t", "-n", 4]
    said = call(*options, "--method", "integrated", "--steps", 3, "--json")
    assert said.status == 0, said.err
    found = json.loads(said.out)
    config, sae = RunFolder(finished_run).load()
    reader = open_reader(config)
    where = Where("all", reader.exclude_first, reader.exclude_special, reader.max_norm)
    asked = question(reader.lm, sae, PROMPT, "a", "t")
    expected = of_prompt(reader.lm, sae, asked, where, method="integrated", top=4, steps=3).to_json()
    assert found.items() >= json.loads(json.dumps(expected)).items()
    assert (found["sae"], found["prompt"], found["target"], found["against"]) == ("tree", PROMPT, "a", "t")
    logits = reader.lm.logits(asked.ids)[0, -1].double()
    assert found["metric"] == pytest.approx(float(logits[asked.target] - logits[asked.against]), abs=1e-5)
    assert len(found["features"]) == 4
    assert len(found["edges"]) > 0

    said = call(*options)
    assert (said.status, said.err) == (0, "")
    assert f"logit of 'a' less that of 't': {found['metric']:.3f}" in said.out
    assert "ablating one of these changes the metric by" in said.out
    assert list(Path.cwd().iterdir()) == []


def test_held_out_texts(finished_run: Path, call: Call) -> None:
    said = call("attribute", finished_run, "--texts", 2, "--length", 8, "-n", 2, "--json")
    assert said.status == 0, said.err
    found = json.loads(said.out)
    assert (found["texts"], found["length"]) == (2, 8)
    assert found["metric"] > 0
    assert all(one["places"] == [] for one in found["features"])
    assert found["of_features"]["n"] == 4


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ([], "expected --prompt or --texts"),
        (["-p", "a", "--texts", 2], "not both"),
        (["--texts", 0], "--texts 0"),
        (["--texts", 2, "--target", "a"], "--target and --against: of a prompt"),
        (["--texts", 2, "--length", 1], "--length 1: expected 2 or more"),
        (["--texts", 2, "--length", 999], "--length 999: expected at most 32"),
        (["-p", "a", "--target", "abc"], "target 'abc': expected one token, but it is 3 ('a', 'b', 'c')"),
        (["-p", "a", "--target", ""], "target '': expected one token, but it is 0"),
        (["-p", "a", "--target", "b", "--against", "b"], "against 'b': the same token as the target"),
        (["-p", "a", "--top", 0], "--top 0"),
        (["-p", "a", "--steps", 0], "--steps 0"),
        (["-p", "a", "--method", "other"], "gradient, integrated"),
    ],
)
def test_what_it_refuses(
    options: list[object], part: str, finished_run: Path, fails: Callable[..., str]
) -> None:
    assert part in fails("attribute", finished_run, *options)


def test_without_a_target_it_is_the_likeliest_token(finished_run: Path, call: Call) -> None:
    said = call("attribute", finished_run, "-p", PROMPT, "-n", 1, "--json")
    found = json.loads(said.out)
    lm = open_reader(RunFolder(finished_run).load()[0]).lm
    ids = torch.tensor([lm.tokenizer(PROMPT, add_special_tokens=False)["input_ids"]])
    p = lm.logits(ids)[0, -1].double().log_softmax(-1)
    assert found["target"] == lm.tokenizer.decode([int(p.argmax())])
    assert found["against"] is None
    assert found["metric"] == pytest.approx(float(p.max()), abs=1e-5)
