"""What encoding costs in a tree as its dictionary grows, beside the dense encode of as many features.

    python -m benchmarks.conditional [--widths 24576 98304 393216] [--rounds 5] [--ways dense uniform "by firing"]
    python -m benchmarks.conditional --saes RUN/sae ... --store STORE [--rounds 5]

Two forests: `uniform`, as a fresh tree has, and `by firing`, where features have children in proportion to how often
they fire, which is the most that reallocation could ask of an encoder. `tiles` is `by firing` with the children of all
parents in small tiles, without the matrix product that those of parents with many children take in bfloat16. Rounds
are interleaved; median, and the range from the first to the third quartile. Times are those of the clock, and with
`--processor` of all cores together, which other work on the machine changes less.

With `--saes`, trained SAEs encode the first activations of a store instead, each beside a dense encode of as many
features.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from benchmarks.peers.data import synthetic
from benchmarks.peers.plan import tree_shape
from torch import Tensor

import saeforest
from saeforest.activations.sources import open_store
from saeforest.kernels import compiled
from saeforest.saes import SAE, TopKConfig, TreeConfig, TreeSAE, build

_WAYS = ("dense", "uniform", "by firing", "tiles")


def by_firing(sae: TreeSAE, x: Tensor) -> None:
    """Draws every feature's parent in proportion to how often the earlier ones fire, one layer after another."""
    generator, start = torch.Generator().manual_seed(1), sae.config.layer_sizes[0]
    for size in sae.config.layer_sizes[1:]:
        fired = sae.encode(x).fired(sae.d_sae, sae.config.activation_threshold)[:start].double()
        # Of more than 2^24 choices torch draws none.
        drawn = torch.searchsorted(
            fired.cumsum(0) / fired.sum(), torch.rand(size, generator=generator).double()
        )
        sae.parent[start : start + size] = drawn.clamp(max=start - 1)
        start += size


def eligible(sae: TreeSAE, x: Tensor) -> float:
    """How many features' parents are active, on an average activation."""
    fired = sae.encode(x).fired(sae.d_sae, sae.config.activation_threshold).double()
    children = sae.forest.n_children.double()
    roots = int((sae.parent < 0).sum())
    return roots + float((fired * children).sum()) / len(x)


def main() -> None:
    parser = argparse.ArgumentParser(description="Encode in a tree against the dense encode.")
    parser.add_argument("--widths", type=int, nargs="+", default=[24_576, 98_304, 393_216])
    parser.add_argument("--d", type=int, default=576)
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--ways", nargs="+", choices=_WAYS, default=_WAYS)
    parser.add_argument("--processor", action="store_true")
    parser.add_argument("--saes", type=Path, nargs="+", metavar="FOLDER", help="trained SAEs, with --store")
    parser.add_argument("--store", type=Path, help="activations for --saes")
    args = parser.parse_args()
    if bool(args.saes) != bool(args.store):
        parser.error("--saes and --store: expected both or neither")
    clock = time.process_time if args.processor else time.perf_counter
    print(f"{'encoder':10} {'width':>9} {'met':>9} {'ms':>9} {'quartiles':>15} {'dense/this':>10}")
    if args.saes:
        x = open_store(args.store).shard(0).x[: args.batch].float()
        for folder in args.saes:
            trained = saeforest.load(folder)
            show({"dense": dense(trained.d_sae, trained.d_in), "trained": trained}, x, args.rounds, clock)
        return
    x = synthetic(args.batch, args.d, seed=0)
    for width in args.widths:
        sizes, k = tree_shape(width)
        saes: dict[str, SAE] = {}
        if "dense" in args.ways:
            saes["dense"] = dense(width, args.d)
        if "uniform" in args.ways:
            saes["uniform"] = build(TreeConfig(layer_sizes=sizes, k_per_layer=k), args.d)
        if {"by firing", "tiles"} & set(args.ways):
            frequent = build(TreeConfig(layer_sizes=sizes, k_per_layer=k), args.d)
            assert isinstance(frequent, TreeSAE)
            by_firing(frequent, x)
            saes |= {way: frequent for way in ("by firing", "tiles") if way in args.ways}
        show(saes, x, args.rounds, clock)


def dense(width: int, d: int) -> SAE:
    """An SAE that computes every feature's pre-activation."""
    return build(TopKConfig(layer_sizes=(width,)), d)


@torch.no_grad()
def show(saes: dict[str, SAE], x: Tensor, rounds: int, clock: Callable[[], float]) -> None:
    """Encode with each in turns, and print a line for each."""
    seconds: dict[str, list[float]] = {name: [] for name in saes}
    wide = compiled._WIDE_SCORES
    for round_ in range(rounds + 1):  # the first warms up
        for name, sae in saes.items():
            compiled._WIDE_SCORES = 1 << 62 if name == "tiles" else wide
            start = clock()
            sae.encode(x, precision=torch.bfloat16)
            if round_:
                seconds[name].append(clock() - start)
    compiled._WIDE_SCORES = wide
    base = statistics.median(seconds.get("dense", [math.nan, math.nan]))
    for name, taken in seconds.items():
        sae = saes[name]
        met = eligible(sae, x) if isinstance(sae, TreeSAE) else float(sae.d_sae)
        low, middle, high = (1e3 * q for q in statistics.quantiles(taken, n=4))
        ratio = 1e3 * base / middle
        print(
            f"{name:10} {sae.d_sae:9,} {met:9,.0f} {middle:9.1f} {low:7.1f}{high:8.1f} {ratio:10.1f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
