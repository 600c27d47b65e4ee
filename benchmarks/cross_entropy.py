"""What cross-entropy costs where all passes share the blocks before the site, beside whole passes.

    python -m benchmarks.cross_entropy [--windows 8] [--rounds 3] [--saes 1 3]

Reads windows of the packaged text with the embedded model, and puts the reconstructions of untrained trees in place.
The two ways take turns. Prints processor seconds for each number of SAEs, their ratio, and the largest difference of a
window's loss.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from saeforest.config import TrainConfig
from saeforest.evaluation import read_windows
from saeforest.measures.measure import WindowLosses
from saeforest.presets import PRESETS
from saeforest.saes import SAE, RunLength, start_training
from saeforest.session import open_reader, read_tokens
from saeforest.training.settle import settle_machine, settle_positions


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cross_entropy")
    parser.add_argument(
        "--windows", type=int, default=8, metavar="N", help="in a batch, of which there is one"
    )
    parser.add_argument("--rounds", type=int, default=3, metavar="N")
    parser.add_argument("--saes", type=int, nargs="+", default=[1, 3], metavar="N", help="numbers of SAEs")
    options = parser.parse_args()
    config = settle_machine(TrainConfig(tokens=options.windows * TrainConfig().text.context))
    reader = open_reader(config)
    tokens = read_tokens(config, reader, "held_out", config.tokens)
    settle_positions(config, reader, tokens)
    windows = torch.arange(options.windows)
    x = reader.read(tokens, windows).x.float()
    trees = [tree(x, seed) for seed in range(max(options.saes))]
    shared = reader.shared_blocks

    def losses(saes: list[SAE], blocks: tuple[torch.nn.Module, ...]) -> tuple[float, list[WindowLosses]]:
        vars(reader)["shared_blocks"] = blocks
        start = time.process_time()
        view = read_windows(reader, tokens, windows, options.windows)
        found = [view.through(sae).losses for sae in saes]
        return time.process_time() - start, [one for one in found if one is not None]

    losses(trees[:1], shared)
    n = windows.numel() * tokens.context
    for number in options.saes:
        seconds: list[tuple[float, float]] = []
        for _ in range(options.rounds):
            whole, expected = losses(trees[:number], ())
            less, found = losses(trees[:number], shared)
            seconds.append((whole, less))
        wrong = max(
            float((getattr(a, name) - getattr(b, name)).abs().max())
            for a, b in zip(expected, found, strict=True)
            for name in ("clean", "spliced", "ablated", "kl_spliced", "kl_ablated")
        )
        ratios = [whole / less for whole, less in seconds]
        print(
            f"{number} SAEs, {len(shared)} blocks shared, {n:,} tokens: "
            f"{statistics.median(w for w, _ in seconds):.2f} and {statistics.median(s for _, s in seconds):.2f} s, "
            f"ratio {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}); "
            f"losses of a window differ by at most {wrong:.1e}"
        )


def tree(x: torch.Tensor, seed: int) -> SAE:
    preset = PRESETS["demo-tree-paper"]
    training = start_training(preset.sae, x.shape[1], RunLength(1, len(x)), seed=seed, optim=preset.optim)
    return training.untrained(x, x)


if __name__ == "__main__":
    main()
