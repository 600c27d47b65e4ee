"""SAEs of dictionary_learning (Marks et al.): a folder with `ae.pt` and `config.json`.

`ae.pt` is a file that PyTorch pickles. It is read with PyTorch's restricted unpickler, which makes nothing but tensors
and plain containers of them; anything else in it is an error.

    AutoEncoder               f = relu(h) |d|      its loader gives the decoder unit norm, and f what it takes away
    AutoEncoderNew            f = relu(h)          nothing is taken off the input
    GatedAutoEncoder          f = relu(m) 1[a + b_gate > 0]
    JumpReluAutoEncoder       f = relu(h) 1[h > threshold], nothing taken off the input
    AutoEncoderTopK           f = relu of the k largest h
    BatchTopKSAE, MatryoshkaBatchTopKSAE    f = relu(h) 1[h > threshold], one threshold for all
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from ..errors import InputError
from ..files import read_json
from ..saes import SAE
from ..saes.checks import MOST_FEATURES
from ..saes.files import check_weights
from ..schema import INTEGERS, Name, Schema, checked, listed, shown
from .saelens_folder import Cfg, fill

WEIGHTS, CONFIG = "ae.pt", "config.json"
_OTHER = "the file is damaged or not from dictionary_learning"
#: SAELens' architecture that computes the same, and the names there of the tensors here.
_LINEAR = {"encoder.weight": "W_enc", "decoder.weight": "W_dec", "encoder.bias": "b_enc"}
_MATRICES = {"W_enc": "W_enc", "W_dec": "W_dec", "b_enc": "b_enc", "b_dec": "b_dec"}
_CLASSES: dict[str, tuple[str, dict[str, str]]] = {
    "AutoEncoder": ("standard", _LINEAR | {"bias": "b_dec"}),
    "AutoEncoderNew": ("standard", _LINEAR | {"decoder.bias": "b_dec"}),
    "GatedAutoEncoder": (
        "gated",
        {
            "encoder.weight": "W_enc",
            "decoder.weight": "W_dec",
            "decoder_bias": "b_dec",
            "r_mag": "r_mag",
            "gate_bias": "b_gate",
            "mag_bias": "b_mag",
        },
    ),
    "JumpReluAutoEncoder": ("jumprelu", _MATRICES | {"threshold": "threshold"}),
    "AutoEncoderTopK": ("topk", _LINEAR | {"b_dec": "b_dec"}),
    "BatchTopKSAE": ("batchtopk", _LINEAR | {"b_dec": "b_dec", "threshold": "topk_threshold"}),
    "MatryoshkaBatchTopKSAE": ("matryoshka_batchtopk", _MATRICES | {"threshold": "topk_threshold"}),
}
_TRANSPOSED = ("encoder.weight", "decoder.weight")
_RAW_INPUT = ("AutoEncoderNew", "JumpReluAutoEncoder")
# Beside the weights: the number of features of an activation and, of a Matryoshka SAE, the sizes of its groups.
_MORE = ("k", "group_sizes", "threshold")


class _Trainer(Schema):
    """The keys of config.json about training."""

    dict_class: Name
    k: Annotated[int, Field(ge=1, le=MOST_FEATURES)] | None = None
    layer: int | None = None
    lm_name: Name | None = None
    submodule_name: Name | None = None


class _Config(Schema):
    trainer: _Trainer


def load_dictionary_learning(folder: Path) -> SAE:
    """An SAE of dictionary_learning, as one of ours: its codes and reconstructions are those of what its
    `load_dictionary` returns. The whole of config.json is in `metadata["dictionary_learning"]`.

    Raises InputError for a class that is not known, and where a file, key, tensor or shape is missing or wrong.
    """
    path = folder / CONFIG
    whole = read_json(path, constants="text")
    trainer = checked(_Config, whole, path, _OTHER).trainer
    if trainer.dict_class not in _CLASSES:
        raise InputError(
            f"{path}: key 'trainer.dict_class' is {shown(trainer.dict_class)}: expected one of {', '.join(_CLASSES)}"
        )
    tensors = _read(folder / WEIGHTS)
    architecture, names = _CLASSES[trainer.dict_class]
    more = {name: tensors.pop(name) for name in _MORE if name in tensors and name not in names}
    d_sae, d_in = _sizes(tensors, names, folder / WEIGHTS)
    wide = {"W_enc": [d_in, d_sae], "W_dec": [d_sae, d_in], "b_dec": [d_in], "topk_threshold": []}
    shapes = {
        name: wide.get(ours, [d_sae])[::-1] if name in _TRANSPOSED else wide.get(ours, [d_sae])
        for name, ours in names.items()
    }
    check_weights(tensors, shapes, folder / WEIGHTS)
    if others := tensors.keys() - shapes.keys():
        raise InputError(
            f"{folder / WEIGHTS}: holds {listed(others)}, which an {trainer.dict_class} has not; {_OTHER}"
        )
    weights = {ours: (tensors[n].T if n in _TRANSPOSED else tensors[n]).float() for n, ours in names.items()}
    about: dict[str, Any] = {
        "architecture": architecture,
        "d_in": d_in,
        "d_sae": d_sae,
        "apply_b_dec_to_input": trainer.dict_class not in _RAW_INPUT,
        "rescale_acts_by_decoder_norm": trainer.dict_class == "AutoEncoder",
        "k": _k(trainer, more, folder),
    }
    if architecture == "matryoshka_batchtopk":
        about["matryoshka_widths"] = _widths(more, d_sae, folder / WEIGHTS)
    try:
        sae = fill(checked(Cfg, about, path, _OTHER), weights)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    sae.metadata = _about(trainer) | {"dictionary_learning": whole}
    return sae.eval()


def _read(path: Path) -> dict[str, Tensor]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about other pickles; whatever is not read is an error
            found = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except MemoryError:
        raise
    except Exception as error:  # the unpickler raises whatever a damaged file makes it stumble over
        why = next(iter(str(error).splitlines()), type(error).__name__)[:200]
        raise InputError(
            f"{path}: not a whole file of tensors alone ({why}); copy or download it again"
        ) from None
    if not isinstance(found, Mapping) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in found.items()
    ):
        raise InputError(f"{path}: expected tensors by their names; {_OTHER}")
    return dict(found)


def _sizes(tensors: Mapping[str, Tensor], names: Mapping[str, str], path: Path) -> tuple[int, int]:
    """The number of features and the width, as the encoder has them."""
    (name,) = (name for name, ours in names.items() if ours == "W_enc")
    if name not in tensors or tensors[name].dim() != 2:
        raise InputError(f"{path}: no matrix '{name}'; it holds {listed(tensors)}")
    d_sae, d_in = tensors[name].shape if name in _TRANSPOSED else tensors[name].T.shape
    return d_sae, d_in


def _k(trainer: _Trainer, more: Mapping[str, Tensor], folder: Path) -> int | None:
    """The number of features of an activation, where the class has one: as the file says, and config.json too."""
    if "k" not in more:
        return trainer.k
    if more["k"].numel() != 1 or more["k"].dtype not in INTEGERS:
        raise InputError(f"{folder / WEIGHTS}: tensor 'k': expected one whole number")
    k = int(more["k"])
    if trainer.k is not None and trainer.k != k:
        raise InputError(
            f"{folder}: k is {k} in {WEIGHTS}, but {trainer.k} in {CONFIG}; copy the folder again"
        )
    return k


def _widths(more: Mapping[str, Tensor], d_sae: int, path: Path) -> list[int]:
    """The number of features in each prefix of the dictionary."""
    sizes = more.get("group_sizes")
    if sizes is None or sizes.dim() != 1 or sizes.dtype not in INTEGERS or int(sizes.sum()) != d_sae:
        raise InputError(f"{path}: tensor 'group_sizes': expected whole numbers that add up to {d_sae}")
    return sizes.cumsum(0).tolist()


def _about(trainer: _Trainer) -> dict[str, Any]:
    """Model and site, as far as they are known."""
    found: dict[str, Any] = {}
    if trainer.lm_name:
        found["model_name"] = trainer.lm_name
    if trainer.layer is not None and re.match(r"resid_post", trainer.submodule_name or ""):
        found["hook_name"] = f"blocks.{trainer.layer}.hook_resid_post"
    return found
