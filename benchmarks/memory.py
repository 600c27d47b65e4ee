"""How much memory a training step takes beyond weights, gradients and the optimizer's state.

    python -m benchmarks.memory [--widths 6144 24576 98304]

Linux only: the peak of the resident memory is reset before a step, once all of the state exists. Given in MB and in
multiples of the batch itself (batch times d_in, float32).
"""

from __future__ import annotations

import argparse
import gc
from pathlib import Path

import torch
from benchmarks.peers.plan import tree_shape

from saeforest.saes import RunLength, SAEConfig, TopKConfig, TreeConfig, start_training

_STEPS = 100_000


def resident(key: str) -> float:
    """VmRSS or VmHWM of this process, in MB."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) / 1024
    raise KeyError(key)


def step_memory(config: SAEConfig, d: int, batch: int) -> float:
    """MB of a step beyond what stays: weights and moments between steps, and the gradients, which come and go."""
    training = start_training(config, d, RunLength(_STEPS, batch), precision=torch.bfloat16)
    x = torch.randn(batch, d, generator=torch.Generator().manual_seed(0))
    for _ in range(2):
        training.step(x)
    for parameter in training.sae.parameters():
        parameter.grad = None
    gc.collect()
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    training.step(x)
    gradients = sum(p.numel() for p in training.sae.parameters() if p.requires_grad) * 4 / 2**20
    return resident("VmHWM") - before - gradients


def main() -> None:
    parser = argparse.ArgumentParser(description="Memory of a training step beyond its state.")
    parser.add_argument("--widths", type=int, nargs="+", default=[6_144, 24_576, 98_304])
    parser.add_argument("--d", type=int, default=576)
    parser.add_argument("--batch", type=int, default=4096)
    args = parser.parse_args()
    batch_mb = args.batch * args.d * 4 / 2**20
    print(f"{'system':8} {'width':>9} {'MB':>8} {'x batch':>8} {'x batch x width':>16}")
    for width in args.widths:
        sizes, k = tree_shape(width)
        for name, config in {
            "tree": TreeConfig(layer_sizes=sizes, k_per_layer=k),
            "topk": TopKConfig(layer_sizes=(width,)),
        }.items():
            extra = step_memory(config, args.d, args.batch)
            dense = args.batch * width * 4 / 2**20
            print(
                f"{name:8} {width:9,} {extra:8.0f} {extra / batch_mb:8.1f} {extra / dense:16.2f}", flush=True
            )


if __name__ == "__main__":
    main()
