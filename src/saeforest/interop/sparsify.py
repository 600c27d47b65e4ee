"""SAEs of sparsify (EleutherAI): a folder for each hookpoint, with `cfg.json` and `sae.safetensors`.

They are TopK SAEs, `f = relu of the k largest h` with `h = encoder.weight (x - b_dec) + encoder.bias`, or transcoders,
which take nothing off their input. Weights are kept as stored.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field

from ..errors import InputError
from ..files import read_json, read_tensors, write_tensors
from ..saes import SAE, MatryoshkaConfig, TopKConfig, build
from ..saes.checks import MOST_FEATURES
from ..saes.files import CFG, check_weights
from ..saes.normalizer import Scale
from ..schema import Schema, checked, listed, shown
from .exports import Exported, export_folder, write_hierarchy

WEIGHTS, CONFIG = "sae.safetensors", "config.json"
_OTHER = "the file is damaged or not from sparsify"
_BLOCK = re.compile(r"(?:\w+\.)*(?:layers|h)\.(\d+)")


class Cfg(Schema):
    """The keys of cfg.json that say what an SAE computes."""

    d_in: Annotated[int, Field(ge=1, le=MOST_FEATURES)]
    activation: Literal["topk", "groupmax"] = "topk"
    expansion_factor: Annotated[int, Field(ge=1, le=MOST_FEATURES)] = 32
    num_latents: Annotated[int, Field(ge=0, le=MOST_FEATURES)] = 0
    k: Annotated[int, Field(ge=1, le=MOST_FEATURES)] = 32
    signed: bool = False
    skip_connection: bool = False
    transcode: bool = False

    @property
    def d_sae(self) -> int:
        return self.num_latents or self.d_in * self.expansion_factor


def load_sparsify(folder: Path) -> SAE:
    """An SAE or transcoder of sparsify, as a TopK SAE: its codes and reconstructions are sparsify's own.

    `metadata["sparsify"]` has cfg.json and the name of the hookpoint. Model and site are filled in where the folder
    above says which model was read, and the hookpoint is a block.

    Raises InputError for activations other than TopK and for skip connections, and where a file, key, tensor or shape
    is missing or wrong.
    """
    path = folder / CFG
    whole = read_json(path)
    cfg = checked(Cfg, whole, path, _OTHER)
    refused = {
        "activation": (
            cfg.activation != "topk",
            "one feature of each group is chosen, and here the k largest are",
        ),
        "signed": (cfg.signed, "its features may be negative, and those here never are"),
        "skip_connection": (cfg.skip_connection, "its skip connection would be lost"),
    }
    for key, (is_so, why) in refused.items():
        if is_so:
            raise InputError(f"{path}: key '{key}' is {shown(whole[key])}: it cannot be loaded: {why}")
    if cfg.k > cfg.d_sae:
        raise InputError(f"{path}: key 'k' is {cfg.k}, but there are {cfg.d_sae} features; {_OTHER}")
    tensors = read_tensors(folder / WEIGHTS)
    shapes = {
        "encoder.weight": [cfg.d_sae, cfg.d_in],
        "encoder.bias": [cfg.d_sae],
        "W_dec": [cfg.d_sae, cfg.d_in],
        "b_dec": [cfg.d_in],
    }
    check_weights(tensors, shapes, folder / WEIGHTS)
    if others := tensors.keys() - shapes.keys():
        raise InputError(
            f"{folder / WEIGHTS}: holds {listed(others)}, which an SAE of sparsify has not; {_OTHER}"
        )
    config = TopKConfig(
        (cfg.d_sae,),
        (cfg.k,),
        normalize_activations="none",
        activation_threshold=0.0,
        encoder_bias=True,
        normalize_target="none",
    )
    sae = build(config, cfg.d_in, d_out=cfg.d_in if cfg.transcode else None)
    with torch.no_grad():
        sae.encoder.copy_(tensors["encoder.weight"])
        sae.decoder.copy_(tensors["W_dec"])
        sae.b_enc.copy_(tensors["encoder.bias"])
        sae.b_dec.copy_(tensors["b_dec"])
    sae.metadata = _about(folder, cfg) | {"sparsify": {**whole, "hookpoint": folder.name}}
    return sae.eval()


def _about(folder: Path, cfg: Cfg) -> dict[str, Any]:
    """Model and site, as far as they are known."""
    found: dict[str, Any] = {}
    if (folder.parent / CONFIG).is_file():
        run = read_json(folder.parent / CONFIG, constants="text")
        model = run.get("model") if isinstance(run, dict) else None
        if isinstance(model, str) and len(model) <= 1_000:
            found["model_name"] = model
    block = _BLOCK.fullmatch(folder.name)
    if block and not cfg.transcode:
        found["hook_name"] = f"blocks.{block[1]}.hook_resid_post"
    return found


def write_sparsify(sae: SAE, out: Path, *, force: bool = False) -> Exported:
    """Write an SAE as sparsify reads it: `OUT/HOOKPOINT/cfg.json` and `sae.safetensors`.

    Only a flat SAE that takes the k largest features of an activation as it is has the same codes there: TopK, or
    Matryoshka that selects by token. Raises InputError for any other, and if `out` holds anything else than an earlier
    export.
    """
    config = sae.config
    by_token = isinstance(config, TopKConfig) or (
        isinstance(config, MatryoshkaConfig) and config.selection == "token"
    )
    if not by_token:
        raise InputError(
            f"an SAE of architecture {config.architecture} has no counterpart in sparsify, which takes the k largest "
            "features alone; expected topk, or matryoshka with selection=token"
        )
    if not isinstance(sae.normalizer, Scale) or sae.normalizer.factor != 1:
        raise InputError(
            f"an SAE with normalize_activations = {config.normalize_activations} has no counterpart in sparsify, which "
            "normalizes nothing; train with none or dataset_scale"
        )
    if sae.d_out != sae.d_in:
        raise InputError(
            f"a transcoder from width {sae.d_in} to {sae.d_out} has no counterpart in sparsify, which has one width"
        )
    hookpoint = _hookpoint(sae)
    about: dict[str, Any] = {"hookpoint": hookpoint}
    if sae.is_transcoder and sae.target_normalizer is not None and sae.target_normalizer.factor != 1:
        raise InputError(
            "a transcoder whose target is scaled has no counterpart in sparsify; fold_scale first"
        )
    with export_folder(out, "sparsify", sae, about, force=force) as folder:
        place = folder / hookpoint
        place.mkdir()
        write_tensors(
            place / WEIGHTS,
            {
                "encoder.weight": sae.encoder,
                "encoder.bias": sae.b_enc,
                "W_dec": sae.decoder,
                "b_dec": sae.b_dec,
            },
        )
        cfg = {
            "activation": "topk",
            "expansion_factor": max(sae.d_sae // sae.d_in, 1),
            "normalize_decoder": True,
            "num_latents": sae.d_sae,
            "k": sum(config.k_per_layer),
            "multi_topk": False,
            "skip_connection": False,
            "transcode": sae.is_transcoder,
            "d_in": sae.d_in,
        }
        (place / CFG).write_text(json.dumps(cfg), encoding="utf-8")
        write_hierarchy(folder, sae.forest)
    return Exported(out, about)


def _hookpoint(sae: SAE) -> str:
    site = str(sae.metadata.get("hook_name") or "sae")
    block = re.fullmatch(r"blocks\.(\d+)\.hook_resid_post", site)
    return f"layers.{block[1]}" if block else re.sub(r"[^\w.-]", "_", site)
