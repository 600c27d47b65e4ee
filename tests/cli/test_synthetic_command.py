"""`saeforest synthetic`, end to end with few steps."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from saeforest.worlds.nulls import NULLED

from .said import Call


def test_synthetic_scores_every_system_for_every_seed(call: Call) -> None:
    """Some steps only: that they run, and what is written. What they recover is in docs/results/synthetic.md."""
    systems = "tree,tree-any-parent,hsae,hsae-baseline,topk,batchtopk,matryoshka,jumprelu,matching_pursuit"
    args = ["--seeds", "2", "--seed", "3", "--steps", "12", "--batch-size", "64", "--held-out", "500"]
    said = call("synthetic", "matryoshka", "--systems", systems, *args, "--out", "found")
    assert said.status == 0, said.err
    found = json.loads(Path("found/recovery.json").read_text())
    assert set(systems.split(",")) <= set(found)
    assert {"topk+coverage", "topk+mcs", "topk+reconstruction"} <= set(found)
    for name, scores in found.items():
        assert {"fve", "l0", "mcc_truth", "edge_f1", "ancestor_f1", "absorption", "hierarchy"} <= set(
            scores
        ), name
        for score in scores.values():
            assert len(score["values"]) == 2
            known = sorted(v for v in score["values"] if v is not None)
            assert score["median"] == (pytest.approx(sum(known) / len(known)) if known else None)
    assert all(f"{score}_{null}" in found["tree"] for score in NULLED for null in ("shuffled", "untrained"))
    assert found["tree"]["coverage_min"]["median"] == 1
    assert "null F1" in said.out
    assert all(name in said.out for name in systems.split(","))
    assert "…" not in said.out, "it must fit a terminal of 100 columns"
    again = call("synthetic", "matryoshka", "--systems", "topk", *args, "--out", "again")
    assert again.status == 0
    assert json.loads(Path("again/recovery.json").read_text())["topk+mcs"] == found["topk+mcs"]


@pytest.mark.parametrize(
    ("args", "names"),
    [
        (["nowhere"], "generator 'nowhere': expected one of matryoshka"),
        (["matryoshkas"], "did you mean matryoshka?"),
        (["tree", "--systems", "tree,forest"], "system 'forest': expected some of tree"),
        (["tree", "--systems", "tree,tree"], "expected different names"),
        (["tree", "--systems", ","], "expected different names"),
        (["tree", "--seeds", "0"], "--seeds 0"),
        (["tree", "--steps", "0"], "steps = 0"),
        (["tree", "--size", "-1"], "size = -1"),
        (["tree", "--l0", "-3"], "l0 = -3"),
        (
            ["tree", "--size", "0.1", "--systems", "topk,tree"],
            "system tree with size 0.1 and l0 None: sae.k_per",
        ),
        ([], "GENERATOR"),
    ],
)
def test_synthetic_mistakes(args: list[str], names: str, fails: Callable[..., str]) -> None:
    assert names in fails("synthetic", *args)
