"""The memory that harvesting, training, measuring and indexing take as the data grow.

.venv/bin/python -m benchmarks.data_memory FOLDER [TOKENS ...]

For each number of tokens: a harvest from a random GPT-2 of two layers into shards of 1,024 rows, training of a Tree SAE
from there (in as many steps for each number), its fast measures on as many held-out tokens, and an index of as many.
Each is done in a process of its own, of which the most memory that the system saw it hold is printed. Shards are small
so that even the shortest text has several blocks of them: what grows with their number shows. FOLDER must be new or
empty.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from saeforest.activations import writer
from saeforest.config import ActivationConfig, LMConfig, OptimConfig, TextConfig, TrainConfig
from saeforest.evaluation import measure_names, measure_run
from saeforest.evaluation.options import MeasureOptions
from saeforest.explore import index_run
from saeforest.training import run_training
from saeforest.training.harvest import run_harvest

from .peak_memory import forked, sae_config, save_model

_WIDTH, _FEATURES, _CE_TOKENS = 256, 1_024, 2_048
_WORDS = ("the", "cat", "sat", "on", "moon", "red", "river", "12", "7", "hills", "a", "of")


def main(folder: Path, sizes: list[int]) -> None:
    torch.set_num_threads(1)
    save_model(folder / "model", _WIDTH)
    save_text(folder / "text.jsonl", max(sizes) * 5 // 2)
    writer.SHARD_ROWS = 1_024
    for tokens in sizes:
        for name, work in tasks(folder, tokens, max(sizes) // tokens).items():
            start = time.perf_counter()
            _, peak = forked(work)
            seconds = round(time.perf_counter() - start)
            print(
                json.dumps({"tokens": tokens, "task": name, "peak_mb": round(peak / 2**20), "s": seconds}),
                flush=True,
            )


def tasks(folder: Path, tokens: int, epochs: int) -> dict[str, Callable[[], Any]]:
    """What is done with `tokens` tokens, in this order.

    Features die and children move as a training goes on, which takes memory too: fewer tokens are read in more epochs.
    """
    acts, run = folder / f"acts-{tokens}", folder / f"run-{tokens}"
    harvested = TrainConfig(
        model=str(folder / "model"),
        site="blocks.0.hook_resid_post",
        data=str(folder / "text.jsonl"),
        tokens=tokens,
        device="cpu",
        lm=LMConfig(dtype="float32"),
        text=TextConfig(held_out=0.5),
        activations=ActivationConfig(max_norm=0.0),
    )
    trained = replace(
        harvested,
        data=str(acts),
        epochs=epochs,
        sae=sae_config("tree", _FEATURES),
        optim=OptimConfig(batch_size=1_024),
    )
    options = MeasureOptions(tokens=tokens, ce_tokens=_CE_TOKENS)
    return {
        "harvest": lambda: run_harvest(harvested, acts) and None,
        "train": lambda: run_training(trained, run) and None,
        "eval": lambda: measure_run(run, measure_names("fast"), options) and None,
        "index": lambda: index_run(run, tokens) and None,
    }


def save_text(path: Path, n_characters: int) -> None:
    """Random words, which are a token a character."""
    generator = torch.Generator().manual_seed(0)
    written = 0
    with path.open("w") as file:
        while written < n_characters:
            drawn = torch.randint(len(_WORDS), (200,), generator=generator).tolist()
            text = " ".join(_WORDS[i] for i in drawn)
            file.write(json.dumps({"text": text}) + "\n")
            written += len(text)


if __name__ == "__main__":
    main(Path(sys.argv[1]), [int(size) for size in sys.argv[2:]] or [20_000, 200_000])
