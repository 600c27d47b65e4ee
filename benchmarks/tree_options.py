"""What each option of the Tree SAE gives: equal steps on the same activations, several seeds, with nulls.

    python -m benchmarks.tree_options STORE --out FOLDER [--only NAME,NAME] [--seeds 3] [--steps 400] [--table]

STORE is a folder of `saeforest harvest`. SAEs of 6,144 features and L0 32 train on all of it but the last 40,000
activations, on which they are measured. FOLDER keeps every SAE, and its values as JSON as soon as they are measured:
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
from saeforest.saes import SAE, SystemConfig, TreeConfig
from saeforest.saes.parents_from_data import FromDataConfig

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


def _variants() -> dict[str, SystemConfig]:
    """The paper's tree, each option by itself, and all together."""
    paper = PRESETS["demo"].sae
    assert isinstance(paper, TreeConfig)
    capacity = paper.allocation

    def data(earned: float, base: TreeConfig = paper, **more: Any) -> TreeConfig:
        rule = FromDataConfig(earned=earned, **more)
        return replace(base, allocation=replace(capacity, rule="data", reinitialize=True, from_data=rule))

    def from_root(earned: float, *, reinitialize: bool = True, **more: Any) -> TreeConfig:
        of = data(earned, replace(batch, layer_weights=0.02), **more)
        return replace(of, allocation=replace(of.allocation, start="root", reinitialize=reinitialize))

    closed = replace(paper, selection="closed")
    batch = replace(closed, budget="batch")
    best = data(0.3, replace(batch, layer_weights=0.1))
    return {
        "TopK": PRESETS["demo-topk"].sae,
        "BatchTopK": PRESETS["demo-batchtopk"].sae,
        "Tree SAE": paper,
        "parents from data": data(0.0),
        "edges earned (0.2)": data(0.2),
        "residual encoding": replace(paper, reads="residual"),
        "batch budget": replace(paper, budget="batch"),
        "early layers weighted 0.1": replace(paper, layer_weights=0.1),
        "no gate": replace(paper, gate="none"),
        "closed": closed,
        "closed, batch": batch,
        "closed, batch, parents from data": data(0.0, batch),
        "closed, batch, edges earned (0.3)": data(0.3, batch),
        "all: closed, batch, earned 0.3, weights 0.1": best,
        "all, weights 0.02": replace(best, layer_weights=0.02),
        "all, earned 0.2": data(0.2, replace(batch, layer_weights=0.1)),
        "all, features start at the root": replace(best, allocation=replace(best.allocation, start="root")),
        "root start, weights 0.02, earned 0.3": from_root(0.3),
        "root start, weights 0.02, earned 0.2": from_root(0.2),
        "root start, weights 0.02, earned 0.25": from_root(0.25),
        "root start, weights 0.02, earned 0.2, the dead keep their weights": from_root(
            0.2, reinitialize=False
        ),
        "root start, weights 0.02, earned 0.2, the dead to capacity": from_root(0.2, dead="capacity"),
        "all by layer: residual, batch budget, earned 0.2": data(
            0.2, replace(paper, reads="residual", budget="batch", layer_weights=0.1)
        ),
    }


VARIANTS = _variants()


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
                x, VARIANTS[name], steps=args.steps, optim=optim, seed=seed, out=folder / "run"
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
