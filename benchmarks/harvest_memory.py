"""The memory that a harvest takes as its text grows.

.venv/bin/python -m benchmarks.harvest_memory FOLDER [TOKENS ...]

Harvests from a random GPT-2 of two layers into shards of 4,096 rows, each in a process of its own, and prints the most
memory that the system saw it hold. Shards are small so that even the shortest text has many: what grows with the number
of shards shows. FOLDER must be new or empty.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from saeforest.activations import writer
from saeforest.config import ActivationConfig, LMConfig, TextConfig, TrainConfig
from saeforest.training.harvest import run_harvest

from .peak_memory import forked, save_model

_WIDTH, _WORDS = 256, ("the", "cat", "sat", "on", "moon", "red", "river", "12", "7", "hills", "a", "of")


def main(folder: Path, sizes: list[int]) -> None:
    save_model(folder / "model", _WIDTH)
    save_text(folder / "text.jsonl", max(sizes) * 5 // 4)
    writer.SHARD_ROWS = 4_096
    for tokens in sizes:
        config = TrainConfig(
            model=str(folder / "model"),
            site="blocks.0.hook_resid_post",
            data=str(folder / "text.jsonl"),
            tokens=tokens,
            device="cpu",
            lm=LMConfig(dtype="float32"),
            text=TextConfig(held_out=0.1),
            activations=ActivationConfig(max_norm=0.0),
        )

        def harvested(config: TrainConfig = config, tokens: int = tokens) -> int:
            done = run_harvest(config, folder / f"acts-{tokens}")
            assert done is not None
            return len(done.store.shards)

        shards, peak = forked(harvested)
        print(json.dumps({"tokens": tokens, "shards": shards, "peak_mb": round(peak / 2**20)}), flush=True)


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
    main(Path(sys.argv[1]), [int(size) for size in sys.argv[2:]] or [50_000, 500_000])
