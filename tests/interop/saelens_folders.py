"""Folders as SAELens writes them, with random weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

D, D_OUT, F = 12, 9, 40
#: The architectures that are read, with the keys of cfg.json that each has beside the common ones.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "standard": {},
    "gated": {},
    "topk": {"k": 5, "rescale_acts_by_decoder_norm": False},
    "jumprelu": {},
    "matching_pursuit": {"residual_threshold": 0.3, "max_iterations": 7, "stop_on_duplicate_support": True},
    "transcoder": {"d_out": D_OUT, "apply_b_dec_to_input": False},
    "jumprelu_transcoder": {"d_out": D_OUT, "apply_b_dec_to_input": False},
    "batchtopk": {"k": 4.5, "rescale_acts_by_decoder_norm": True},
    "matryoshka_batchtopk": {"k": 4.5, "rescale_acts_by_decoder_norm": True, "matryoshka_widths": [8, 20, F]},
}
METADATA = {
    "sae_lens_version": "6.54.12",
    "sae_lens_training_version": "6.54.12",
    "model_name": "pythia-70m-deduped",
    "hook_name": "blocks.3.hook_resid_post",
    "prepend_bos": True,
    "context_size": 128,
    "dataset_path": "monology/pile-uncopyrighted",
    "hook_head_index": None,
}


def write_saelens(folder: Path, architecture: str, seed: int = 0, **keys: Any) -> Path:
    """An SAE with random weights; its decoder is far from unit norm. `keys` go to cfg.json."""
    cfg = {
        "d_in": D,
        "d_sae": F,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "architecture": architecture,
        "metadata": METADATA,
        **ARCHITECTURES[architecture],
        **keys,
    }
    rng = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=rng)

    d_out = cfg.get("d_out") or D
    decoder = torch.nn.functional.normalize(normal(F, d_out)) * (0.5 + torch.rand(F, 1, generator=rng))
    tensors = {"W_dec": decoder, "b_dec": 0.5 * normal(d_out)}
    if architecture == "matching_pursuit":
        tensors["W_dec"] = torch.nn.functional.normalize(decoder) * (1 + 0.01 * normal(F, 1))
    else:
        tensors["W_enc"] = normal(D, F) / D**0.5
    if architecture == "gated":
        tensors |= {"b_gate": 0.5 * normal(F), "b_mag": 0.5 * normal(F), "r_mag": 0.5 * normal(F)}
    elif architecture != "matching_pursuit":
        tensors["b_enc"] = 0.5 * normal(F)
    if "jumprelu" in architecture:
        tensors["threshold"] = 0.7 * normal(F)  # some below 0, where ReLU alone decides
    if "batchtopk" in architecture:
        tensors["topk_threshold"] = torch.tensor(0.6, dtype=torch.float64)
    folder.mkdir(parents=True)
    (folder / "cfg.json").write_text(json.dumps(cfg), encoding="utf-8")
    save_file(
        {name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "sae_weights.safetensors"
    )
    return folder


def configure(folder: Path, **keys: Any) -> None:
    """Other values in cfg.json; None takes a key away."""
    path = folder / "cfg.json"
    cfg = json.loads(path.read_text(encoding="utf-8")) | keys
    path.write_text(json.dumps({k: v for k, v in cfg.items() if v is not None}), encoding="utf-8")


def change(folder: Path, **tensors: Tensor | None) -> None:
    """Other tensors in the file; None takes one away."""
    stored = {**load_file(folder / "sae_weights.safetensors"), **tensors}
    kept = {k: v.contiguous() for k, v in stored.items() if v is not None}
    save_file(kept, folder / "sae_weights.safetensors")
