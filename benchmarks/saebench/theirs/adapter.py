"""An SAE folder of saeforest's as an object that SAEBench can evaluate: top-k and tree, in plain torch.

SAEBench calls `decode(encode(x))` and passes nothing between the two. The mean and deviation of each activation, which
layer normalization takes away, are therefore kept from the latest `encode` (docs/spec/activations.md#normalization).
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from sae_bench.custom_saes.base_sae import BaseSAE
from safetensors.torch import load_file
from torch import Tensor

_EPS = 1e-5


class ForestSAE(BaseSAE):
    parent: Tensor

    def __init__(self, folder: Path, model_name: str, hook_layer: int) -> None:
        cfg = json.loads((folder / "cfg.json").read_text())
        tensors = load_file(folder / "sae_weights.safetensors")
        d_in, d_sae = tensors["W_enc"].shape
        super().__init__(d_in, d_sae, model_name, hook_layer, torch.device("cpu"), torch.float32)
        parent = tensors.pop("parent", torch.full((d_sae,), -1))
        self.load_state_dict(tensors)
        self.register_buffer("parent", parent)
        self.requires_grad_(False)
        self.cfg.architecture = cfg["architecture"]
        if cfg["architecture"] not in ("topk", "tree") or cfg["normalize_activations"] not in (
            "layer_norm",
            "none",
        ):
            raise ValueError(
                f"{folder}: expected a top-k or tree SAE with layer_norm or none; no other is known here"
            )
        self.standardized = cfg["normalize_activations"] == "layer_norm"
        flat = cfg["architecture"] == "topk"
        self.added = 0.0 if flat and not cfg.get("exact_inverse") else _EPS
        self.sizes = cfg.get("layer_sizes") or [d_sae]
        self.ks = cfg.get("k_per_layer") or [cfg["k"]]
        self.threshold = cfg.get("activation_threshold", 0.0)
        #: whether codes come in the activations' own units, not in normalized ones (docs/spec/activations.md#units)
        self.effective = False
        self.seen: list[Tensor] | None = None

    def encode(self, x: Tensor) -> Tensor:
        if self.seen is not None:
            self.seen.append(x.clone())
        if self.standardized:
            self._mean = x.mean(-1, keepdim=True)
            self._std = x.std(-1, keepdim=True)
            x = (x - self._mean) / (self._std + _EPS)
        h = (x - self.b_dec) @ self.W_enc + self.b_enc
        codes: list[Tensor] = []
        start = 0
        for size, k in zip(self.sizes, self.ks, strict=True):
            part, parent = h[..., start : start + size], self.parent[start : start + size]
            if codes:
                # A child may fire where its parent does; one past the last feature stands for the root.
                active = torch.cat([*codes, torch.ones_like(part[..., :1])], -1) > self.threshold
                part = part.masked_fill(~active[..., torch.where(parent < 0, start, parent)], -torch.inf)
            best = part.topk(k, dim=-1)
            codes.append(torch.zeros_like(part).scatter_(-1, best.indices, best.values.relu()))
            start += size
        f = torch.cat(codes, -1)
        return f * (self._std + _EPS) if self.standardized and self.effective else f

    def decode(self, feature_acts: Tensor) -> Tensor:
        if not self.standardized:
            return feature_acts @ self.W_dec + self.b_dec
        if self._mean.shape[:-1] != feature_acts.shape[:-1]:
            raise ValueError("decode: not the codes of the latest encode")
        f = feature_acts / (self._std + _EPS) if self.effective else feature_acts
        return (f @ self.W_dec + self.b_dec) * (self._std + self.added) + self._mean

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self.encode(x))
