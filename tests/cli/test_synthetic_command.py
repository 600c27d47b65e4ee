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
    assert said.out.count("parents shuffled ") == len(found)
    assert said.out.count("    untrained ") == len(found)
    assert all(name in said.out for name in systems.split(","))
    assert "…" not in said.out, "it must fit a terminal of 100 columns"
    again = call("synthetic", "matryoshka", "--systems", "topk", *args, "--out", "again")
    assert again.status == 0
    assert json.loads(Path("again/recovery.json").read_text())["topk+mcs"] == found["topk+mcs"]


def test_a_generator_takes_settings_and_saes_other_layers_than_the_world(call: Call) -> None:
    few = ["--systems", "tree", "--seeds", "1", "--steps", "2", "--batch-size", "64", "--held-out", "200"]
    world = ["--world", "roots=2,branching=2,exclusive=False,parent_offset=0.5", "--layer-sizes", "5", "9"]
    assert call("synthetic", "tree", *few, *world, "--out", "found").status == 0
    found = json.loads(Path("found/recovery.json").read_text())
    assert (found["tree"]["features"]["median"], found["tree"]["latents"]["median"]) == (14, 14)
    asked = json.loads(Path("found/scores.json").read_text())["asked"]
    assert asked["world"] == {"roots": 2, "branching": 2, "exclusive": False, "parent_offset": 0.5}
    assert asked["config"]["layer_sizes"] == [5, 9]
    assert call("synthetic", "tree", *few, *world, "--out", "found").status == 0
    other = call("synthetic", "tree", *few, "--world", "roots=2", *world[2:], "--out", "found")
    assert other.status == 2
    assert "has results with world = " in other.err


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
        (["tree", "--world", "dept=2"], "--world dept: no setting of generator tree; did you mean depth?"),
        (["tree", "--world", "depth=2.5"], "--world depth=2.5: expected a whole number"),
        (["tree", "--world", "d=wide"], "--world d=wide: expected a whole number"),
        (["tree", "--world", "depth"], "--world depth=: expected a whole number"),
        (["tree", "--world", "p_root=nan"], "--world p_root=nan: expected a number"),
        (["tree", "--world", "exclusive=perhaps"], "--world exclusive=perhaps: expected true or false"),
        (["mp", "--world", "depth=2"], "--world depth: no setting of generator mp; expected correlation"),
        (["matryoshka", "--world", "depth=2"], "no setting of generator matryoshka; it has none"),
        (["tree", "--layer-sizes", "0"], "layer_sizes = [0]: expected one or more numbers above 0"),
        (["tree", "--layer-sizes", "9", "--size", "2"], "size = 2.0 and layer_sizes: give only one"),
        ([], "GENERATOR"),
    ],
)
def test_synthetic_mistakes(args: list[str], names: str, fails: Callable[..., str]) -> None:
    assert names in fails("synthetic", *args)
