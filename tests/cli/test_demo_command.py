"""`saeforest demo` on the embedded model."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import saeforest
from browser_cases import chromium
from explore_page.real_server import every_view_opens

from .said import FAST, FINISHED, Call


@pytest.mark.model
@pytest.mark.usefixtures("embedded_in_memory")
def test_the_demo_on_the_embedded_model(call: Call, request: pytest.FixtureRequest) -> None:
    said = call("demo", "--out", "demo", "--tokens", "2500", "--epochs", "8", "--eval-tokens", "640")
    assert said.status == 0, said.err
    sae = saeforest.load("demo/sae")
    assert sae.d_in == 576
    assert sae.forest.layer_sizes == (384, 768, 2304, 2688)
    records = {p.stem: json.loads(p.read_text()) for p in Path("demo/eval").iterdir()}
    assert set(records) == FAST
    coverage = records["coverage"]["value"]
    assert coverage["min"] == 1
    assert coverage["edges_measured"] > 500
    assert 0.3 < records["reconstruction"]["value"]["fve"] < 1
    assert "fve" in said.out
    assert "Next:" in said.out
    assert "\x1b" not in said.out
    assert re.search(r"famil(y|ies)", said.out)
    assert {p.name for p in Path("demo").iterdir()} - {"allocations.jsonl"} == (
        FINISHED - {"allocations.jsonl"} | {"eval", "index"}
    )
    again = call(
        "demo", "--out", "demo", "--tokens", "2500", "--epochs", "8", "--eval-tokens", "640", "--json"
    )
    assert again.status == 0, again.err
    found = json.loads(again.out)
    assert (found["run"], found["sae"], found["seconds"]) == ("demo", "tree", None)
    assert {name: record["value"] for name, record in found["records"].items()} == {
        name: record["value"] for name, record in records.items()
    }
    assert found["overview"]["n_features"] == 6144
    assert "with the parents shuffled" in found["nulls"]
    shown = call("show", "demo", 400)
    assert shown.status == 0
    assert "400" in shown.out
    if chromium():  # otherwise the tests of the page say that there is none
        every_view_opens(Path("demo"), request.getfixturevalue("browser"))
