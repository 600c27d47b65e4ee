"""A stand-in for SAELens with what its plug-ins meet: the registry, the configuration, and the order of loading.

`make interop` runs the plug-in in SAELens itself; this is for tests that must not need it.
"""

from __future__ import annotations

import json
import sys
import types
from abc import ABC
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

REGISTRY: dict[str, tuple[Any, Any]] = dict.fromkeys(
    ("standard", "topk", "jumprelu", "gated", "matching_pursuit"), (None, None)
)
LOADERS: dict[str, Any] = {}
MODEL_KEYS = ("model_name", "hook_name", "context_size", "prepend_bos", "dataset_path", "sae_lens_version")


def register_sae_class(architecture: str, sae_class: Any, config_class: Any) -> None:
    if architecture in REGISTRY:
        raise ValueError(f"SAE class for architecture {architecture} already registered.")
    REGISTRY[architecture] = (sae_class, config_class)


@dataclass
class SAEConfig(ABC):
    d_in: int
    d_sae: int
    dtype: str = "float32"
    device: str = "cpu"
    apply_b_dec_to_input: bool = True
    normalize_activations: str = "none"
    reshape_activations: str = "none"
    metadata: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def architecture(cls) -> str:
        raise NotImplementedError

    def to_dict(self) -> dict[str, Any]:
        found = {f.name: getattr(self, f.name) for f in fields(self)}
        return {**found, "architecture": self.architecture()}

    @classmethod
    def from_dict(cls, cfg: dict[str, Any]) -> Any:
        kind = REGISTRY[cfg["architecture"]][1]
        known = {f.name for f in fields(kind)}
        return kind(**{key: value for key, value in cfg.items() if key in known})


def default_loader(
    path: Any, device: str = "cpu", cfg_overrides: Any = None
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Casts every tensor to the data type of the SAE, whole numbers too."""
    cfg = json.loads((Path(path) / "cfg.json").read_text()) | {"device": device, **(cfg_overrides or {})}
    dtype = getattr(torch, cfg["dtype"])
    state = load_file(Path(path) / "sae_weights.safetensors")
    return cfg, {name: tensor.to(dtype) for name, tensor in state.items()}


def defaulted(cfg: dict[str, Any]) -> dict[str, Any]:
    """A configuration that names no version is taken for one from before 6.0: its metadata are at its top."""
    version = cfg.get("sae_lens_version") or cfg.get("metadata", {}).get("sae_lens_version")
    if version:
        return cfg
    return {**cfg, "metadata": {key: cfg[key] for key in MODEL_KEYS if key in cfg}}


class SAE(nn.Module):
    cfg: Any

    def __init__(self, cfg: Any) -> None:
        super().__init__()
        self.cfg, self.dtype, self.device = cfg, getattr(torch, cfg.dtype), torch.device(cfg.device)
        self.hook_sae_input = self.hook_sae_acts_post = self.hook_sae_recons = nn.Identity()
        self.reshape_fn_in, self.reshape_fn_out, self.d_head = lambda x: x, lambda x, d_head: x, None
        self.initialize_weights()

    def initialize_weights(self) -> None:
        d_in, d_sae, on = self.cfg.d_in, self.cfg.d_sae, {"dtype": self.dtype, "device": self.device}
        self.b_dec = nn.Parameter(torch.zeros(d_in, **on))
        self.W_dec = nn.Parameter(torch.empty(d_sae, d_in, **on))
        self.W_enc = nn.Parameter(torch.empty(d_in, d_sae, **on))

    def process_state_dict_for_loading(self, state: dict[str, Tensor]) -> None:
        pass

    def process_state_dict_for_saving(self, state: dict[str, Tensor]) -> None:
        pass

    def save_model(self, path: Path) -> None:
        path.mkdir(parents=True)
        state = self.state_dict()
        self.process_state_dict_for_saving(state)
        save_file(state, path / "sae_weights.safetensors")
        (path / "cfg.json").write_text(json.dumps(self.cfg.to_dict()))

    @classmethod
    def load_from_disk(
        cls,
        path: Any,
        device: str = "cpu",
        dtype: str | None = None,
        converter: Any = default_loader,
        fold: bool = False,
    ) -> Any:
        cfg_dict, state = converter(path, device, cfg_overrides=None if dtype is None else {"dtype": dtype})
        cfg = SAEConfig.from_dict(defaulted(cfg_dict))
        cfg.device = "meta"
        sae = REGISTRY[cfg.architecture()][0](cfg)
        sae.cfg.device = device
        sae.process_state_dict_for_loading(state)
        sae.load_state_dict(state, assign=True)
        sae = sae.to(dtype=getattr(torch, cfg.dtype), device=device)
        if fold:
            sae.fold_W_dec_norm()
        return sae


def modules() -> dict[str, types.ModuleType]:
    """The modules of the stand-in, by name."""
    found = {name: types.ModuleType(name) for name in ("sae_lens", "sae_lens.registry", "sae_lens.loading")}
    loaders = types.ModuleType("sae_lens.loading.pretrained_sae_loaders")
    loaders.__dict__["NAMED_PRETRAINED_SAE_LOADERS"] = LOADERS
    found["sae_lens.registry"].__dict__["SAE_CLASS_REGISTRY"] = REGISTRY
    names = {
        "SAE": SAE,
        "SAEConfig": SAEConfig,
        "register_sae_class": register_sae_class,
        "__version__": "6.54.12",
    }
    found["sae_lens"].__dict__.update(names)
    return {**found, loaders.__name__: loaders}


def import_plugin() -> Any:
    """The plug-in, with the stand-in in SAELens' place. Imported once: registering twice is an error."""
    name = "saeforest.interop.saelens"
    if name not in sys.modules:
        sys.modules.update(modules())
        try:
            __import__(name)
        finally:
            for other in modules():
                del sys.modules[other]
    return sys.modules[name]
