"""The forests that measures take: an SAE's own or, for a flat one, one inferred from text it was trained on.

What was inferred is kept in RUN/forest/, so that every measurement of a run is of the same forest.
"""

from __future__ import annotations

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
from ..files import atomic_folder, read_json, read_tensors, write_json, write_tensors
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
    """Forest and its origin in a few words, for each SAE; flat ones share one reading of the training text."""
    found: dict[str, tuple[Forest, str]] = {}
    missing: dict[str, ForestInference] = {}
    for name, (config, sae) in saes.items():
        if not sae.flat:
            found[name] = sae.forest, "its own"
        elif (
            kept := _read(within(folder / FOREST_FOLDER, name), sae, _about(config, sae, options))
        ) is not None:
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
        inferred, about = inference.forest(), _about(config, sae, options)
        _write(place, inferred, about)
        found[name] = inferred.forest, _origin(about)
    return found


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
        "weights": float(sae.W_dec.detach().double().abs().sum()),
        "data": config.data,
        "tokens": min(options.infer_tokens, config.tokens),
        "infer": asdict(options.infer),
    }


def _origin(about: Mapping[str, Any]) -> str:
    infer = about["infer"]
    return f"inferred by {infer['method']}, parents by {infer['order']}, from {about['tokens']:,} training activations"


def _write(folder: Path, inferred: InferredForest, about: dict[str, Any]) -> None:
    tensors = {"parent": inferred.forest.parent, "score": inferred.score, "n_fired": inferred.n_fired}
    if inferred.s_res is not None:
        tensors["s_res"] = inferred.s_res
    with atomic_folder(folder) as temporary:
        write_tensors(temporary / _TENSORS, tensors)
        write_json(temporary / _ABOUT, {**about, "layered": inferred.forest.layered})


def _read(folder: Path, sae: SAE, about: dict[str, Any]) -> tuple[Forest, str] | None:
    """A forest kept for this SAE and these settings, if there is one."""
    try:
        kept = read_json(folder / _ABOUT)
        parent = read_tensors(folder / _TENSORS)["parent"]
        layered = bool(kept.pop("layered"))
        if kept != about:
            return None
        return Forest(parent.to(torch.int64), sae.config.layer_sizes, layered=layered), _origin(about)
    except (UserError, KeyError, AttributeError):  # none, or a damaged one
        return None
