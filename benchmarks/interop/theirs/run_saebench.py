"""Gives our SAEs to SAEBench in its environment: its own checks of an object, and its core evaluation on a tiny model.

PYTHON_WITH_SAE_BENCH -m benchmarks.interop.theirs.run_saebench EXPORT ...
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from contextlib import redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ["SAEFOREST_KERNELS"] = (
    "plain"  # Numba's kernels are compiled for a numpy that SAEBench does not allow
)

import torch
from benchmarks.saebench.theirs.core import evaluate
from sae_bench.sae_bench_utils.general_utils import (  # pyright: ignore[reportMissingImports]
    check_decoder_norms,
    load_and_format_sae,
)
from transformer_lens import HookedTransformer, HookedTransformerConfig  # pyright: ignore[reportMissingImports]

from saeforest.interop.saebench import selected_saes

from .common import D, differences


def main(exports: list[str]) -> dict[str, Any]:
    warnings.simplefilter("ignore")
    model = tiny_model()
    ids = torch.randint(1, 50, (8, 32), generator=torch.Generator().manual_seed(0))
    found = {}
    for export in exports:
        saes = selected_saes(export)
        pairs = [differences(Path(export) / "expected" / own, sae.encode, sae.decode) for own, sae in saes]
        with redirect_stdout(sys.stderr):
            for _, sae in saes:
                assert check_decoder_norms(sae.W_dec.data)
                _, same, _ = load_and_format_sae("ours", sae, "cpu")
                assert same is sae
            numbers = evaluate(model, saes[0][1], ids, 4)
        found[export] = {"differences": pairs, "l0": numbers["l0"], "mse": numbers["mse"]}
    return found


def tiny_model() -> HookedTransformer:
    """A random model that is as wide as our SAEs, with the ids of special tokens in place of a tokenizer."""
    torch.manual_seed(0)
    config = HookedTransformerConfig(
        n_layers=6,
        d_model=D,
        n_ctx=64,
        d_head=8,
        n_heads=3,
        d_mlp=32,
        d_vocab=50,
        act_fn="gelu",
        device="cpu",
    )
    model = HookedTransformer(config)
    model.tokenizer = SimpleNamespace(pad_token_id=0, eos_token_id=0, bos_token_id=0, padding_side="right")
    return model.eval()


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1:])))
