"""What measuring costs beside encoding, and what coverage and MCS of all pairs cost, at the size of the paper's SAEs.

    python -m benchmarks.measures [--encoded 131072] [--tokens 1000000] [--d 576] [--features 24576] [--k 32]

Activations are synthetic (a few hundred directions of falling strength, and noise), the SAE is a TopK of random
weights, and its forest random too: none of that changes the work. The fast set is fed by batches of 16 windows of 128
tokens, as `saeforest eval` feeds it; `cross_entropy`, whose work is the language model's, is left out. Then the firings
of the same codes, repeated until they are those of so many tokens, go through the measure `mcs`: coverage and all
variants of all pairs. Linux only, for the peak of the memory.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from benchmarks.memory import resident
from torch import Tensor

from saeforest.evaluation import SETS
from saeforest.evaluation.registry import MEASURES
from saeforest.measures import EvalBatch, Streaming, Subject
from saeforest.measures.mcs import MCSConfig, mcs
from saeforest.measures.subject import Firings
from saeforest.saes import TopKConfig, build
from saeforest.structure.forest import Forest
from saeforest.structure.pairs import PairStatistics

WINDOW, WINDOWS = 128, 16
_DIRECTIONS = 400


def activations(n: int, d: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Flat positions and activations, batch by batch."""
    rng = torch.Generator().manual_seed(0)
    directions = torch.randn(_DIRECTIONS, d, generator=rng) * torch.linspace(2, 0.2, _DIRECTIONS)[:, None]
    for start in range(0, n, WINDOW * WINDOWS):
        m = min(WINDOW * WINDOWS, n - start)
        on = (torch.rand(m, _DIRECTIONS, generator=rng) < 0.05) * torch.rand(m, _DIRECTIONS, generator=rng)
        yield torch.arange(start, start + m), on @ directions + 0.3 * torch.randn(m, d, generator=rng)


def random_forest(features: int) -> Forest:
    rng = torch.Generator().manual_seed(1)
    parent = (torch.rand(features, generator=rng) * torch.arange(features)).long()
    parent[: features // 4] = -1
    return Forest(parent, (features,), layered=False)


def main() -> None:
    parser = argparse.ArgumentParser(description="What measuring costs.")
    parser.add_argument("--encoded", type=int, default=131_072)
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--d", type=int, default=576)
    parser.add_argument("--features", type=int, default=24_576)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    sae = build(TopKConfig((args.features,), (args.k,)), args.d)
    sae.requires_grad_(False)
    forest = random_forest(args.features)
    names = [n for n in SETS["fast"] if n != "cross_entropy"]
    subject = Subject(sae, {}, {"forest": lambda: forest})
    measures = [spec.make(subject, None) for n in names if isinstance(spec := MEASURES[n], Streaming)]
    seconds = {"encode": 0.0, "decode": 0.0, "fast set": 0.0}
    pairs = PairStatistics(args.features, sae.config.activation_threshold)
    codes = []
    for rows, x in activations(args.encoded, args.d):
        clock = time.perf_counter()
        code, stats = sae.encode_with_stats(x)
        seconds["encode"] += -clock + (clock := time.perf_counter())
        x_hat = sae.decode(code, stats)
        seconds["decode"] += -clock + (clock := time.perf_counter())
        window = rows // WINDOW
        batch = EvalBatch(x, rows, window, window.unique(), code, x_hat)
        for measure in measures:
            measure.update(batch)
        seconds["fast set"] += -clock + (clock := time.perf_counter())
        codes.append(code)
    clock = time.perf_counter()
    for measure in measures:
        measure.record({})
    seconds["fast set"] += time.perf_counter() - clock

    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    clock = time.perf_counter()
    while pairs.n_tokens < args.tokens:
        pairs.add(codes[pairs.n_tokens // len(codes[0].ids) % len(codes)])
    seconds["firings"] = time.perf_counter() - clock
    clock = time.perf_counter()
    firings = Firings(torch.arange(pairs.n_tokens), pairs)
    subject = Subject(sae, {}, {"forest": lambda: forest, "firings": lambda: firings})
    record = mcs(subject, MCSConfig())
    seconds["coverage and MCS"] = time.perf_counter() - clock
    found = {
        "tokens encoded": args.encoded,
        "tokens of coverage and MCS": pairs.n_tokens,
        "d": args.d,
        "features": args.features,
        "k": args.k,
        "threads": torch.get_num_threads(),
        "seconds": {name: round(s, 1) for name, s in seconds.items()},
        "fast set with encoding and decoding, in encodings": round(
            (seconds["encode"] + seconds["decode"] + seconds["fast set"]) / seconds["encode"], 2
        ),
        "MB beyond what was there before the firings": round(resident("VmHWM") - before),
        "children": record.detail["children"],
    }
    print(json.dumps(found, indent=1))
    if args.out:
        args.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
