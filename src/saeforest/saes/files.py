"""A trained SAE on disk: `cfg.json` and `sae_weights.safetensors`, in SAELens' layout."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from ..errors import UserError
from ..files import atomic_folder, read_json, read_tensors, write_json, write_tensors
from ..forest import Forest
from .base import SAE
from .tree import TreeConfig, TreeSAE

FORMAT_VERSION = 1
CFG, WEIGHTS = "cfg.json", "sae_weights.safetensors"

#: architecture -> (its configuration, its class). A new system is one file and one line here.
SYSTEMS: dict[str, tuple[type[TreeConfig], type[TreeSAE]]] = {"tree": (TreeConfig, TreeSAE)}

# What of a configuration the trained SAE needs; the rest is how it was trained and lives in RUN/config.yaml.
_INFERENCE = ("layer_sizes", "k_per_layer", "normalize_activations", "activation_threshold")


def build(config: TreeConfig, d_in: int, *, seed: int) -> SAE:
    """A fresh SAE of the system that the configuration belongs to."""
    return SYSTEMS[config.architecture][1](config, d_in, seed=seed)


def save_sae(sae: SAE, folder: Path) -> None:
    """Writes the SAE so that the folder is whole or untouched."""
    with atomic_folder(folder) as temporary:
        write_json(temporary / CFG, _cfg(sae))
        weights = {
            "W_enc": sae.W_enc,
            "W_dec": sae.W_dec,
            "b_enc": sae.b_enc,
            "b_dec": sae.b_dec,
            "parent": sae.parent,
        }
        write_tensors(temporary / WEIGHTS, weights)


def _cfg(sae: SAE) -> dict[str, Any]:
    config = sae.config
    return {
        "format_version": FORMAT_VERSION,
        "architecture": config.architecture,
        "d_in": sae.d_in,
        "d_sae": sae.d_sae,
        **{name: getattr(config, name) for name in _INFERENCE},
        "apply_b_dec_to_input": True,
        "dtype": "float32",
        # Beside the tensor of the same name: SAELens casts every tensor to the SAE's dtype, and bf16 loses ids.
        "parent": sae.parent.tolist(),
        "metadata": sae.metadata,
    }


def load_sae(folder: str | Path) -> SAE:
    """The SAE in a folder that `save_sae` (or a training run: RUN/sae) wrote.

    Raises UserError where the folder, a file, a key, a tensor or a shape is missing or wrong.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; expected a trained SAE ({CFG} and {WEIGHTS})")
    if not (folder / CFG).exists() and (folder / "sae" / CFG).exists():
        folder = folder / "sae"
    cfg = read_json(folder / CFG)
    _check_version(cfg, folder / CFG)
    config_class, sae_class = SYSTEMS[cfg["architecture"]]
    given = {f.name: cfg[f.name] for f in fields(config_class) if f.name in _INFERENCE and f.name in cfg}
    try:
        config = TypeAdapter(config_class).validate_python(given)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise UserError(f"{folder / CFG}: key '{key}': {first['msg']}, got {first['input']!r}") from None
    weights = read_tensors(folder / WEIGHTS)
    sae = sae_class(config, _require(cfg, "d_in", folder / CFG))
    sae.metadata = cfg.get("metadata", {})
    _fill(sae, weights, folder / WEIGHTS)
    _check_parent(cfg, sae.parent, folder)
    return sae.eval()


def _check_version(cfg: Any, path: Path) -> None:
    if not isinstance(cfg, dict):
        raise UserError(f"{path}: expected a JSON object with the SAE's configuration")
    version = cfg.get("format_version", FORMAT_VERSION)
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise UserError(
            f"{path}: format_version {version!r}: this saeforest reads up to {FORMAT_VERSION}; upgrade it"
        )
    if (architecture := cfg.get("architecture")) not in SYSTEMS:
        raise UserError(f"{path}: architecture {architecture!r}: expected one of {', '.join(SYSTEMS)}")


def _require(cfg: Mapping[str, Any], key: str, path: Path) -> Any:
    if key not in cfg:
        raise UserError(f"{path}: key '{key}' is missing; the file is damaged or of another tool")
    return cfg[key]


@torch.no_grad()
def _fill(sae: SAE, weights: Mapping[str, Tensor], path: Path) -> None:
    places = {
        "W_enc": sae.encoder.data.T,
        "W_dec": sae.decoder.data,
        "b_enc": sae.b_enc,
        "b_dec": sae.b_dec.data,
        "parent": sae.parent,
    }
    for name, place in places.items():
        if name not in weights:
            raise UserError(f"{path}: tensor '{name}' is missing; it holds {', '.join(sorted(weights))}")
        tensor = weights[name]
        if tensor.shape != place.shape:
            raise UserError(
                f"{path}: tensor '{name}' has shape {list(tensor.shape)}, but {CFG} calls for {list(place.shape)}"
            )
        if tensor.is_floating_point() != place.is_floating_point():
            raise UserError(f"{path}: tensor '{name}' has dtype {tensor.dtype}, expected {place.dtype}")
        if not torch.isfinite(tensor).all():
            raise UserError(f"{path}: tensor '{name}' holds NaN or infinite values")
        place.copy_(tensor)


def _check_parent(cfg: Mapping[str, Any], parent: Int[Tensor, "d_sae"], folder: Path) -> None:
    try:
        Forest(parent, tuple(cfg["layer_sizes"]))
    except UserError as error:
        raise UserError(f"{folder / WEIGHTS}: {error}") from None
    if "parent" in cfg and cfg["parent"] != parent.tolist():
        raise UserError(f"{folder}: 'parent' differs between {CFG} and {WEIGHTS}; copy the folder again")
