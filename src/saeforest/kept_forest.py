"""Inferred forests on disk: writing and reading them, and checking what they were inferred from."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from .errors import InputError, command
from .files import (
    CHECKSUMS,
    atomic_folder,
    listed_checksum,
    read_json,
    read_tensors,
    write_json,
    write_tensors,
)
from .infer import InferConfig, InferredForest
from .output import note
from .saes import SAE
from .schema import Count, Schema, checked, without
from .structure.forest import Forest

ABOUT, TENSORS = "forest.json", "forest.safetensors"


class _Infer(Schema):
    """The settings of an inferred forest that are read from forest.json."""

    method: str
    order: str


class _Kept(Schema):
    """The keys of forest.json other than those of `forest_question`.

    chosen: whether a user inferred this forest explicitly, so that it is used until the user infers another.
    """

    layered: bool
    activations: Count
    chosen: bool = False


class _Asked(Schema):
    """The keys of forest.json that say how it was to be inferred."""

    infer: InferConfig
    tokens: Count


def digest(sae: SAE) -> str:
    """A hash of everything that decides what an SAE computes: its weights, its forest and its configuration."""
    found = hashlib.blake2b(digest_size=8)
    for name, tensor in sorted(sae.tensors().items()):
        found.update(name.encode())
        found.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    found.update(repr([(key, getattr(sae.config, key)) for key in sae.inference_keys]).encode())
    return found.hexdigest()


def forest_question(sae: SAE, data: str, tokens: int, infer: InferConfig) -> dict[str, Any]:
    """What a forest was inferred from. A kept forest is used again only if it agrees with this."""
    return {"d_sae": sae.d_sae, "sae": digest(sae), "data": data, "tokens": tokens, "infer": asdict(infer)}


def write_forest(
    folder: Path, inferred: InferredForest, about: dict[str, Any], *, chosen: bool = False
) -> None:
    """Write an inferred forest to a folder, atomically. `about` is its `forest_question`."""
    tensors = {"parent": inferred.forest.parent, "score": inferred.score, "n_fired": inferred.n_fired}
    if inferred.s_res is not None:
        tensors["s_res"] = inferred.s_res
    with atomic_folder(folder) as temporary:
        found = {
            "layered": inferred.forest.layered,
            "activations": inferred.n_tokens,
            **({"chosen": True} if chosen else {}),
            CHECKSUMS: {TENSORS: write_tensors(temporary / TENSORS, tensors)},
        }
        write_json(temporary / ABOUT, about | found)


def kept_forest(
    folder: Path, sae: SAE, about: dict[str, Any], *, by_default: bool = False
) -> tuple[Forest, str] | None:
    """The forest kept for this SAE, and a short description of where it comes from; None if none fits `about`.

    by_default: whether `about` has only default settings, so that a forest that the user chose fits too.

    Raises InputError if the user chose a forest with other settings.
    """
    if not (folder / ABOUT).exists():
        return None
    try:
        kept, parent = read_forest(folder)
        of, by = checked(_Kept, kept, folder / ABOUT), checked(_Infer, kept.get("infer"), folder / ABOUT)
        of_sae = (kept.get("sae"), kept.get("d_sae")) == (about["sae"], about["d_sae"])
        forest = Forest(parent, sae.config.layer_sizes, layered=of.layered) if of_sae else None
    except InputError as error:
        note(f"{error}; the forest is inferred again")
        return None
    if forest is None:
        return None
    asked = without(kept, CHECKSUMS, *_Kept.model_fields) == about
    if of.chosen and not asked and not by_default:
        raise InputError(
            f"{folder}: holds a forest that was inferred with other settings; leave out the infer settings to measure "
            "that forest, or infer one with these settings first"
        )
    return (forest, origin(by.method, by.order, of.activations)) if asked or of.chosen else None


def inferred_with(folder: Path) -> tuple[InferConfig, int]:
    """The settings with which a kept forest was inferred, and the number of tokens it was asked to take.

    Raises InputError if its forest.json is damaged.
    """
    asked = checked(_Asked, read_json(folder / ABOUT), folder / ABOUT)
    return asked.infer, asked.tokens


def forest_of(sae: SAE, folder: Path) -> tuple[Forest, str]:
    """The forest to show for an SAE, and where it comes from, in a few words.

    An SAE that learned a forest has its own. A flat SAE has the one that was inferred for it, by `infer` or for a
    measure, and is kept in `folder`; without one, or if that was inferred for another SAE, its forest has no edges.

    Raises InputError if the forest in `folder` is damaged.
    """
    if sae.has_forest:
        return sae.forest, "learned"
    if (folder / ABOUT).exists():
        try:
            kept, parent = read_forest(folder)
            about, by = (
                checked(_Kept, kept, folder / ABOUT),
                checked(_Infer, kept.get("infer"), folder / ABOUT),
            )
            if (kept.get("sae"), len(parent)) == (digest(sae), sae.d_sae):
                forest = Forest(parent, sae.config.layer_sizes, layered=about.layered)
                return forest, origin(by.method, by.order, about.activations)
        except InputError as error:
            raise InputError(
                f"{error}; `{command('infer', folder.parent)}` infers the forest again"
            ) from None
    return sae.forest, "none"


def origin(method: str, order: str, n: int) -> str:
    """A short description of where an inferred forest comes from, for records and reports."""
    return f"inferred by {method}, parents by {order}, from {n:,} training activations"


def read_forest(folder: Path) -> tuple[dict[str, Any], Int[Tensor, "d_sae"]]:
    """Read forest.json and the parents `[d_sae]` of a kept forest. Raises InputError if either is damaged."""
    kept = read_json(folder / ABOUT)
    checked(_Kept, kept, folder / ABOUT)
    tensors = read_tensors(folder / TENSORS, listed_checksum(kept, TENSORS))
    parent = tensors.get("parent")
    if parent is None or parent.dtype != torch.int64 or parent.dim() != 1:
        raise InputError(f"{folder / TENSORS}: expected 'parent', a list of 64-bit integers")
    return kept, parent
