"""The forests that measures take: an SAE's own or, for a flat one, one inferred from text it was trained on.

What was inferred is kept in RUN/forest/, so that every measurement of a run is of the same forest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..activations import ActivationReader
from ..activations.sources import is_store, open_store
from ..config import TrainConfig
from ..errors import UserError
from ..files import (
    CHECKSUMS,
    atomic_folder,
    listed_checksum,
    read_json,
    read_tensors,
    write_json,
    write_tensors,
)
from ..forest import Forest
from ..infer import ForestInference, InferredForest
from ..progress import progress
from ..saes import SAE
from ..session import read_tokens, within
from .options import MeasureOptions

FOREST_FOLDER = "forest"
_ABOUT, _TENSORS = "forest.json", "forest.safetensors"


def forests_of(
    saes: Mapping[str, tuple[TrainConfig, SAE]],
    reader: ActivationReader,
    options: MeasureOptions,
    folder: Path,
) -> dict[str, tuple[Forest, str]]:
    """Forest and its origin in a few words, for each SAE; flat ones share one reading of the training text.

    `reader` leaves out the positions that training did, whatever is left out of what is measured.
    """
    found: dict[str, tuple[Forest, str]] = {}
    missing: dict[str, ForestInference] = {}
    for name, (config, sae) in saes.items():
        if not sae.flat:
            found[name] = sae.forest, "its own"
            continue
        place = within(folder / FOREST_FOLDER, name)
        if (kept := _read(place, sae, _about(config, sae, options), options)) is not None:
            found[name] = kept
        else:
            missing[name] = ForestInference(sae, options.infer)
    if not missing:
        return found
    config = saes[next(iter(missing))][0]
    with progress("read for forests", min(options.infer_tokens, config.tokens), "tokens") as advance:
        for x in _training_activations(config, reader, options.infer_tokens):
            for inference in missing.values():
                inference.add(x)
            advance(len(x))
    for name, inference in missing.items():
        config, sae = saes[name]
        place = within(folder / FOREST_FOLDER, name)
        inferred = inference.forest()
        _write(place, inferred, _about(config, sae, options))
        found[name] = inferred.forest, _origin(options, inferred.n_tokens)
    return found


def digest(sae: SAE) -> str:
    """Tells SAEs apart: weights, forest, and what else decides what they compute."""
    found = hashlib.blake2b(digest_size=8)
    for name, tensor in sorted(sae.tensors().items()):
        found.update(name.encode())
        found.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    found.update(repr([(key, getattr(sae.config, key)) for key in sae.inference_keys]).encode())
    return found.hexdigest()


def _training_activations(
    config: TrainConfig, reader: ActivationReader, n_tokens: int
) -> Iterator[Float[Tensor, "n d_in"]]:
    """About the first `n_tokens` activations of the text that the SAE was trained on, harvested or read anew."""
    left = min(n_tokens, config.tokens)
    if is_store(Path(config.data)):
        store = open_store(Path(config.data), config.data_seed)
        batches = (store.block(0, i).x for i in range(store.n_blocks))
    else:
        text = read_tokens(config, reader, "train", max(left, config.text.context))
        batches = (batch.x for batch, _ in reader.batches(text))
    for x in batches:
        yield x[:left]
        left -= len(x)
        if left <= 0:
            return


def _about(config: TrainConfig, sae: SAE, options: MeasureOptions) -> dict[str, Any]:
    """What a kept forest must agree with to stand for the SAE again."""
    return {
        "d_sae": sae.d_sae,
        "sae": digest(sae),
        "data": config.data,
        "tokens": min(options.infer_tokens, config.tokens),
        "infer": asdict(options.infer),
    }


def _origin(options: MeasureOptions, n: int) -> str:
    infer = options.infer
    return f"inferred by {infer.method}, parents by {infer.order}, from {n:,} training activations"


def _write(folder: Path, inferred: InferredForest, about: dict[str, Any]) -> None:
    tensors = {"parent": inferred.forest.parent, "score": inferred.score, "n_fired": inferred.n_fired}
    if inferred.s_res is not None:
        tensors["s_res"] = inferred.s_res
    with atomic_folder(folder) as temporary:
        found = {
            "layered": inferred.forest.layered,
            "activations": inferred.n_tokens,
            CHECKSUMS: {_TENSORS: write_tensors(temporary / _TENSORS, tensors)},
        }
        write_json(temporary / _ABOUT, about | found)


def _read(
    folder: Path, sae: SAE, about: dict[str, Any], options: MeasureOptions
) -> tuple[Forest, str] | None:
    """A forest kept for this SAE and these settings, if there is one."""
    try:
        kept = read_json(folder / _ABOUT)
        parent = read_tensors(folder / _TENSORS, listed_checksum(kept, _TENSORS))["parent"]
        kept.pop(CHECKSUMS, None)
        layered, n = bool(kept.pop("layered")), int(kept.pop("activations"))
        if kept != about:
            return None
        forest = Forest(parent.to(torch.int64), sae.config.layer_sizes, layered=layered)
        return forest, _origin(options, n)
    except (UserError, KeyError, AttributeError):  # none, or a damaged one
        return None
