"""Size, time and memory of an index at the size of the papers, made from random activations.

    python -m benchmarks.explore_index [--features 24576] [--width 768] [--tokens 200000] [--text-tokens 10000000]

A Tree SAE with random weights reads `--tokens` random activations, spread over a text of `--text-tokens` random tokens;
so sizes are those of an index of that text, and times those of so many activations. The language model is left out.
Prints one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import torch

from saeforest.activations import ActivationBatch
from saeforest.explore import Index, build_index
from saeforest.explore.measuring.counts import Counts
from saeforest.memory import peak
from saeforest.saes import TreeConfig, TreeSAE
from saeforest.text import Tokens

CONTEXT, BATCH = 128, 32


def tree(features: int, width: int) -> TreeSAE:
    """A Tree SAE with random weights; every feature below the first layer has a random parent in the layer above."""
    sizes = (features // 16, features // 8, 3 * features // 8)
    sizes = (*sizes, features - sum(sizes))
    sae = TreeSAE(TreeConfig(layer_sizes=sizes, k_per_layer=(21, 5, 4, 2)), width, seed=0)
    generator = torch.Generator().manual_seed(0)
    start = 0
    with torch.no_grad():
        for above, size in pairwise(sizes):
            drawn = torch.randint(above, (size,), generator=generator)
            sae.parent[start + above : start + above + size] = start + drawn
            start += above
    sae.metadata = {"model_name": "random", "hook_name": "blocks.0.hook_resid_post"}
    return sae


def text(n: int) -> Tokens:
    """Random tokens in documents of 500."""
    ids = torch.randint(30_000, (n // CONTEXT, CONTEXT), dtype=torch.int32)
    starts = torch.arange(0, ids.numel(), 500)
    return Tokens(ids, starts, tuple(f"document {i}" for i in range(len(starts))))


def activations(n: int, width: int, n_rows: int) -> Iterator[ActivationBatch]:
    """Random mixtures of fewer directions than there are dimensions, at whole windows spread over the text."""
    generator = torch.Generator().manual_seed(1)
    mixing = torch.randn(width // 2, width, generator=generator)
    windows = torch.linspace(0, n_rows // CONTEXT - 1, n // CONTEXT).long()
    for some in windows.split(BATCH):
        rows = (some[:, None] * CONTEXT + torch.arange(CONTEXT)).flatten()
        x = torch.randn(len(rows), width // 2, generator=generator) ** 3 @ mixing
        yield ActivationBatch(x, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description="Size, time and memory of a large index.")
    parser.add_argument("--features", type=int, default=24_576)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--tokens", type=int, default=200_000)
    parser.add_argument("--text-tokens", type=int, default=10_000_000)
    args = parser.parse_args()
    torch.manual_seed(0)
    sae, tokens = tree(args.features, args.width), text(args.text_tokens)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)

        def begin(counts: Counts) -> None:
            counts.firings.folder = folder

        start = time.monotonic()
        batches = activations(args.tokens, args.width, tokens.n_tokens)
        index = build_index(sae, sae.forest, batches, tokens, total=args.tokens, begin=begin)
        built = time.monotonic() - start
        shards = sum(path.stat().st_size for path in folder.iterdir())
        start = time.monotonic()
        index.save(folder / "index")
        saved = time.monotonic() - start
        highest = peak()
        size = sum(path.stat().st_size for path in (folder / "index").iterdir())
        start = time.monotonic()
        loaded = Index.load(folder / "index", sae, sae.forest)
        read = time.monotonic() - start
    arrays = loaded.tensors()
    of_features = [name for name, tensor in arrays.items() if len(tensor) == args.features]
    times = []
    for feature in random.Random(0).sample(range(args.features), 1_000):
        start = time.perf_counter()
        for name in of_features:
            arrays[name][feature].tolist()
        times.append(time.perf_counter() - start)
    times.sort()
    print(
        json.dumps(
            {
                "features": args.features,
                "width": args.width,
                "activations": args.tokens,
                "text_tokens": tokens.n_tokens,
                "index_MB": round(size / 1e6, 1),
                "shards_MB": round(shards / 1e6, 1),
                "peak_GB": round(highest / 1e9, 2),
                "build_s": round(built, 1),
                "save_s": round(saved, 2),
                "load_s": round(read, 2),
                "feature_ms_p50": round(1e3 * times[500], 3),
                "feature_ms_p95": round(1e3 * times[950], 3),
                "planes": len(loaded.geometry.parent),
                "null_pairs": len(loaded.null_child),
            }
        )
    )


if __name__ == "__main__":
    main()
