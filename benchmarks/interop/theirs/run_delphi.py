"""Loads a latents cache with delphi's own loader, and has delphi's own cache write the same codes.

PYTHON_WITH_DELPHI -m benchmarks.interop.theirs.run_delphi LATENTS TOKENIZER EXPECTED OWN
"""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from delphi.config import ConstructorConfig, SamplerConfig  # pyright: ignore[reportMissingImports]
from delphi.latents import LatentDataset  # pyright: ignore[reportMissingImports]
from delphi.latents.cache import InMemoryCache, LatentCache  # pyright: ignore[reportMissingImports]
from safetensors.torch import load_file
from transformers import AutoTokenizer


def main(latents: str, tokenizer: str, expected: str, own: str) -> None:
    wanted = load_file(expected)
    f, tokens = wanted["f"], wanted["tokens"]
    dataset = LatentDataset(
        raw_dir=latents,  # pyright: ignore[reportArgumentType]
        sampler_cfg=SamplerConfig(n_examples_train=5, n_examples_test=5, n_quantiles=2),
        constructor_cfg=ConstructorConfig(example_ctx_len=32, min_examples=10, n_non_activating=5),
        tokenizer=AutoTokenizer.from_pretrained(tokenizer),
    )
    got = torch.zeros_like(f)
    n_latents = n_activations = 0
    for buffer in dataset.buffers:
        for latent in buffer:
            where, values = latent.activation_data.locations, latent.activation_data.activations
            got[where[:, 0], where[:, 1], latent.latent.latent_index] = values.float()
            n_latents, n_activations = n_latents + 1, n_activations + len(values)
    half = torch.where(f > 1e-5, f, 0).half().float()
    (module,) = dataset.modules
    files, differ = written(f, tokens, module, latents, Path(own))
    found: dict[str, Any] = {
        "difference": float((got - half).abs().max() / half.max()),
        "tokens_equal": bool((dataset.tokens == tokens).all()),
        "latents": n_latents,
        "activations": n_activations,
        "records": sum(1 for _ in dataset),
        "files": files,
        "files_differ": differ,
    }
    print(json.dumps(found))


def written(f: torch.Tensor, tokens: torch.Tensor, module: str, latents: str, own: Path) -> tuple[int, int]:
    """How many files its own cache writes, and how many of them hold something else than ours."""
    cache = LatentCache.__new__(LatentCache)
    cache.width, cache.cache = f.shape[2], InMemoryCache(batch_size=len(f))
    cache.cache.add(f, tokens, 0, module)
    cache.cache.save()
    with suppress(RuntimeError, ValueError):  # the largest of no locations, in a file without an activation
        cache.save_splits(5, own)
    paths = sorted((own / module).glob("*.safetensors"))
    differ = 0
    for path in paths:
        theirs, ours = load_file(path), load_file(Path(latents) / module / path.name)
        same = all(
            theirs[name].shape == ours[name].shape and (theirs[name].int() == ours[name].int()).all()
            for name in ("tokens", "locations")
        )
        differ += not (same and torch.equal(theirs["activations"], ours["activations"]))
    return len(paths), differ


if __name__ == "__main__":
    main(*sys.argv[1:])
