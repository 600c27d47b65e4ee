"""Saves SAEs of dictionary_learning's classes as its trainers do, and what they make of some activations.

PYTHON_WITH_DICTIONARY_LEARNING -m benchmarks.interop.theirs.run_dictionary_learning FOLDER
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from benchmarks.peers.drivers.absent import stand_in

from .common import D, F, fill, write_expected

K = 7


stand_in("nnsight", "LanguageModel")  # its environment has none, which no SAE needs


def main(out: Path) -> list[str]:
    from dictionary_learning import dictionary as d  # pyright: ignore[reportMissingImports]
    from dictionary_learning.trainers import (  # pyright: ignore[reportMissingImports]
        batch_top_k,
        matryoshka_batch_top_k,
        top_k,
    )

    made: dict[str, Any] = {
        "AutoEncoder": d.AutoEncoder(D, F),
        "AutoEncoderNew": d.AutoEncoderNew(D, F),
        "GatedAutoEncoder": d.GatedAutoEncoder(D, F),
        "JumpReluAutoEncoder": d.JumpReluAutoEncoder(D, F),
        "AutoEncoderTopK": top_k.AutoEncoderTopK(D, F, K),
        "BatchTopKSAE": batch_top_k.BatchTopKSAE(D, F, K),
        "MatryoshkaBatchTopKSAE": matryoshka_batch_top_k.MatryoshkaBatchTopKSAE(D, F, K, [16, 32, F - 48]),
    }
    for name, sae in made.items():
        fill(sae)
        if "threshold" in dict(sae.named_buffers()):
            sae.threshold.fill_(0.4)
        folder = out / name
        folder.mkdir(parents=True)
        torch.save({key: value.cpu() for key, value in sae.state_dict().items()}, folder / "ae.pt")
        (folder / "config.json").write_text(json.dumps({"trainer": {"dict_class": name, "k": K}}))
        loaded = type(sae).from_pretrained(str(folder / "ae.pt"))
        write_expected(folder, loaded.encode, loaded.decode)
    return list(made)


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]))))
