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
from jaxtyping import Float, Int
from torch import Tensor

from ..activations import ActivationReader
from ..activations.data import StoredData, TextData, data_of
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
from ..infer import ForestInference, InferredForest
from ..memory import Forecast
from ..output import note
from ..progress import progress
from ..run_folder import RunFolder
from ..saes import SAE
from ..schema import Count, Schema, checked, without
from ..session import read_tokens
from ..structure.forest import Forest
from .options import MeasureOptions

ABOUT, TENSORS = "forest.json", "forest.safetensors"


class _Kept(Schema):
    """What forest.json says beside the question that it answers."""

    layered: bool
    activations: Count


def forests_of(
    saes: Mapping[str, tuple[TrainConfig, SAE]],
    reader: ActivationReader,
    options: MeasureOptions,
    run: RunFolder,
) -> dict[str, tuple[Forest, str]]:
    """Forest and its origin in a few words, for each SAE; flat ones share one reading of the training text.

    `reader` leaves out the positions that training did, whatever is left out of what is measured.
    Raises UserError where another process infers one of the forests that are missing.
    """
    found: dict[str, tuple[Forest, str]] = {}
    missing: dict[str, ForestInference] = {}
    for name, (config, sae) in saes.items():
        if not sae.flat:
            found[name] = sae.forest, "its own"
            continue
        if (kept := _read(run.forest(name), sae, _about(config, sae, options), options)) is not None:
            found[name] = kept
        else:
            missing[name] = ForestInference(sae, options.infer)
    if missing:
        with run.claimed(*map(run.forest, missing)):
            found |= _inferred(missing, saes, reader, options, run)
    return found


def _inferred(
    missing: Mapping[str, ForestInference],
    saes: Mapping[str, tuple[TrainConfig, SAE]],
    reader: ActivationReader,
    options: MeasureOptions,
    run: RunFolder,
) -> dict[str, tuple[Forest, str]]:
    """Reads the text, and keeps and returns the forests that are missing."""
    found: dict[str, tuple[Forest, str]] = {}
    config = saes[next(iter(missing))][0]
    n_tokens = min(options.infer_tokens, config.tokens)
    forecast = Forecast("forests", "infer_tokens or lm.batch_size")
    with progress("read for forests", n_tokens, "tokens") as advance:
        for x in _training_activations(config, reader, options.infer_tokens):
            for inference in missing.values():
                inference.add(x)
            advance(len(x))
            share = min(len(x) / n_tokens, 1.0)
            forecast.tell(
                sum(inference.still_to_come(share) for inference in missing.values()),
                max(inference.afterwards(share) for inference in missing.values()),
            )
    for name, inference in missing.items():
        config, sae = saes[name]
        inferred = inference.forest()
        _write(run.forest(name), inferred, _about(config, sae, options))
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
    match data_of(config.data):
        case StoredData() as stored:
            store = stored.open(config.data_seed)
            batches = (store.block(0, i).x for i in range(store.n_blocks))
        case TextData():
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
            CHECKSUMS: {TENSORS: write_tensors(temporary / TENSORS, tensors)},
        }
        write_json(temporary / ABOUT, about | found)


def _read(
    folder: Path, sae: SAE, about: dict[str, Any], options: MeasureOptions
) -> tuple[Forest, str] | None:
    """A forest kept for this SAE and these settings, if there is one."""
    if not (folder / ABOUT).exists():
        return None
    try:
        kept, parent = read_forest(folder)
        if without(kept, CHECKSUMS, *_Kept.model_fields) != about:
            return None
        of = checked(_Kept, kept, folder / ABOUT)
        forest = Forest(parent, sae.config.layer_sizes, layered=of.layered)
        return forest, _origin(options, of.activations)
    except UserError as error:
        note(f"{error}; the forest is inferred anew")
        return None


def read_forest(folder: Path) -> tuple[dict[str, Any], Int[Tensor, "d_sae"]]:
    """What a kept forest says of itself, and its parents. Raises UserError where either is damaged."""
    kept = read_json(folder / ABOUT)
    checked(_Kept, kept, folder / ABOUT)
    tensors = read_tensors(folder / TENSORS, listed_checksum(kept, TENSORS))
    parent = tensors.get("parent")
    if parent is None or parent.dtype != torch.int64 or parent.dim() != 1:
        raise UserError(f"{folder / TENSORS}: expected 'parent', a list of 64-bit integers")
    return kept, parent
