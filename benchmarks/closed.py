"""What a training step of a Tree SAE costs with a closed selection, beside the layer-wise one.

    python -m benchmarks.closed [--widths 6144 24576] [--rounds 7]

All ways train the same initial weights and forest on the same batches, one step each in turn. The ratio to the
layer-wise step is taken within each round, so that load on the machine falls on both; median, and the range from the
first to the third quartile. Times are those of the processor, not of the clock: set OMP_NUM_THREADS=1 on a machine that
has other work. Some steps come before those that are measured, so that the weights are no longer random.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

from benchmarks.peers.data import synthetic
from benchmarks.peers.plan import tree_shape

from saeforest.optim import OptimConfig
from saeforest.saes import RunLength, TreeConfig, start_training

WAYS: dict[str, dict[str, Any]] = {
    "layer": {},
    "layer, batch": {"budget": "batch"},
    "closed": {"selection": "closed"},
    "closed, batch": {"selection": "closed", "budget": "batch"},
    "... a beam of 1": {"selection": "closed", "budget": "batch", "beam": 1.0},
    "residual": {"reads": "residual"},
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Training steps with a closed selection against layer-wise ones."
    )
    parser.add_argument("--widths", type=int, nargs="+", default=[6_144, 24_576])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--d", type=int, default=576)
    parser.add_argument("--batch", type=int, default=2048)
    parser.add_argument("--warm", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    n_steps = args.warm + args.rounds
    x = synthetic(args.batch * n_steps, args.d, seed=0).split(args.batch)
    optim = OptimConfig(lr=1e-3, batch_size=args.batch)
    print(f"{'selection':15} {'width':>7} {'L0':>6} {'ms':>8} {'ratio':>6} {'quartiles':>13}")
    for width in args.widths:
        sizes, k = tree_shape(width)
        run = RunLength(1_000, args.batch)
        trained = {
            way: start_training(TreeConfig(sizes, k, **WAYS[way]), args.d, run, optim=optim)
            for way in args.ways
        }
        seconds: dict[str, list[float]] = {way: [] for way in args.ways}
        l0 = dict.fromkeys(args.ways, 0.0)
        for i, batch in enumerate(x):
            for way, training in trained.items():
                start = time.process_time()
                step = training.step(batch)
                if i >= args.warm:
                    seconds[way].append(time.process_time() - start)
                l0[way] = int(step.fired.sum()) / len(batch)
        for way, taken in seconds.items():
            ratios = [a / b for a, b in zip(taken, seconds[args.ways[0]], strict=True)]
            low, middle, high = statistics.quantiles(ratios, n=4)
            ms = 1e3 * statistics.median(taken)
            print(
                f"{way:15} {width:7,} {l0[way]:6.1f} {ms:8.0f} {middle:6.2f} {low:6.2f}{high:7.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
