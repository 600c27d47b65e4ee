"""What storing activations in 8 bits costs an SAE that is trained on them.

.venv/bin/python -m benchmarks.element STORE [--rows 200000] [--seeds 0 1]

The first rows of a store, as they are and in 8 bits, each train a TopK SAE of 2,048 features and k = 32 with the same
seeds. Both are measured on a later shard as it is. Prints the fraction of variance that 8 bits lose, and every FVE.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import saeforest
from saeforest.activations.reader import concatenated
from saeforest.activations.shards import from_8bit, to_8bit
from saeforest.activations.sources import StoredActivations, open_store

_MEASURED = 20_000


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("store", type=Path)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    args = parser.parse_args(argv)
    store = open_store(args.store)
    x = first_rows(store, args.rows)
    test = store.shard(len(store.shards) - 2).x[:_MEASURED].float()
    in_8bit = from_8bit(*to_8bit(x))
    print(f"8 bits lose {1 - fve(in_8bit.float(), x.float()):.2e} of the variance of {len(x):,} activations")
    for seed in args.seeds:
        for name, data in (("as harvested", x.float()), ("in 8 bits", in_8bit)):
            run = saeforest.train(
                data, "topk", layer_sizes=(2048,), k_per_layer=(32,), epochs=1, batch_size=2048, seed=seed
            )
            with torch.no_grad():
                found = fve(torch.cat([run.sae(part) for part in test.split(2048)]), test)
            line: dict[str, Any] = {"seed": seed, "data": name, "fve": round(found, 5)}
            print(json.dumps(line), flush=True)


def first_rows(store: StoredActivations, n: int) -> Tensor:
    """The first activations of a store."""
    parts = []
    for i in range(len(store.shards) - 2):
        parts.append(store.shard(i))
        if sum(map(len, parts)) >= n:
            break
    return concatenated(parts).x[:n]


def fve(found: Tensor, x: Tensor) -> float:
    """The fraction of the variance of `x` that `found` explains."""
    left = (x - found).double().square().sum()
    return 1 - float(left / (x - x.mean(0)).double().square().sum())


if __name__ == "__main__":
    main()
