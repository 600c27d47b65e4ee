"""Whether speed costs quality: equal steps on the same activations, the reference beside the fast ways.

    python -m benchmarks.quality STORE [--steps 600] [--seeds 2] [--preset NAME] [--ways WAY ...] --out FILE

STORE is a folder of `saeforest harvest`. The reference runs on PyTorch's own operators, dense and in float32. FVE and
silent features are measured in float32 on activations that no run has seen, the last 20,000 of the store.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from saeforest.activations import ActivationStream
from saeforest.activations.sources import MemoryActivations, open_store
from saeforest.kernels.backend import VARIABLE
from saeforest.presets import PRESETS
from saeforest.saes import RunLength, Training, start_training
from saeforest.training.loop import fit

_HELD_OUT = 20_000


@dataclass(frozen=True)
class Way:
    """How a run differs from its preset."""

    kernels: str = "auto"
    precision: torch.dtype = torch.bfloat16
    """The type in which features are selected."""
    optim: dict[str, Any] = field(default_factory=dict)
    aux: dict[str, Any] = field(default_factory=dict)


WAYS = {
    "reference": Way("plain", torch.float32),
    "float32": Way(precision=torch.float32),
    "bfloat16": Way(),
    "state in bfloat16": Way(optim={"state": "bfloat16"}),
    "active rows": Way(optim={"rows": "active"}),
    "active rows, state in bfloat16": Way(optim={"rows": "active", "state": "bfloat16"}),
    "active rows, state in 8 bits": Way(optim={"rows": "active", "state": "int8"}),
    "state in 8 bits": Way(optim={"state": "int8"}),
    "active rows, state in 8 bits, weights in bfloat16": Way(
        optim={"rows": "active", "state": "int8", "weights": "bfloat16"}
    ),
    "no auxiliary": Way(aux={"coefficient": 0.0}),
} | {
    f"auxiliary {k}, stride {stride}": Way(aux={"k": k, "stride": stride})
    for k in (256, 64, 32)
    for stride in (1, 4, 8)
}
WAYS["auxiliary 64, stride 4, active rows"] = Way(optim={"rows": "active"}, aux={"k": 64, "stride": 4})


def activations(store: Path, n: int | None) -> torch.Tensor:
    """The first `n` activations of a store, or all."""
    blocks, parts, rows = open_store(store), [], 0
    for i in range(len(blocks.shards)):
        if n is None or rows < n:
            parts.append(blocks.shard(i).x)
            rows += len(parts[-1])
    return torch.cat(parts)[:n].float()


def trained(x: torch.Tensor, way: Way, seed: int, args: argparse.Namespace) -> tuple[Training, list[float]]:
    """The training of the preset's SAE, and the processor time of each step in seconds."""
    os.environ[VARIABLE] = way.kernels
    base = PRESETS[args.preset]
    sae: Any = base.sae
    config = replace(sae, aux=replace(sae.aux, **way.aux))
    if args.layers:
        config = replace(config, layer_sizes=tuple(args.layers))
    optim = replace(base.optim, batch_size=args.batch, **way.optim)
    stream = ActivationStream(MemoryActivations(x, torch.arange(len(x)), seed=0), args.batch)
    run = RunLength(args.steps, args.batch)
    training = start_training(config, x.shape[1], run, seed=seed, optim=optim, precision=way.precision)
    seconds, start = [], time.process_time()
    for _ in fit(training, stream):
        seconds.append(time.process_time() - start)
        start = time.process_time()
    return training, seconds


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
    parser.add_argument(
        "--preset", choices=PRESETS, default="demo-tree-paper", help="the SAE and its optimizer"
    )
    parser.add_argument("--layers", type=int, nargs="+", help="its layer sizes; by default the preset's")
    parser.add_argument(
        "--ways", nargs="+", choices=WAYS, default=["reference", "float32", "bfloat16", "state in bfloat16"]
    )
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch", type=int, default=2048)
    parser.add_argument(
        "--rows", type=int, help="train on this many activations, over and over; by default all"
    )
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    x = activations(args.store, args.rows and args.rows + _HELD_OUT)
    train, held_out = x[:-_HELD_OUT], x[-_HELD_OUT:]
    rows = []
    for seed in range(args.seeds):
        for way in args.ways:
            sae, seconds = trained(train, WAYS[way], seed, args)
            row = {"way": way, "seed": seed, "steps": args.steps, "batch": args.batch, "preset": args.preset}
            late = seconds[len(seconds) // 2 :]  # features are dead by then
            times = {"cpu_s": round(sum(seconds), 1), "late_step_ms": round(1e3 * statistics.median(late), 1)}
            rows.append(row | measured(sae, held_out) | times)
            print(rows[-1], flush=True)
            args.out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
