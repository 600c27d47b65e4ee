"""The plug-in for SAELens: after `import saeforest.interop.saelens`, it loads SAEs that have a forest.

    import saeforest.interop.saelens as plugin
    from sae_lens import SAE

    sae = SAE.load_from_disk("runs/demo/sae")                    # or SAE.from_pretrained("org/repo", "folder")
    sae = SAE.load_from_disk("runs/demo/sae", dtype="bfloat16")  # parents stay whole numbers
    sae = SAE.load_from_disk("runs/hsae/sae", converter=plugin.level(2))   # one level of an HSAE, a JumpReLU SAE

Codes and reconstructions are computed by saeforest. Flat SAEs that SAELens knows (TopK, JumpReLU, Matching Pursuit)
need no plug-in. SAELens casts every tensor of a file to the data type of the SAE; the parents are therefore read from
cfg.json, which has them too. `sae.forest` is the forest.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import field, fields, make_dataclass
from pathlib import Path
from typing import Any

import torch
from sae_lens import SAE, SAEConfig, register_sae_class  # pyright: ignore[reportMissingImports]
from sae_lens import __version__ as _VERSION  # pyright: ignore[reportMissingImports]
from sae_lens.loading.pretrained_sae_loaders import (  # pyright: ignore[reportMissingImports]
    NAMED_PRETRAINED_SAE_LOADERS,
)
from sae_lens.registry import SAE_CLASS_REGISTRY  # pyright: ignore[reportMissingImports]
from torch import Tensor, nn

from ..errors import InputError
from ..files import read_json
from ..saes import HSAE, SYSTEMS, build, load_sae
from ..saes import SAE as OurSAE
from ..saes.files import CFG, WEIGHTS, with_bias
from ..saes.normalizer import LayerNorm, TokenStats
from ..schema import checked
from ..structure.forest import Forest
from .dense import reconstruct
from .saelens_flat import levels_of

#: Architectures that SAELens has no class for.
ARCHITECTURES = tuple(name for name in SYSTEMS if name not in SAE_CLASS_REGISTRY)
_BASE = {f.name for f in fields(SAEConfig)}
#: What cfg.json says beyond SAELens' keys: the settings of all systems, and the forest.
_KEYS = tuple(
    dict.fromkeys(
        key
        for name in ARCHITECTURES
        for key in (*SYSTEMS[name].inference_keys, "parent", "exact_inverse")
        if key not in _BASE
    )
)
Cfg = dict[str, Any]
State = dict[str, Tensor]


def _to_dict(self: Any) -> Cfg:
    """cfg.json, without the settings of other systems."""
    return {
        key: value for key, value in SAEConfig.to_dict(self).items() if value is not None or key not in _KEYS
    }


def _config_class(architecture: str) -> Any:
    return make_dataclass(
        f"Saeforest{architecture.title().replace('_', '')}Config",
        [(key, Any, field(default=None)) for key in _KEYS],
        bases=(SAEConfig,),
        namespace={"architecture": classmethod(lambda cls: architecture), "to_dict": _to_dict},
        kw_only=True,
    )


class SaeforestSAE(SAE):
    """An SAE of saeforest as SAELens has them. The forest is `forest`; everything else is as in any of its SAEs."""

    def initialize_weights(self) -> None:
        """Make room for the weights that every system has; the others come with the file."""
        super().initialize_weights()
        cfg = self.cfg
        self.b_enc = nn.Parameter(torch.zeros(cfg.d_sae, dtype=self.dtype, device=self.device))
        parent = torch.full((cfg.d_sae,), -1) if cfg.parent is None else torch.tensor(cfg.parent)
        self.register_buffer("parent", parent.to(self.device))
        # Not as a module, whose weights would be saved a second time.
        object.__setattr__(self, "_inner", None)
        self._stats: TokenStats | None = None

    def process_state_dict_for_loading(self, state_dict: State) -> None:
        """Take the parents from cfg.json, as those in the file were cast; make room for what this system has."""
        if self.cfg.parent is not None:
            state_dict["parent"] = torch.tensor(self.cfg.parent, device=state_dict["W_dec"].device)
        elif "parent" in state_dict and state_dict["parent"].is_floating_point():
            raise InputError(
                f"{CFG}: no key 'parent', and SAELens has cast the parents of {WEIGHTS} to "
                f"{state_dict['parent'].dtype}; load it with converter=saeforest.interop.saelens.converter"
            )
        elif "parent" not in state_dict:
            state_dict["parent"] = torch.full((self.cfg.d_sae,), -1, device=state_dict["W_dec"].device)
        for name, tensor in state_dict.items():
            if name not in dict(self.named_parameters()) and name not in dict(self.named_buffers()):
                self.register_buffer(name, torch.empty_like(tensor, device="meta"))

    def process_state_dict_for_saving(self, state_dict: State) -> None:
        """Save what this system has; a flat one has no parents."""
        if not SYSTEMS[self.cfg.architecture()].has_forest:
            del state_dict["parent"]

    @property
    def forest(self) -> Forest:
        """The forest of the features."""
        return Forest(self.parent.cpu(), tuple(self.cfg.layer_sizes))

    @property
    def ours(self) -> OurSAE:
        """The same SAE, sharing the large weights, as saeforest has it."""
        inner: OurSAE | None = self._inner
        if inner is None or (inner.device, inner.b_enc.dtype) != (self.W_enc.device, self.W_enc.dtype):
            inner = self._build().to(self.W_enc.device, self.W_enc.dtype).eval()
            object.__setattr__(self, "_inner", inner)
        inner.encoder = nn.Parameter(self.W_enc.detach().T, requires_grad=False)
        inner.decoder = nn.Parameter(self.W_dec.detach(), requires_grad=False)
        own = self.state_dict()
        with torch.no_grad():
            for name, place in inner.tensors().items():
                if name not in ("W_enc", "W_dec"):
                    place.data.copy_(own[name])
        return inner

    def _build(self) -> OurSAE:
        kind = SYSTEMS[self.cfg.architecture()]
        about = {
            key: getattr(self.cfg, key) for key in kind.inference_keys if getattr(self.cfg, key) is not None
        }
        config = checked(kind.config_class, about, CFG)
        inner = build(with_bias(config, {"b_enc": self.b_enc.detach().cpu()}, Path(WEIGHTS)), self.cfg.d_in)
        if self.cfg.exact_inverse is not None and isinstance(inner.normalizer, LayerNorm):
            inner.normalizer = LayerNorm(self.cfg.exact_inverse)
        return inner

    def encode(self, x: Tensor) -> Tensor:
        """The dense codes `[..., d_sae]` of activations `[..., d_in]`."""
        x = self.hook_sae_input(self.reshape_fn_in(x.to(self.dtype)))
        code, self._stats = self.ours.encode_with_stats(x)
        return self.hook_sae_acts_post(code.dense(self.cfg.d_sae).to(self.dtype))

    def decode(self, feature_acts: Tensor) -> Tensor:
        """The reconstruction of codes; where activations are normalized each, of those that were encoded last."""
        ours = self.ours
        out = reconstruct(ours, feature_acts, self.W_dec, self.b_dec)
        if self.cfg.normalize_activations != "none":
            if self._stats is None or self._stats.std.shape[:-1] != feature_acts.shape[:-1]:
                raise InputError(
                    f"decode: codes of {list(feature_acts.shape[:-1])} activations; this SAE normalizes each "
                    "activation: encode it before, and decode as many"
                )
            out = ours.normalizer.undo(out, self._stats)
        return self.reshape_fn_out(self.hook_sae_recons(out), self.d_head)

    def fold_W_dec_norm(self) -> None:
        """Nothing: the decoder's rows have unit norm, and folding would change which features are chosen."""

    def fold_activation_norm_scaling_factor(self, scaling_factor: float) -> None:
        """Refuse: the factor is folded in when training ends, with the thresholds that SAELens does not know of."""
        raise InputError("fold_activation_norm_scaling_factor: the factor is in the weights already")


def converter(path: str | Path, device: str = "cpu", cfg_overrides: Cfg | None = None) -> tuple[Cfg, State]:
    """Reads a folder of saeforest for `SAE.load_from_disk(path, converter=...)`: checks it first, and leaves whole
    numbers whole. Also reads folders of versions that did not name SAELens'."""
    sae = load_sae(path)
    if sae.is_transcoder:
        raise InputError(f"{path}: a transcoder, which this plug-in does not load; saeforest.load does")
    folder = Path(path)
    cfg = read_json(folder / CFG if (folder / CFG).exists() else folder / "sae" / CFG)
    return _converted(sae, {**cfg, **_about(cfg)}, device, cfg_overrides)


def level(i: int) -> Callable[..., tuple[Cfg, State]]:
    """A converter that reads one level of an HSAE, as a JumpReLU SAE of SAELens' own."""

    def convert(path: str | Path, device: str = "cpu", cfg_overrides: Cfg | None = None) -> tuple[Cfg, State]:
        sae = load_sae(path)
        if not isinstance(sae, HSAE):
            raise InputError(
                f"{path}: an SAE of architecture {sae.config.architecture}; expected an HSAE, whose levels can be read"
            )
        if not 0 <= i < sae.n_levels:
            raise InputError(f"level {i}: expected 0 to {sae.n_levels - 1}, the levels of {path}")
        one = levels_of(sae)[i]
        cfg = {
            "architecture": "jumprelu",
            "d_in": one.d_in,
            "d_sae": one.d_sae,
            "apply_b_dec_to_input": True,
            "normalize_activations": one.config.normalize_activations,
            "reshape_activations": "none",
            "dtype": "float32",
            "metadata": one.metadata,
        }
        return _converted(one, {**cfg, **_about(cfg)}, device, cfg_overrides)

    return convert


def hub_converter(
    repo_id: str,
    folder_name: str,
    device: str = "cpu",
    force_download: bool = False,
    cfg_overrides: Cfg | None = None,
) -> tuple[Cfg, State, None]:
    """The same for `SAE.from_pretrained(repo, folder, converter=...)`; registered there as "saeforest"."""
    from huggingface_hub import hf_hub_download

    within = folder_name.strip("./")
    files = [f"{within}/{file}" if within else file for file in (WEIGHTS, CFG)]
    paths = [hf_hub_download(repo_id, file, force_download=force_download) for file in files]
    return *converter(Path(paths[-1]).parent, device, cfg_overrides), None


def _about(cfg: Cfg) -> Cfg:
    """What tells SAELens that a configuration has the keys of its version 6."""
    return {
        "sae_lens_version": _VERSION,
        "metadata": {"sae_lens_version": _VERSION, **cfg.get("metadata", {})},
    }


def _converted(sae: OurSAE, cfg: Cfg, device: str, overrides: Cfg | None) -> tuple[Cfg, State]:
    cfg = {**cfg, "device": device, **(overrides or {})}
    dtype = getattr(torch, str(cfg["dtype"]).removeprefix("torch."))
    state = {
        name: tensor.detach()
        .clone(memory_format=torch.contiguous_format)
        .to(device, dtype if tensor.is_floating_point() else tensor.dtype)
        for name, tensor in sae.tensors().items()
    }
    return cfg, state


for _architecture in ARCHITECTURES:
    register_sae_class(_architecture, SaeforestSAE, _config_class(_architecture))
NAMED_PRETRAINED_SAE_LOADERS["saeforest"] = hub_converter
