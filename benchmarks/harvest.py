"""What harvesting costs beside the language model: tokens/s to memory and to disk against the bare truncated model.

    .venv/bin/python -m benchmarks.harvest --out runs/harvest.json

The bare model runs the same windows up to the site and drops what it finds. The three take turns in one process, on
the embedded model and text, and each turn's harvest is compared with the bare model just before it.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from saeforest.activations import ActivationReader, harvest_folder, harvest_memory
from saeforest.config import TrainConfig
from saeforest.files import write_json
from saeforest.session import about_activations, open_reader, read_tokens
from saeforest.text import Tokens
from saeforest.training.settle import settle_machine, settle_positions

BARE, MEMORY, DISK = "bare model", "to memory", "to disk"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.harvest")
    parser.add_argument("--tokens", type=int, default=80_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the numbers, as .json")
    args = parser.parse_args()
    config = settle_machine(TrainConfig(tokens=args.tokens))
    reader = open_reader(config)
    tokens = read_tokens(config, reader, "train", config.tokens)
    config = settle_positions(config, reader, tokens)
    about = about_activations(config, tokens, reader)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    # Beside the result: a folder for temporary files is often in memory, and no disk.
    with tempfile.TemporaryDirectory(dir=args.out.parent) as folder:
        work: dict[str, Callable[[], object]] = {
            BARE: lambda: bare(reader, tokens),
            MEMORY: lambda: harvest_memory(reader, tokens, 0),
            DISK: lambda: harvest_folder(reader, tokens, Path(folder) / "store", about),
        }
        rates: dict[str, list[float]] = {name: [] for name in work}
        for _ in range(args.rounds):
            for name, run in work.items():
                start = time.perf_counter()
                run()
                rates[name].append(tokens.n_tokens / (time.perf_counter() - start))
    report(rates)
    write_json(args.out, {"tokens": tokens.n_tokens, "tokens_per_s": rates})


def bare(reader: ActivationReader, tokens: Tokens) -> None:
    for ids in tokens.ids.split(reader.batch_size):
        reader.lm.activations(ids.long(), reader.site).cpu()


def report(rates: dict[str, list[float]]) -> None:
    for name, found in rates.items():
        ratios = [mine / bare for mine, bare in zip(found, rates[BARE], strict=True)]
        print(
            f"{name:12} median {statistics.median(found):7,.0f} tokens/s of {len(found)}, "
            f"{min(found):,.0f} to {max(found):,.0f}; of the bare model's "
            f"{100 * statistics.median(ratios):5.1f} %, {100 * min(ratios):.1f} to {100 * max(ratios):.1f} %"
        )


if __name__ == "__main__":
    main()
