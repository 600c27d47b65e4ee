"""Processor time and memory of a training step on each of the ranks that share it, and the bytes they exchange.

    python -m benchmarks.ranks                                     # one process
    torchrun --nproc-per-node 2 -m benchmarks.ranks                # rows of the batch divided
    torchrun --nproc-per-node 2 -m benchmarks.ranks --shards 2     # the dictionary divided

The first step, in which kernels are loaded, is left out. Processor time, since ranks that wait for each other on a
shared machine say little by the clock; it has what the exchange costs the processor, not how long a network takes.
The memory is the most that a rank held resident in the steps that are measured, interpreter and libraries included; it
is read on Linux only.
"""

from __future__ import annotations

import argparse
import gc
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saeforest.kernels import shards, sharing
from saeforest.optim import OptimConfig
from saeforest.ranks import Ranks, joined
from saeforest.ranks import processes as exchanged
from saeforest.saes import (
    HSAEConfig,
    ParentsConfig,
    RunLength,
    TopKConfig,
    TreeConfig,
    start_training,
)
from saeforest.training.sharded import divide

from .memory import resident

SYSTEMS = ("topk", "tree", "hsae")


class Counted:
    """Counts the bytes that this rank sends in exchanges of tensors."""

    def __init__(self) -> None:
        self.bytes = 0

    def watch(self) -> None:
        gather, total, trade = (getattr(exchanged.Processes, name) for name in ("_gather", "sum", "trade"))

        def gathered(ranks: Any, own: Tensor, lengths: Any) -> Tensor:
            self.bytes += own.nbytes * (ranks.size - 1)
            return gather(ranks, own, lengths)

        def summed(ranks: Any, own: Tensor) -> Tensor:
            self.bytes += own.nbytes * (ranks.size > 1)
            return total(ranks, own)

        def traded(ranks: Any, parts: Any, shapes: Any) -> list[Tensor]:
            self.bytes += sum(part.nbytes for rank, part in enumerate(parts) if rank != ranks.rank)
            return trade(ranks, parts, shapes)

        for name, counted in (("_gather", gathered), ("sum", summed), ("trade", traded)):
            setattr(exchanged.Processes, name, counted)


def config(system: str, width: int, k: int) -> TopKConfig | TreeConfig | HSAEConfig:
    """The SAE of the paper of this width; the sizes of the layers of tree and HSAE are in its proportions."""
    if system == "topk":
        return TopKConfig(layer_sizes=(width,), k_per_layer=(k,))
    if (
        system == "hsae"
    ):  # parents are chosen after the first step, so that those that are measured have families
        levels = tuple(width * part // 15 for part in (1, 2, 4, 8))
        parents = ParentsConfig("fixed", 1)
        return HSAEConfig(
            layer_sizes=levels, k_per_layer=(k,) * 4, hierarchy=parents, normalize_activations="none"
        )
    sizes = [width // 16, width // 8, width * 3 // 8]
    return TreeConfig(layer_sizes=(*sizes, width - sum(sizes)), k_per_layer=(21, 5, 4, 2))


def measure(system: str, args: argparse.Namespace, ranks: Ranks, counted: Counted) -> None:
    torch.manual_seed(0)
    training = start_training(
        config(system, args.width, 32),
        args.d,
        RunLength(10_000, args.batch),
        seed=0,
        optim=OptimConfig(batch_size=args.batch, precision="float32"),
        device=torch.device("cpu"),
    )
    data, features = ranks.mesh(args.shards) if args.shards > 1 else (ranks, None)
    if features is not None:
        divide(training, features)
    spent = []
    for number in range(args.steps + 1):
        if number == 1:  # from now on: weights were whole before they were divided
            gc.collect()
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        x = torch.randn(args.batch, args.d)
        start, before = time.process_time(), counted.bytes
        with ExitStack() as around:
            around.enter_context(sharing(data))
            if features is not None:
                around.enter_context(shards.sharded(features))
            training.step(x)
        spent.append((time.process_time() - start, counted.bytes - before))
    low, *_, high = seconds = sorted(s for s, _ in spent[1:])
    median = seconds[len(seconds) // 2]
    peaks = ranks.gather(torch.tensor([resident("VmHWM")]), lengths=[1] * ranks.size).tolist()
    if ranks.first:
        what = f"{system} {args.width:,} features, batch {args.batch:,}, {ranks.size} ranks, {args.shards} shards"
        time_of = f"{median:.2f} s of processor time a step ({low:.2f} to {high:.2f})"
        held = ", ".join(f"{peak:,.0f}" for peak in peaks)
        print(f"{what}: {time_of}, {spent[-1][1] / 1e6:.1f} MB sent by each rank, {held} MB held", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    for name, default in (("width", 24_576), ("d", 576), ("batch", 2048), ("steps", 3), ("shards", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--systems", nargs="+", default=SYSTEMS, choices=SYSTEMS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with joined() as ranks:
        counted = Counted()
        counted.watch()
        for system in args.systems:
            measure(system, args, ranks, counted)


if __name__ == "__main__":
    main()
