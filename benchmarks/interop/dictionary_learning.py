"""dictionary_learning: the SAEs of its classes, read here."""

from __future__ import annotations

from pathlib import Path

from benchmarks.peers.environments import RECIPES

from .check import Row, Run, tool
from .compare import BOUND, differences


def check(folder: Path, run: Run) -> list[Row]:
    rows = []
    for name in run("run_dictionary_learning", folder):
        codes, reconstructions = differences(folder / name)
        rows.append(Row(f"{name}, saved by it", codes, reconstructions, max(codes, reconstructions) < BOUND))
    return rows


DICTIONARY_LEARNING = tool("dictionary-learning", RECIPES["dictionary-learning"], check)
