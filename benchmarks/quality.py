"""Whether speed costs quality: equal steps on the same activations, the reference beside the fast ways.

    python -m benchmarks.quality STORE [--steps 600] [--seeds 2] --out FILE

STORE is a folder of `saeforest harvest`. The reference runs on PyTorch's own operators, dense and in float32. FVE and
silent features are measured in float32 on activations that no run has seen, the last 20,000 of the store.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

import torch

from saeforest.activations import ActivationStream
from saeforest.activations.sources import MemoryActivations, open_store
from saeforest.config import OptimConfig
from saeforest.kernels.backend import VARIABLE
from saeforest.saes import RunLength, Training, TreeConfig, start_training
from saeforest.training.loop import fit

_HELD_OUT = 20_000
#: Of every way: the kernels, the type that features are selected in, and that of Adam's state.
WAYS = {
    "reference": ("plain", torch.float32, "float32"),
    "compiled, float32": ("auto", torch.float32, "float32"),
    "compiled, bfloat16": ("auto", torch.bfloat16, "float32"),
    "compiled, bfloat16, Adam in bfloat16": ("auto", torch.bfloat16, "bfloat16"),
}


def activations(store: Path) -> torch.Tensor:
    blocks = open_store(store)
    return torch.cat([blocks.shard(i).x for i in range(len(blocks.shards))]).float()


def trained(
    x: torch.Tensor, way: str, seed: int, steps: int, batch: int, lr: float
) -> tuple[Training, float]:
    """The training of a Tree SAE, and the seconds it took."""
    kernels, precision, state = WAYS[way]
    os.environ[VARIABLE] = kernels
    config = TreeConfig(layer_sizes=(384, 768, 2304, 2688))
    stream = ActivationStream(MemoryActivations(x, torch.arange(len(x)), seed=0), batch)
    optim = OptimConfig(lr=lr, batch_size=batch, state=state, decay="linear")  # pyright: ignore[reportArgumentType]
    run = RunLength(steps, batch)
    training = start_training(config, x.shape[1], run, seed=seed, optim=optim, precision=precision)
    start = time.perf_counter()
    for _ in fit(training, stream):
        pass
    return training, time.perf_counter() - start


@torch.no_grad()
def measured(training: Training, x: torch.Tensor) -> dict[str, float]:
    sae = training.sae
    residual, fired = 0.0, torch.zeros(sae.d_sae, dtype=torch.int64)
    for part in x.split(4096):
        code, stats = sae.encode_with_stats(part)
        fired += code.fired(sae.d_sae, sae.config.activation_threshold)
        residual += float((sae.decode(code, stats) - part).square().sum())
    return {
        "fve": 1 - residual / float((x - x.mean(0)).square().sum()),
        "l0": float(fired.sum()) / len(x),
        "silent": float((fired == 0).double().mean()),
        "dead": float(training.dead.double().mean()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Equal steps, with the fast kernels and without.")
    parser.add_argument("store", type=Path)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch", type=int, default=2048)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    x = activations(args.store)
    train, held_out = x[:-_HELD_OUT], x[-_HELD_OUT:]
    rows = []
    for seed in range(args.seeds):
        for way in WAYS:
            sae, seconds = trained(train, way, seed, args.steps, args.batch, args.lr)
            row = {"way": way, "seed": seed, "steps": args.steps, "batch": args.batch, "lr": args.lr}
            rows.append(row | measured(sae, held_out) | {"seconds": round(seconds, 1)})
            print(rows[-1], flush=True)
            args.out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
