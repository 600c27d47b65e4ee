"""Save and load a trained SAE: a folder with `cfg.json` and `sae_weights.safetensors`, in SAELens' layout."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Annotated, Any

import torch
from jaxtyping import Int
from pydantic import AfterValidator, Field, TypeAdapter, ValidationError
from torch import Tensor

from ..errors import InputError
from ..files import (
    CHECKSUMS,
    atomic_folder,
    listed_checksum,
    read_json,
    read_tensors,
    write_json,
    write_tensors,
)
from ..schema import FLOATS, INTEGERS, Checksum, Name, Schema, checked, listed, shown
from ..structure.forest import Forest
from .base import SAE, SAEConfig, TranscoderConfig
from .checks import MOST_FEATURES
from .normalizer import LayerNorm
from .systems import SYSTEMS

FORMAT_VERSION = 1
SAE_FOLDER = "sae"  # within a run
TRAINING = "training"  # within the metadata
CFG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
# The SAELens version whose layout this is. SAELens reads a folder without a version as one from before 6.0.
_SAELENS = "6.54.12"

_LONGEST = 4_096
_OTHER = "the file is damaged or was written by another tool"


def _fit_for_a_line(metadata: dict[str, Any]) -> dict[str, Any]:
    """Raise ValueError if a string anywhere in the metadata is too long to be shown in a message."""
    for key in ("model_name", "hook_name", "dataset", "dataset_path"):
        if not isinstance(metadata.get(key), str | None):
            raise ValueError(f"expected a string as '{key}'")
    waiting: list[Any] = [metadata]
    while waiting:
        match waiting.pop():
            case dict() as items:
                waiting += [*items, *items.values()]
            case list() as items:
                waiting += items
            case str() as text if len(text) > _LONGEST:
                raise ValueError(f"expected strings of at most {_LONGEST:,} characters")
            case _:
                pass
    return metadata


Metadata = Annotated[dict[str, Any], AfterValidator(_fit_for_a_line)]
"""The metadata of an SAE: where it comes from and how it was trained."""


class _Frame(Schema):
    """The keys of cfg.json that every SAE has besides its configuration. Transcoders have `d_out`."""

    d_in: Annotated[int, Field(ge=1, le=MOST_FEATURES)]
    d_sae: Annotated[int, Field(ge=1, le=MOST_FEATURES)]
    d_out: Annotated[int, Field(ge=1, le=MOST_FEATURES)] | None = None
    apply_b_dec_to_input: bool = True
    exact_inverse: bool | None = None
    metadata: Metadata = Field(default_factory=dict)
    checksums: dict[Name, Checksum] = Field(default_factory=dict)


def check_inference(config: SAEConfig) -> None:
    """Raise InputError for a normalization factor or an activation threshold that no system can work with."""
    threshold = config.activation_threshold
    scales = {"normalize_activations": config.normalize_activations}
    if isinstance(config, TranscoderConfig):
        scales["normalize_target"] = config.normalize_target
    for key, scale in scales.items():
        if not isinstance(scale, str) and not 0 < scale < math.inf:
            raise InputError(f"sae.{key} = {scale}: expected a factor above 0")
    if not 0 <= threshold < math.inf:
        raise InputError(f"sae.activation_threshold = {threshold}: expected 0 or more")


def save_sae(sae: SAE, folder: Path) -> None:
    """Save the SAE to a folder. If that fails, the folder is left as it was."""
    with atomic_folder(folder) as temporary:
        weights = write_tensors(temporary / WEIGHTS, sae.tensors())
        write_json(temporary / CFG, {**_cfg(sae), CHECKSUMS: {WEIGHTS: weights}})


def _cfg(sae: SAE) -> dict[str, Any]:
    config = sae.config
    return {
        "format_version": FORMAT_VERSION,
        "architecture": config.architecture,
        "d_in": sae.d_in,
        **({"d_out": sae.d_out} if sae.is_transcoder else {}),
        "d_sae": sae.d_sae,
        **_settings(sae),
        "apply_b_dec_to_input": not sae.is_transcoder,
        "dtype": "float32",
        # Also saved as a tensor, but SAELens casts tensors to the SAE's dtype, and bfloat16 cannot hold large ids.
        "parent": sae.parent.tolist(),
        "metadata": sae.metadata,
        **({} if sae.is_transcoder else _for_saelens(sae)),
    }


def _keys(sae_class: type[SAE], transcoder: bool) -> tuple[str, ...]:
    """The names of the settings that cfg.json may contain."""
    return sae_class.inference_keys + (("normalize_target",) if transcoder else ())


def _settings(sae: SAE) -> dict[str, Any]:
    """The settings that cfg.json contains, and their values."""
    config, default = sae.config, type(sae.config)()
    found = {name: getattr(config, name) for name in _keys(type(sae), sae.is_transcoder)}
    return {
        name: value
        for name, value in found.items()
        if name not in sae.defaulted_keys or value != getattr(default, name)
    }


def _for_saelens(sae: SAE) -> dict[str, Any]:
    """The keys that SAELens needs besides ours, to load an SAE; one with a forest needs the plug-in
    (`interop/saelens.py`)."""
    named = {"sae_lens_version": _SAELENS, "reshape_activations": "none"}
    if sae.has_forest:
        return named
    exact = isinstance(sae.normalizer, LayerNorm) and sae.normalizer.exact_inverse
    return {**named, "exact_inverse": exact, **sae.saelens_keys()}


def load_sae(folder: str | Path) -> SAE:
    """Load an SAE from a folder that `save_sae` or a training run (RUN or RUN/sae) wrote.

    Raises InputError if the folder, a file, a key, a tensor or a shape is missing or wrong.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; expected a trained SAE ({CFG} and {WEIGHTS})")
    if not (folder / CFG).exists() and (folder / SAE_FOLDER).is_dir():
        folder = folder / SAE_FOLDER
    if several := sorted(path.parent.name for path in folder.glob(f"*/{CFG}")):
        raise InputError(f"{folder}: holds several SAEs; give one of its folders: {listed(several)}")
    cfg = read_json(folder / CFG)
    _check_version(cfg, folder / CFG)
    sae_class = SYSTEMS[cfg["architecture"]]
    keys = _keys(sae_class, cfg.get("d_out") is not None)
    for key in keys:
        if key not in cfg and key not in sae_class.defaulted_keys:
            raise InputError(f"{folder / CFG}: key '{key}' is missing; {_OTHER}")
    config = checked(
        sae_class.config_class, {key: cfg[key] for key in keys if key in cfg}, folder / CFG, _OTHER
    )
    try:
        check_inference(config)
    except InputError as error:
        raise InputError(f"{folder / CFG}: {error}") from None
    for key in ("normalize_activations", "normalize_target"):
        if key in keys and cfg[key] == "dataset_scale":
            raise InputError(
                f"{folder / CFG}: key '{key}': dataset_scale: expected the number that training determined"
            )
    frame = checked(_Frame, cfg, folder / CFG, _OTHER)
    if frame.apply_b_dec_to_input == (frame.d_out is not None):
        raise InputError(
            f"{folder / CFG}: key 'apply_b_dec_to_input': expected true for an SAE, false for a transcoder (d_out); "
            f"{_OTHER}"
        )
    if frame.d_sae != sum(config.layer_sizes):
        raise InputError(
            f"{folder / CFG}: d_sae = {frame.d_sae}, but layer_sizes {list(config.layer_sizes)} "
            f"add up to {sum(config.layer_sizes)}; {_OTHER}"
        )
    weights = read_tensors(folder / WEIGHTS, listed_checksum(cfg, WEIGHTS))
    # Check the largest tensors before memory is allocated for an SAE of these sizes.
    check_weights(weights, sae_class.tensor_shapes(frame.d_in, frame.d_sae, frame.d_out), folder / WEIGHTS)
    config = with_bias(config, weights, folder / WEIGHTS)
    try:
        sae = sae_class(config, frame.d_in, d_out=frame.d_out)
    except InputError as error:  # this system, or this normalization of the target, allows no transcoder
        raise InputError(f"{folder / CFG}: {error}") from None
    shapes = {name: list(tensor.shape) for name, tensor in sae.tensors().items()}
    check_weights(weights, shapes, folder / WEIGHTS)
    sae.metadata = frame.metadata
    if frame.exact_inverse is not None and isinstance(sae.normalizer, LayerNorm):
        sae.normalizer = LayerNorm(frame.exact_inverse)
    for name, place in sae.tensors().items():
        place.data.copy_(weights[name])
    _check_parent(cfg, config, sae.parent, folder)
    return sae.eval()


def training_settings(config: SAEConfig) -> dict[str, Any]:
    """All settings of a system as JSON values, for the metadata of its SAE.

    Besides the metadata, cfg.json holds only the settings that a trained SAE needs.
    """
    return TypeAdapter(type(config)).dump_python(config, mode="json")


def trained_with(sae: SAE) -> SAEConfig | None:
    """The settings with which an SAE was trained, by its metadata. None if they do not say."""
    config_class: type[SAEConfig] = type(sae).config_class
    try:
        return TypeAdapter(config_class).validate_python(sae.metadata.get(TRAINING))
    except (ValidationError, InputError):
        return None


def with_bias(config: SAEConfig, weights: Mapping[str, Tensor], path: Path) -> SAEConfig:
    """The configuration with an encoder bias if the file contains one.

    Raises InputError if the system has no encoder bias.
    """
    if "b_enc" not in weights or not weights["b_enc"].any():
        return config
    if "encoder_bias" not in {f.name for f in fields(config)}:  # pyright: ignore[reportArgumentType]
        raise InputError(
            f"{path}: tensor 'b_enc' is not zero, but an SAE of architecture {config.architecture} has no encoder bias"
        )
    return replace(config, encoder_bias=True)  # pyright: ignore[reportArgumentType]


def _check_version(cfg: Any, path: Path) -> None:
    if not isinstance(cfg, dict):
        raise InputError(f"{path}: expected a JSON object with the SAE's configuration")
    version = cfg.get("format_version", FORMAT_VERSION)
    if type(version) is not int or not 0 < version <= FORMAT_VERSION:
        raise InputError(
            f"{path}: format_version {shown(version)}: this saeforest reads versions up to {FORMAT_VERSION}; "
            "upgrade saeforest"
        )
    architecture = cfg.get("architecture")
    if not isinstance(architecture, str) or architecture not in SYSTEMS:
        raise InputError(f"{path}: architecture {shown(architecture)}: expected one of {', '.join(SYSTEMS)}")


def check_weights(weights: Mapping[str, Tensor], shapes: Mapping[str, list[int]], path: Path) -> None:
    """Raise InputError unless the tensors of a file have these names and shapes, a fitting type and finite values."""
    for name, shape in shapes.items():
        if name not in weights:
            raise InputError(f"{path}: tensor '{name}' is missing; the file contains {listed(weights)}")
        tensor = weights[name]
        if list(tensor.shape) != shape:
            raise InputError(
                f"{path}: tensor '{name}' has shape {list(tensor.shape)}; expected {shape}, as {CFG} implies"
            )
        numbers, types = ("integers", INTEGERS) if name == "parent" else ("floating-point numbers", FLOATS)
        if tensor.dtype not in types:
            raise InputError(f"{path}: tensor '{name}' has dtype {tensor.dtype}; expected {numbers}")
        if not torch.isfinite(tensor).all():
            raise InputError(f"{path}: tensor '{name}' holds NaN or infinite values")


def _check_parent(
    cfg: Mapping[str, Any], config: SAEConfig, parent: Int[Tensor, "d_sae"], folder: Path
) -> None:
    try:
        Forest(parent, config.layer_sizes)
    except InputError as error:
        raise InputError(f"{folder / WEIGHTS}: {error}") from None
    if "parent" in cfg and cfg["parent"] != parent.tolist():
        raise InputError(f"{folder}: 'parent' differs between {CFG} and {WEIGHTS}; copy the folder again")
