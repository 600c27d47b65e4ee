"""The SAEs that the authors of the Tree SAE released: a folder with `config.json` and `sae.safetensors`.

There are five types, all on normalized activations (docs/spec/activations.md#normalization) and without an encoder
bias: tree, matryoshka and topk (one k for the whole dictionary), mp (matching pursuit; one dictionary and no bias at
all) and relu. Weights are kept as
stored, the decoder slightly off unit norm, so that codes and reconstructions are those of the authors' code.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from ..errors import InputError
from ..files import read_json, read_tensors, write_tensors
from ..saes import (
    SAE,
    JumpReLUConfig,
    LayerNorm,
    MatchingPursuitConfig,
    MatryoshkaConfig,
    SAEConfig,
    TopKConfig,
    TreeConfig,
    build,
)
from ..saes.checks import MOST_FEATURES
from ..schema import FLOATS, INTEGERS, listed, shown
from ..structure.forest import ROOT
from .exports import Exported, export_folder

CONFIG, WEIGHTS = "config.json", "sae.safetensors"
_THRESHOLD = 1e-3


def load_tree_sae(folder: Path) -> SAE:
    """An SAE that the Tree SAE's authors released, as one of ours: it encodes and reconstructs as in their code.

    The whole of config.json is in `metadata["released"]`.

    Raises InputError where a file, a key, a tensor or a shape is missing or wrong.
    """
    config = _read_config(folder / CONFIG)
    system = _system(config, folder / CONFIG)
    tensors = _read_weights(folder / WEIGHTS, system)
    sae = build(system, tensors.d_in)
    if isinstance(sae.normalizer, LayerNorm):
        sae.normalizer = LayerNorm(exact_inverse=True)
    with torch.no_grad():
        for name, tensor in tensors.by_name.items():
            getattr(sae, name).copy_(tensor)
    sae.metadata = {
        key: config[key] for key in ("model_name", "hook_name") if isinstance(config.get(key), str)
    }
    sae.metadata["released"] = config
    return sae.eval()


# -- config.json


@dataclass(frozen=True)
class _Type:
    """How one of the authors' types is said in ours."""

    config: type
    layers: bool = False
    """Whether its layers mean something; otherwise they are one dictionary."""
    k: Literal["by_layer", "total", "none"] = "total"
    options: dict[str, Any] = field(default_factory=dict)


_TYPES = {
    "tree": _Type(TreeConfig, layers=True, k="by_layer"),
    "matryoshka": _Type(MatryoshkaConfig, layers=True),
    "topk": _Type(TopKConfig),
    "mp": _Type(MatchingPursuitConfig),
    # ReLU is JumpReLU with thresholds of 0; k, which only its training knows, is no limit.
    "relu": _Type(JumpReLUConfig, k="none", options={"encoder_bias": False, "threshold_init": 0.0}),
}


def _read_config(path: Path) -> dict[str, Any]:
    # Python writes, but JSON has no, Infinity: as a string it can be saved with the SAE.
    config = read_json(path, constants="text")
    if not isinstance(config, dict):
        raise InputError(f"{path}: expected a JSON object with the SAE's configuration")
    return config


def _system(config: dict[str, Any], path: Path) -> SAEConfig:
    """The configuration in our terms."""
    name = config.get("type")
    if not isinstance(name, str) or name not in _TYPES:
        raise InputError(f"{path}: key 'type' is {shown(name)}: expected one of {', '.join(_TYPES)}")
    kind = _TYPES[name]
    sizes = _numbers(config, "features_per_layer", path)
    whole = (sum(sizes),)
    k = whole if kind.k == "none" else _numbers(config, "k_per_layer", path)
    if kind.k == "by_layer":
        _check_k(k, sizes, path)
    else:
        k = (sum(k),)
        _check_k(k, whole, path)
    return kind.config(
        layer_sizes=sizes if kind.layers else whole,
        k_per_layer=k,
        normalize_activations="layer_norm",
        activation_threshold=_THRESHOLD,
        **kind.options,
    )


def _check_k(k: tuple[int, ...], sizes: tuple[int, ...], path: Path) -> None:
    if len(k) != len(sizes):
        raise InputError(
            f"{path}: key 'k_per_layer' has {len(k)} entries, but 'features_per_layer' has {len(sizes)}; "
            "expected one k for each layer"
        )
    for active, size in zip(k, sizes, strict=True):
        if active > size:
            raise InputError(
                f"{path}: key 'k_per_layer' asks for {active} active features of {size}, the features there are"
            )


def _numbers(config: dict[str, Any], key: str, path: Path) -> tuple[int, ...]:
    """One number, or one for each layer, all positive."""
    if key not in config:
        raise InputError(f"{path}: key '{key}' is missing; the file is damaged or of another tool")
    value = config[key]
    numbers = value if isinstance(value, list) else [value]
    if not numbers or not all(type(n) is int and 0 < n <= MOST_FEATURES for n in numbers):
        raise InputError(
            f"{path}: key '{key}' is {shown(value)}: expected whole numbers from 1 to {MOST_FEATURES:,}"
        )
    return tuple(numbers)


# -- sae.safetensors


class _Weights(NamedTuple):
    """What fills the SAE, by the names of its parameters and buffers."""

    d_in: int
    by_name: dict[str, Tensor]


def _read_weights(path: Path, system: SAEConfig) -> _Weights:
    tensors = read_tensors(path)
    d_sae = sum(system.layer_sizes)
    decoder = _checked(tensors, "decoder.weight", (None, d_sae), path)
    d_in = len(decoder)
    filled = {"decoder": decoder.T}
    if system.architecture == "matching_pursuit":
        return _Weights(d_in, filled)
    filled["encoder"] = _checked(tensors, "encoder.weight", (d_sae, d_in), path)
    filled["b_dec"] = _checked(tensors, "b_dec", (d_in,), path)
    if "encoder.bias" in tensors and tensors["encoder.bias"].any():
        raise InputError(
            f"{path}: tensor 'encoder.bias' is not zero, but the released SAEs have no such bias"
        )
    if system.architecture == "tree":
        filled["parent"] = _parent(tensors, system.layer_sizes, path)
    return _Weights(d_in, filled)


def _checked(tensors: dict[str, Tensor], name: str, shape: tuple[int | None, ...], path: Path) -> Tensor:
    """A tensor of numbers; None stands for any length."""
    tensor = _present(tensors, name, shape, path)
    if tensor.dtype not in FLOATS:
        raise InputError(f"{path}: tensor '{name}' has dtype {tensor.dtype}, expected floating-point numbers")
    if not torch.isfinite(tensor).all():
        raise InputError(f"{path}: tensor '{name}' holds NaN or infinite values")
    return tensor


def _present(tensors: dict[str, Tensor], name: str, shape: tuple[int | None, ...], path: Path) -> Tensor:
    if name not in tensors:
        raise InputError(f"{path}: tensor '{name}' is missing; it holds {listed(tensors)}")
    found = list(tensors[name].shape)
    fits = len(found) == len(shape) and all(b in (None, a) for a, b in zip(found, shape, strict=True))
    if not fits or 0 in found:
        wanted = ", ".join("d_in" if n is None else str(n) for n in shape)
        raise InputError(f"{path}: tensor '{name}' has shape {found}, but {CONFIG} calls for [{wanted}]")
    return tensors[name]


def _parent(tensors: dict[str, Tensor], sizes: tuple[int, ...], path: Path) -> Int[Tensor, "d_sae"]:
    """Theirs, layer by layer: the root is the number after the last feature before the layer."""
    parents, start = [], 0
    for layer, size in enumerate(sizes):
        name = f"parent_index_{layer}"
        if layer == 0 and name not in tensors:
            parents.append(torch.full((size,), ROOT))
        else:
            index = _present(tensors, name, (size,), path)
            if index.dtype not in INTEGERS:
                raise InputError(f"{path}: tensor '{name}' has dtype {index.dtype}, expected integers")
            index = index.to(torch.int64)
            bad = index[(index < 0) | (index > start)]
            if len(bad):
                raise InputError(
                    f"{path}: tensor '{name}' holds {int(bad[0])}: expected 0 to {start - 1}, the features of earlier "
                    f"layers, or {start}, the root"
                    if start
                    else f"{path}: tensor '{name}' holds {int(bad[0])}: expected 0, the root, in the first layer"
                )
            parents.append(torch.where(index == start, ROOT, index))
        start += size
    return torch.cat(parents)


# -- writing


def write_tree_sae(sae: SAE, out: Path, *, force: bool = False) -> Exported:
    """Write an SAE in the layout of the Tree SAE's authors: `config.json` and `sae.safetensors`, which `load` reads.

    Their code normalizes each activation by itself, and has no encoder bias. What was trained here without a forest
    leaves out in decoding the 1e-5 that their code adds to the deviation: `saeforest-export.json` says so then.

    Raises InputError for an SAE that has no counterpart there, and if `out` holds anything else than an earlier export.
    """
    name, k = _counterpart(sae)
    about: dict[str, Any] = {"type": name}
    if isinstance(sae.normalizer, LayerNorm) and not sae.normalizer.exact_inverse:
        about["loss"] = (
            "in decoding, their code adds 1e-5 to an activation's deviation, as in encoding; here it was not"
        )
    config = {
        "type": name,
        "features_per_layer": list(sae.config.layer_sizes) if _TYPES[name].layers else [sae.d_sae],
        "k_per_layer": k,
        **{key: sae.metadata[key] for key in ("model_name", "hook_name") if key in sae.metadata},
    }
    tensors = {"decoder.weight": sae.decoder.T}
    if name != "mp":
        tensors |= {"encoder.weight": sae.encoder, "b_dec": sae.tensors()["b_dec"]}
    if name == "tree":
        for layer, (start, end) in enumerate(pairwise(sae.starts)):
            parent = sae.parent[start:end]
            tensors[f"parent_index_{layer}"] = torch.where(parent == ROOT, start, parent)
    with export_folder(out, "tree-sae", sae, about, force=force) as folder:
        write_tensors(folder / WEIGHTS, tensors)
        (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return Exported(out, about)


def _counterpart(sae: SAE) -> tuple[str, list[int]]:
    """The authors' type of an SAE, and their k_per_layer. Raises InputError if it has none."""
    config, k = sae.config, [sum(sae.config.k_per_layer)]
    flaws = {
        "normalizes activations by " + str(config.normalize_activations): config.normalize_activations
        != "layer_norm",
        "has an encoder bias": bool(sae.b_enc.any()),
        "is a transcoder": sae.is_transcoder,
    }
    name = next((n for n, kind in _TYPES.items() if isinstance(config, kind.config)), None)
    match config:
        case TreeConfig():
            options = (config.selection, config.budget, config.reads, config.activation_threshold)
            flaws["has options that the paper does not have"] = options != (
                "layer",
                "token",
                "input",
                _THRESHOLD,
            )
            k = list(config.k_per_layer)
        case MatryoshkaConfig():
            flaws["takes features by batch"] = config.selection != "token"
        case JumpReLUConfig():
            flaws["has thresholds"] = bool(sae.tensors()["threshold"].any())
            k = [sae.d_sae]
        case MatchingPursuitConfig():
            theirs = MatchingPursuitConfig().residual_tolerance
            flaws[f"has a tolerance other than {theirs} or a bias"] = (
                config.residual_tolerance != theirs or bool(sae.b_dec.any())
            )
        case _:
            pass
    if name is None:
        raise InputError(
            f"an SAE of architecture {config.architecture} has no counterpart in the layout of the Tree SAE's authors; "
            "expected tree, topk, matryoshka, jumprelu or matching_pursuit"
        )
    if why := [flaw for flaw, is_so in flaws.items() if is_so]:
        raise InputError(
            f"this SAE of architecture {config.architecture} {' and '.join(why)}, which the code of the Tree SAE's "
            "authors cannot"
        )
    return name, k
