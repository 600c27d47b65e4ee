"""Runs and records made up for tests of the report."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from saeforest.config import MemberConfig, OptimConfig, TrainConfig
from saeforest.measures import Record
from saeforest.report.load import load_runs
from saeforest.report.seed_groups import SeedGroup, seed_groups
from saeforest.run_folder import RunFolder
from saeforest.saes import (
    HSAEConfig,
    MatchingPursuitConfig,
    MatryoshkaConfig,
    ParentsConfig,
    SystemConfig,
    TopKConfig,
    TreeConfig,
)

#: The name of the SAE of a run that has no other.
ALONE = "alone"
TREE = TreeConfig(layer_sizes=(4, 12), k_per_layer=(3, 1))
TOPK = TopKConfig(layer_sizes=(16,), k_per_layer=(4,))
MATRYOSHKA = MatryoshkaConfig(layer_sizes=(4, 12), k_per_layer=(4,))
PURSUIT = MatchingPursuitConfig(layer_sizes=(16,), k_per_layer=(4,))
HSAE = HSAEConfig(layer_sizes=(4, 12), k_per_layer=(4, 4))
BASELINE = replace(HSAE, constraint=0.0, perturbation=0.0, hierarchy=ParentsConfig(updates="after"))

# name of a value -> the value, with half the width of its interval
Given = Mapping[str, float | tuple[float, float] | str]


def record(measure: str, values: Given, tokens: int = 1000, **detail: Any) -> Record:
    """A text instead of a number says why there is none."""
    value: dict[str, float | None] = {}
    interval: dict[str, Any] = {}
    null: dict[str, str] = {}
    for name, given in values.items():
        if isinstance(given, str):
            value[name], interval[name], null[name] = None, None, given
        elif isinstance(given, tuple):
            value[name], interval[name] = given[0], (given[0] - given[1], given[0] + given[1])
        else:
            value[name], interval[name] = given, None
    groups = {"model": "m", "tokens_read": tokens, "interval_method": "95% percentile bootstrap"}
    return Record(measure, value, interval, "fraction", tokens, groups, {"null": null, **detail})


def make_run(
    folder: Path,
    saes: Mapping[str, tuple[SystemConfig, int, Sequence[Record]]],
    logs: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
    **config: Any,
) -> Path:
    """A run folder with SAEs by name: system, seed, records. One by the name `ALONE` is the run's only SAE."""
    base = TrainConfig(
        model="gpt-tiny",
        tokens=4096,
        epochs=2,
        optim=OptimConfig(batch_size=64, precision="float32"),
        **config,
    )
    folder.mkdir(parents=True)
    if ALONE in saes:
        system, seed, _ = saes[ALONE]
        base = replace(base, sae=system, seed=seed)
    else:
        base = replace(base, saes={n: MemberConfig(s, base.optim, seed) for n, (s, seed, _) in saes.items()})
    run = RunFolder(folder)
    run.save_config(base)
    for name, (_, _, records) in saes.items():
        for made in records:
            place = run.record(name, made.measure)
            place.parent.mkdir(parents=True, exist_ok=True)
            made.write(place)
    for name, lines in (logs or {}).items():
        place = run.logs(name) / "log.jsonl"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def groups_in(
    folder: Path, saes: Mapping[str, tuple[SystemConfig, int, Sequence[Record]]]
) -> list[SeedGroup]:
    return seed_groups(load_runs([make_run(folder, saes)]))


def hierarchy(tree: float | None, mcs: float, half: float = 0.05, **detail: Any) -> Record:
    values: dict[str, Any] = {"mcs": (mcs, half), "mcs_unconditional": (mcs * 0.8, half)}
    values["tree"] = "flat" if tree is None else (tree, half)
    return record("hierarchy", values, **detail)


def sparsity(l0: float) -> Record:
    return record("sparsity", {"l0": l0})


LOG = [
    {"event": "harvest", "step": 0},
    {"step": 1, "tokens": 64, "dead": [0, 0]},
    {"event": "reallocation", "step": 5, "layer": 1, "moved": 3},
    {"event": "reallocation", "step": 6, "layer": 1, "moved": 0},
    {"step": 10, "tokens": 640, "dead": [1, 6]},
    {"event": "root_reset", "step": 15, "layer": 1, "moved": 2},
    {"step": 20, "tokens": 1280, "dead": [0, 3]},
]


HOW: dict[str, Any] = {
    "reading": "recommended",
    "positions": {"exclude_first": True},
    "data": "packaged",
    "split": "held_out",
    "tokens_read": 1000,
    "context": 128,
    "prepend_bos": False,
    "model_fingerprint": "xxh3:1",
    "lm_dtype": "float32",
    "config": {"parents": 100, "seed": 0, "judge": {"timeout": 1}},
    "probe": {"epochs": 5, "seed": 0},
    "judge": "a",
    "seed": 0,
    "sae": "sae/a",
    "forest": "its own",
    "version": "1",
    "key": "a",
    "batch": "16 windows",
}


def measured_as(made: Record, **how: Any) -> Record:
    return replace(made, settings={**made.settings, **HOW, **how})
