"""The SAEs of Gemma Scope (Lieberum et al., arXiv 2408.05147): JumpReLU SAEs that take no bias off their input.

Gemma Scope keeps the weights of one in `params.npz`, Gemma Scope 2 in `params.safetensors` with a `config.json` beside.
"""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from ..files import read_json, read_tensors
from ..output import note
from ..saes import SAE
from ..saes.files import check_weights
from ..schema import checked, listed
from .saelens_folder import Cfg, fill

NPZ, SAFETENSORS, CONFIG = "params.npz", "params.safetensors", "config.json"
_TENSORS = ("W_enc", "W_dec", "b_enc", "b_dec", "threshold")
_TRANSCODER = "transcoder"
# What NumPy, zipfile and PyTorch raise for a damaged archive, another file, or arrays that are no numbers.
_DAMAGED = (
    OSError, ValueError, TypeError, AttributeError, EOFError, KeyError, NotImplementedError, zlib.error,
    zipfile.BadZipFile,
)  # fmt: skip


def load_gemma_scope(folder: Path) -> SAE:
    """An SAE or transcoder of Gemma Scope or Gemma Scope 2.

    The files of Gemma Scope do not tell a transcoder from an SAE: what lies in a folder with "transcoder" in its path
    is one. They do not name a language model or site either; config.json of Gemma Scope 2 does, and is kept in
    `metadata["gemma_scope"]`.

    Raises InputError for one with a skip connection, and where the file, a tensor or a shape is missing or wrong.
    """
    npz = (folder / NPZ).exists()
    path = folder / (NPZ if npz else SAFETENSORS)
    weights = {
        _named(name): tensor for name, tensor in (_read_npz(path) if npz else read_tensors(path)).items()
    }
    config = read_json(folder / CONFIG, constants="text") if not npz and (folder / CONFIG).exists() else {}
    if not isinstance(config, dict):
        raise InputError(f"{folder / CONFIG}: expected a JSON object with the SAE's configuration")
    if others := weights.keys() - set(_TENSORS):
        raise InputError(
            f"{path}: holds {listed(others)}, which cannot be loaded; expected {', '.join(_TENSORS)}"
        )
    said = "hf_hook_point_out" in config
    if not said and _TRANSCODER in str(folder):
        note(f"{path}: taken for a transcoder, as its path says so; keep an SAE in a folder of another name")
    cfg = _cfg(weights, path, transcoder=said or _TRANSCODER in str(folder))
    shapes = {"W_enc": [cfg.d_in, cfg.d_sae], "W_dec": [cfg.d_sae, cfg.d_out or cfg.d_in]}
    shapes |= {"b_enc": [cfg.d_sae], "b_dec": [cfg.d_out or cfg.d_in], "threshold": [cfg.d_sae]}
    check_weights(weights, shapes, path)
    sae = fill(cfg, {name: tensor.float() for name, tensor in weights.items()})
    if isinstance(model := config.get("model_name"), str):
        sae.metadata["model_name"] = model
    sae.metadata["gemma_scope"] = config
    return sae.eval()


def _named(name: str) -> str:
    return f"W{name[1:]}" if name in ("w_enc", "w_dec") else name


def _cfg(weights: dict[str, Tensor], path: Path, *, transcoder: bool) -> Cfg:
    for name in ("W_enc", "W_dec"):
        if name not in weights or weights[name].dim() != 2:
            raise InputError(f"{path}: no matrix '{name}'; it holds {listed(weights)}")
    d_in, d_sae = weights["W_enc"].shape
    about: dict[str, Any] = {
        "architecture": "jumprelu",
        "d_in": d_in,
        "d_sae": d_sae,
        "apply_b_dec_to_input": False,
    }
    if transcoder:
        about |= {"architecture": "jumprelu_transcoder", "d_out": weights["W_dec"].shape[1]}
    return checked(Cfg, about, path)


def _read_npz(path: Path) -> dict[str, Tensor]:
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            return {name: torch.from_numpy(file[name]) for name in file.files}
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except _DAMAGED as error:
        why = next(iter(str(error).splitlines()), type(error).__name__)[:200]
        raise InputError(f"{path}: not a whole file of arrays ({why}); copy or download it again") from None
