"""What each option of the Tree SAE gives: equal steps on the same activations, several seeds, with nulls.

    python -m benchmarks.tree_options STORE --out FOLDER [--only "NAME;NAME"] [--seeds 3] [--steps 400]
        [--features 6144] [--table]

STORE is a folder of `saeforest harvest`. SAEs of L0 32 train on all of it but the last 40,000 activations, on which
they are measured. FOLDER keeps every SAE, and its values as JSON as soon as they are measured:
what is there already is not done again. `--table` prints what FOLDER holds.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import saeforest
from saeforest.activations.sources import open_store
from saeforest.config import OptimConfig
from saeforest.presets import PRESETS
from saeforest.saes import SAE, FromDataConfig, SystemConfig, TreeConfig

_HELD_OUT = 40_000
_FLAT = "reconstruction,sparsity,dead"
_WITH_FOREST = _FLAT + ",coverage,edges"
#: Title of each column, and the value it shows.
COLUMNS = {
    "FVE": "reconstruction.fve",
    "L0": "sparsity.l0",
    "dead": "dead.dead_share",
    "under a parent": "edges.with_parent",
    "without the gate": "coverage.ungated",
    "shuffled": "coverage.ungated_shuffled",
    "untrained": "coverage.ungated_untrained",
    "above 0.5": "coverage.ungated_above_half",
    "lift": "coverage.lift",
    "copies": "edges.copies",
}


def alone(paper: TreeConfig) -> dict[str, TreeConfig]:
    """The paper's tree with one change at a time."""

    def moves(**settings: Any) -> TreeConfig:
        return replace(paper, allocation=replace(paper.allocation, **settings))

    return {
        "Tree SAE": paper,
        "no gate": replace(paper, gate="none"),
        "the loss of the whole alone": replace(paper, layer_weights=0.0),
        "no reallocation": moves(first=0),
        "no root reset": moves(root_reset_at=0.0, until=0.512),
        "neither": moves(first=0, root_reset_at=0.0),
        "early layers weighted 0.02": replace(paper, layer_weights=0.02),
        "residual encoding": replace(paper, reads="residual"),
        "batch below the roots": replace(paper, budget="batch"),
        "closed": replace(paper, selection="closed"),
        "closed, batch": replace(paper, selection="closed", budget="batch"),
        "parents from data": parents_from_data(paper, 0.0),
        "parents from data, by lift": parents_from_data(paper, 0.0, score="log_lift"),
        "parents from data, earned": parents_from_data(paper, 0.28),
        "silence 0.03": replace(paper, silence=0.03),
        "root reset at 0.9": moves(root_reset_at=0.9),
        "every dead child may move": moves(count="living"),
        "capacity by instances": moves(capacity="per_instance"),
        "moved children start anew": moves(reinitialize=True),
    }


def parents_from_data(base: TreeConfig, earned: float, **more: Any) -> TreeConfig:
    """The tree with parents from data, of which `more` are the other settings."""
    rule = FromDataConfig(earned=earned, **more)
    return replace(base, allocation=replace(base.allocation, rule="data", reinitialize=True, from_data=rule))


def _variants() -> dict[str, SystemConfig]:
    """The paper's tree, some options by themselves, and what is best together with others."""
    paper, best = PRESETS["demo-tree-paper"].sae, PRESETS["demo"].sae
    assert isinstance(paper, TreeConfig)
    assert isinstance(best, TreeConfig)

    data = parents_from_data
    # Features stay in the layers in which they were drawn, as in the demo until 2026-12-01.
    in_place = data(best, 0.28)

    def random_start(of: TreeConfig) -> TreeConfig:
        return replace(of, allocation=replace(of.allocation, start="random"))

    keep = replace(data(best, 0.2), allocation=replace(data(best, 0.2).allocation, reinitialize=False))
    residual = replace(paper, reads="residual", budget="batch", layer_weights=0.1)
    return {
        "TopK": PRESETS["demo-topk"].sae,
        "BatchTopK": PRESETS["demo-batchtopk"].sae,
        "Matching Pursuit": PRESETS["demo-matching-pursuit"].sae,
        **alone(paper),
        "all, weights 0.1, random start, earned 0.2": random_start(
            data(replace(in_place, layer_weights=0.1), 0.2)
        ),
        "all, weights 0.1, random start": random_start(replace(in_place, layer_weights=0.1)),
        "all, weights 0.1": replace(in_place, layer_weights=0.1),
        "all, random start": random_start(in_place),
        "all (the demo)": best,
        "all, in place": in_place,
        "all, by layer": replace(in_place, selection="layer"),
        "all, by token": replace(in_place, budget="token"),
        "all, weights 1": replace(in_place, layer_weights=1.0),
        "all, a beam of 1": replace(in_place, beam=1.0),
        "all, a beam of 4": replace(in_place, beam=4.0),
        "all, no hysteresis": data(best, 0.28, hysteresis=0.0),
        "all, by lift": data(best, 0.28, score="log_lift"),
        "all, detectors share the batch": data(best, 0.28, detectors="batch"),
        "all, features change layers": data(best, 0.28, promote=1.5),
        "all, as on known trees": data(best, 0.28, score="log_lift", detectors="batch", promote=1.5),
        "all, earned 0.3": data(best, 0.3),
        "all, earned 0.2": data(best, 0.2),
        "all, earned 0.2, the dead keep their weights": keep,
        "all, earned 0.2, the dead to parents by capacity": data(best, 0.2, dead="capacity"),
        "by layer: residual encoding, batch, earned 0.2, weights 0.1": data(residual, 0.2),
        "all, silence 0.03": replace(in_place, silence=0.03),
        "all, silence 0.3": replace(in_place, silence=0.3),
    }


VARIANTS = _variants()


def resized(config: SystemConfig, features: int) -> SystemConfig:
    """The same system with so many features, in layers of the same shares."""
    total = sum(config.layer_sizes)
    return replace(config, layer_sizes=tuple(n * features // total for n in config.layer_sizes))


def activations(store: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Those to train on, and the last ones, to measure on."""
    blocks = open_store(store)
    x = torch.cat([blocks.shard(i).x for i in range(len(blocks.shards))])
    return x[:-_HELD_OUT], x[-_HELD_OUT:].float()


def values(sae: SAE, x: torch.Tensor) -> dict[str, Any]:
    """All values of the measures, by measure and name."""
    records = saeforest.measure(sae, x, _WITH_FOREST if sae.has_forest else _FLAT)
    return {f"{m}.{name}": value for m, record in records.items() for name, value in record.value.items()}


def run(args: argparse.Namespace, names: list[str]) -> None:
    x, held_out = activations(args.store)
    optim = OptimConfig(lr=args.lr, batch_size=args.batch, warmup=0.02, decay="linear")
    for seed in range(args.first_seed, args.first_seed + args.seeds):
        for name in names:
            folder = args.out / f"{name} {seed}"
            done = folder / "values.json"
            if done.is_file() and not args.measure_again:
                continue
            start = time.perf_counter()
            trained = saeforest.train(
                x,
                resized(VARIANTS[name], args.features),
                steps=args.steps,
                optim=optim,
                seed=seed,
                out=folder / "run",
            )
            seconds = time.perf_counter() - start
            found = {"variant": name, "seed": seed, "seconds": seconds, **values(trained.sae, held_out)}
            done.write_text(json.dumps(found, indent=1))
            print(
                name,
                seed,
                round(seconds),
                *(f"{k} {_cell([found.get(v)])}" for k, v in COLUMNS.items()),
                flush=True,
            )


def table(folder: Path) -> str:
    """The mean over seeds, with the range, in Markdown."""
    lines = [json.loads(path.read_text()) for path in sorted(folder.glob("*/values.json"))]
    out = ["| | seeds | " + " | ".join(COLUMNS) + " |", "|---|---:|" + "---:|" * len(COLUMNS)]
    for name in VARIANTS:
        of_seeds = [line for line in lines if line["variant"] == name]
        if of_seeds:
            cells = [_cell([line.get(key) for line in of_seeds]) for key in COLUMNS.values()]
            out.append(f"| {name} | {len(of_seeds)} | " + " | ".join(cells) + " |")
    return "\n".join(out)


def _cell(found: list[float | None]) -> str:
    known = [value for value in found if value is not None]
    if not known:
        return ""
    spread = f" ({min(known):.3f} to {max(known):.3f})" if len(known) > 1 else ""
    return f"{np.mean(known):.3f}{spread}"


def main() -> None:
    parser = argparse.ArgumentParser(description="The Tree SAE's options, side by side.")
    parser.add_argument("store", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", help="names of variants, separated by semicolons")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--features", type=int, default=6_144)
    parser.add_argument("--batch", type=int, default=2048)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--measure-again", action="store_true", help="measure SAEs that are there once more")
    parser.add_argument("--table", action="store_true", help="print the table of --out, and train nothing")
    args = parser.parse_args()
    if not args.table:
        run(args, args.only.split(";") if args.only else list(VARIANTS))
    print(table(args.out))


if __name__ == "__main__":
    main()
