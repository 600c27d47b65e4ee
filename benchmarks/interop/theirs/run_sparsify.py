"""Saves SAEs with sparsify, and what it makes of some activations; reads those that saeforest wrote.

PYTHON_WITH_SPARSIFY -m benchmarks.interop.theirs.run_sparsify make FOLDER
PYTHON_WITH_SPARSIFY -m benchmarks.interop.theirs.run_sparsify read FOLDER ...
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from sparsify import SparseCoder, SparseCoderConfig  # pyright: ignore[reportMissingImports]
from torch import Tensor

from .common import D, F, differences, fill, write_expected

MADE = {"layers.3": {}, "layers.3.mlp": {"transcode": True}}


def encoder(sae: Any) -> Any:
    def encode(x: Tensor) -> Tensor:
        top = sae.encode(x)
        return torch.zeros(len(x), sae.num_latents).scatter_(1, top.top_indices, top.top_acts)

    return encode


def decoder(sae: Any) -> Any:
    """Its decode takes values and indices: all of them do."""
    return lambda f: sae.decode(f, torch.arange(f.shape[1]).expand(len(f), -1))


def make(folder: Path) -> list[str]:
    for name, keys in MADE.items():
        sae = SparseCoder(D, SparseCoderConfig(num_latents=F, k=7, **keys))
        fill(sae)
        sae.save_to_disk(folder / name)
        write_expected(folder / name, encoder(sae), decoder(sae))
    return list(MADE)


def read(folders: list[str]) -> dict[str, list[float]]:
    found = {}
    for folder in map(Path, folders):
        (name,) = (path.name for path in folder.iterdir() if path.is_dir())
        sae = SparseCoder.load_many(str(folder), local=True)[name]
        found[str(folder)] = differences(folder / name, encoder(sae), decoder(sae))
    return found


if __name__ == "__main__":
    command, *arguments = sys.argv[1:]
    print(json.dumps(make(Path(arguments[0])) if command == "make" else read(arguments)))
