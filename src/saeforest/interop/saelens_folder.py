"""SAEs in SAELens' folders: `cfg.json` and `sae_weights.safetensors`, as every SAELens up to 6.54 writes them.

Its architectures differ in how features are chosen, and in what is folded into the weights:

    standard          f = relu(h)                               a JumpReLU whose thresholds are 0
    jumprelu          f = relu(h) 1[h > threshold]              trained as such, or by BatchTopK or Matryoshka BatchTopK
    gated             f = relu(m) 1[a + b_gate > 0]             with m = exp(r_mag) a + b_mag; in units of m the gate is
                                                                the threshold b_mag - exp(r_mag) b_gate
    topk              f = relu of the k largest h
    matching_pursuit  atoms one after another, by the residual

where `h = W_enc (u - b_dec) + b_enc` of normalized activations u. What is equal only in exact arithmetic is folded in
float64: without `apply_b_dec_to_input` nothing is taken off u, so `W_enc b_dec` goes into the bias; with
`rescale_acts_by_decoder_norm` the norms of the decoder's rows go into the encoder.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from ..errors import InputError
from ..files import CHECKSUMS, read_json, read_tensors
from ..output import note
from ..saes import (
    SAE,
    BatchTopKConfig,
    JumpReLUConfig,
    MatchingPursuitConfig,
    MatryoshkaConfig,
    SAEConfig,
    TopKConfig,
    build,
)
from ..saes.checks import MOST_FEATURES
from ..saes.files import CFG, WEIGHTS, Metadata, check_weights
from ..schema import Name, Schema, checked, listed, shown, without

SCALER = "activation_scaler.json"
_VERSION = "sae_lens_version"
_OTHER = "the file is damaged or not from SAELens"

_BIASES = ("b_enc",)
_THRESHOLD = ("b_enc", "threshold")
#: The architectures that are read, with the tensors `[d_sae]` that each has beside W_enc, W_dec and b_dec.
_VECTORS: dict[str, tuple[str, ...]] = {
    "standard": _BIASES,
    "topk": _BIASES,
    "batchtopk": _BIASES,
    "matryoshka_batchtopk": _BIASES,
    "jumprelu": _THRESHOLD,
    "gated": ("b_gate", "b_mag", "r_mag"),
    "matching_pursuit": (),
    "transcoder": _BIASES,
    "jumprelu_transcoder": _THRESHOLD,
}
_BY_BATCH = ("batchtopk", "matryoshka_batchtopk")
# SAELens knows `rescale_acts_by_decoder_norm` of these alone, and drops it elsewhere.
_RESCALED = ("topk", *_BY_BATCH)
_TRANSCODERS = ("transcoder", "jumprelu_transcoder")
_SKIP = "its skip connection would be lost"
_REFUSED = {
    "abstopk": "its features may be negative, and those here never are",
    "temporal": "its features depend on earlier tokens, and those here on one activation",
    "skip_transcoder": _SKIP,
    "jumprelu_skip_transcoder": _SKIP,
}
# Keys of SAELens before 6.0.
_RENAMED = {
    "hook_point": "hook_name",
    "hook_point_head_index": "hook_head_index",
    "activation_fn_str": "activation_fn",
}
_OLD_METADATA = (
    "model_name",
    "hook_name",
    "hook_head_index",
    "hook_name_out",
    "model_from_pretrained_kwargs",
    "prepend_bos",
    "context_size",
    "dataset_path",
    "neuronpedia_id",
    _VERSION,
)


class Cfg(Schema):
    """What SAELens' cfg.json says, in the keys of 6.0 and later."""

    architecture: Name
    d_in: Annotated[int, Field(ge=1, le=MOST_FEATURES)]
    d_sae: Annotated[int, Field(ge=1, le=MOST_FEATURES)]
    d_out: Annotated[int, Field(ge=1, le=MOST_FEATURES)] | None = None
    apply_b_dec_to_input: bool = True
    normalize_activations: Literal[
        "none", "layer_norm", "constant_norm_rescale", "expected_average_only_in", "covariance_whitening"
    ] = "none"
    k: Annotated[float, Field(gt=0, le=MOST_FEATURES)] | None = None
    rescale_acts_by_decoder_norm: bool = False
    max_iterations: Annotated[int, Field(ge=1, le=MOST_FEATURES)] | None = None
    residual_threshold: Annotated[float, Field(ge=0)] = 1e-2
    stop_on_duplicate_support: bool = True
    matryoshka_widths: list[int] | None = None
    metadata: Metadata = Field(default_factory=dict)

    @property
    def is_transcoder(self) -> bool:
        return self.architecture in _TRANSCODERS

    @property
    def trained_as(self) -> str:
        """The architecture in training: SAELens saves what was trained by BatchTopK as JumpReLU."""
        name = self.metadata.get("training_architecture")
        return name if self.architecture == "jumprelu" and name in _BY_BATCH else self.architecture


class _About(Schema):
    rest: Metadata


def is_saelens(folder: Path) -> bool:
    """Whether the cfg.json in a folder is SAELens', and not ours, which has more keys.

    Raises InputError where it cannot be read.
    """
    if not (folder / CFG).exists():
        return False
    cfg = read_json(folder / CFG, constants="text")
    return isinstance(cfg, dict) and cfg.keys().isdisjoint(("format_version", "layer_sizes", CHECKSUMS))


def load_saelens(folder: Path, *, activation_scale: float | None = None) -> SAE:
    """The SAE in a folder that SAELens wrote, as one of ours: its codes and reconstructions are SAELens' own.

    activation_scale: factor on activations for an SAE that was trained with `expected_average_only_in` and does not
        hold it. It is folded into the weights, as SAELens does after training.

    Raises InputError for an architecture or option that has no counterpart here, and where a file, key, tensor or
    shape is missing or wrong.
    """
    path = folder / CFG
    whole = _current(read_json(path, constants="text"), path)
    _check_architecture(whole["architecture"], path)
    cfg = checked(Cfg, whole, path, _OTHER)
    if cfg.architecture not in _RESCALED:
        cfg = cfg.model_copy(update={"rescale_acts_by_decoder_norm": False})
    if cfg.is_transcoder != (cfg.d_out is not None):
        expected = "d_out" if cfg.is_transcoder else "no d_out"
        raise InputError(f"{path}: architecture '{cfg.architecture}': expected {expected}; {_OTHER}")
    scale = _scale(cfg, folder, activation_scale)
    weights = _read(folder, cfg)
    try:
        sae = fill(cfg, weights, scale)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    sae.metadata = {key: value for key, value in cfg.metadata.items() if value is not None}
    if model := sae.metadata.get("model_name"):
        sae.metadata["model_name"] = on_hub(model)
    about = checked(_About, {"rest": without(whole, "metadata")}, path, _OTHER).rest
    sae.metadata["saelens"] = about | ({"activation_scale": scale} if scale != 1 else {})
    if changed := sae.metadata.get("model_from_pretrained_kwargs"):
        of_another_model(folder, changed)
    return sae.eval()


def of_another_model(source: str | Path, changed: Any) -> None:
    """Say that an SAE was trained on a changed language model. changed: the arguments with which it was loaded."""
    note(
        f"{source}: trained on a language model that TransformerLens loaded with {shown(changed)}; "
        "activations of the model as it is may differ"
    )


# -- cfg.json


def _current(cfg: Any, path: Path) -> dict[str, Any]:
    """The configuration in the keys of SAELens 6."""
    if not isinstance(cfg, dict):
        raise InputError(f"{path}: expected a JSON object with the SAE's configuration")
    metadata = cfg.get("metadata", {})
    version = cfg.get(_VERSION) or (metadata.get(_VERSION) if isinstance(metadata, dict) else None)
    if version is None or _major(version, path) < 6:
        cfg = _renewed(cfg, path)
    if cfg.get("normalize_activations", "") is None:
        cfg = {**cfg, "normalize_activations": "none"}
    return {"architecture": None, **cfg}


def _major(version: Any, path: Path) -> int:
    number = str(version).partition(".")[0]
    if not isinstance(version, str) or not number.isdecimal():
        raise InputError(f"{path}: {_VERSION} {shown(version)}: expected a version such as 6.0.0; {_OTHER}")
    return int(number[:9])


def _renewed(cfg: dict[str, Any], path: Path) -> dict[str, Any]:
    """The keys of SAELens 6 for those that it had before."""
    new = {_RENAMED.get(key, key): value for key, value in cfg.items()}
    new["architecture"] = new.get("architecture") or "standard"
    activation = new.get("activation_fn") or "relu"
    options = new.get("activation_fn_kwargs") or {}
    if activation == "topk" and isinstance(options, dict):
        new |= {"architecture": "topk", "k": options.get("k")}
    elif activation != "relu":
        raise InputError(f"{path}: activation function {shown(activation)}: expected relu or topk")
    if isinstance(normalize := new.get("normalize_activations"), bool):
        new["normalize_activations"] = "expected_average_only_in" if normalize else "none"
    new.setdefault("apply_b_dec_to_input", True)
    return {**new, "metadata": {key: new[key] for key in _OLD_METADATA if key in new}}


def _check_architecture(name: Any, path: Path) -> None:
    if isinstance(name, str) and name in _VECTORS:
        return
    reason = _REFUSED.get(name) if isinstance(name, str) else None
    raise InputError(
        f"{path}: a SAELens SAE of architecture {shown(name)} cannot be loaded{f': {reason}' if reason else ''}; "
        f"expected one of {', '.join(_VECTORS)}"
    )


def _scale(cfg: Cfg, folder: Path, given: float | None) -> float:
    """The factor on activations that is still to be folded into the weights."""
    if cfg.normalize_activations == "covariance_whitening":
        raise InputError(
            f"{folder / CFG}: key 'normalize_activations' is covariance_whitening, which SAELens folds into the "
            "weights when training has ended; load the SAE that was saved then"
        )
    if cfg.normalize_activations != "expected_average_only_in":
        if given is not None:
            raise InputError(
                f"activation_scale = {given}: the SAE in {folder} was not trained with expected_average_only_in; "
                "leave it out"
            )
        return 1.0
    where = "activation_scale"
    if given is None and (folder / SCALER).exists():
        where, scaler = f"{folder / SCALER}: scaling_factor", read_json(folder / SCALER, constants="text")
        given = scaler.get("scaling_factor") if isinstance(scaler, dict) else None
    if given is None:
        raise InputError(
            f"{folder / CFG}: key 'normalize_activations' is expected_average_only_in, but the factor is not in the "
            "folder; give it as activation_scale (sqrt(d_in) over the mean norm of activations), 1 if it is in the "
            "weights"
        )
    if not isinstance(given, int | float) or isinstance(given, bool) or not 0 < given < math.inf:
        raise InputError(f"{where} = {shown(given)}: expected a factor above 0")
    return float(given)


def on_hub(model: str) -> str:
    """The Hub's name of a model for TransformerLens' short one."""
    if model == "gpt2-small":
        return "gpt2"
    for family, owner in (("pythia-", "EleutherAI"), ("gemma-", "google")):
        if model.startswith(family):
            return f"{owner}/{model}"
    return model


# -- sae_weights.safetensors


def _read(folder: Path, cfg: Cfg) -> dict[str, Tensor]:
    path, d_in, d_sae, d_out = folder / WEIGHTS, cfg.d_in, cfg.d_sae, cfg.d_out or cfg.d_in
    weights = read_tensors(path)
    if "log_threshold" in weights and cfg.architecture == "jumprelu":
        weights["threshold"] = weights.pop("log_threshold").exp()
    for name in ("scaling_factor", "finetuning_scaling_factor"):
        if name in weights and not bool((weights.pop(name).float() == 1).all()):
            raise InputError(f"{path}: tensor '{name}' is not all ones: fine-tuned scales cannot be loaded")
    shapes: dict[str, list[int]] = {"W_dec": [d_sae, d_out], "b_dec": [d_out]}
    if cfg.architecture != "matching_pursuit":
        shapes["W_enc"] = [d_in, d_sae]
    shapes |= {name: [d_sae] for name in _VECTORS[cfg.architecture]}
    if cfg.architecture in _BY_BATCH:
        shapes["topk_threshold"] = []
    check_weights(weights, shapes, path)
    if others := weights.keys() - shapes.keys():
        raise InputError(
            f"{path}: holds {listed(others)}, which a SAELens SAE of architecture '{cfg.architecture}' has not; "
            f"{_OTHER}"
        )
    return {
        name: tensor.to(torch.promote_types(tensor.dtype, torch.float32)) for name, tensor in weights.items()
    }


# -- the SAE


@dataclass
class _Units:
    """Weights with f = relu(h) where h > threshold, and h = encoder (u - b_dec) + b_enc."""

    encoder: Float[Tensor, "d_sae d_in"]
    decoder: Float[Tensor, "d_sae d_out"]
    b_enc: Float[Tensor, "d_sae"]
    b_dec: Float[Tensor, "d_out"]
    threshold: Float[Tensor, "d_sae"]


def fill(cfg: Cfg, weights: Mapping[str, Tensor], scale: float = 1.0) -> SAE:
    """The SAE of a configuration and of tensors that fit it, whose activations are still to be scaled by a factor."""
    sae = build(_config(cfg, scale), cfg.d_in, d_out=cfg.d_out)
    if cfg.architecture == "matching_pursuit":
        b_dec = weights["b_dec"] / scale
        found = {
            "W_dec": weights["W_dec"],
            "b_dec": b_dec if cfg.apply_b_dec_to_input else torch.zeros_like(b_dec),
        }
    else:
        units = _units(cfg, weights, scale)
        found = {
            "W_enc": units.encoder.T,
            "W_dec": units.decoder,
            "b_enc": units.b_enc,
            "b_dec": units.b_dec,
            "threshold": units.threshold.clamp(min=0),
        }
    with torch.no_grad():
        for name, place in sae.tensors().items():
            place.copy_(found[name])
    return sae


@torch.no_grad()
def _units(cfg: Cfg, weights: Mapping[str, Tensor], scale: float) -> _Units:
    encoder, decoder, b_dec = weights["W_enc"].T * scale, weights["W_dec"] / scale, weights["b_dec"] / scale
    threshold = torch.zeros(cfg.d_sae, dtype=torch.float64)
    match cfg.architecture:
        case "gated":
            r, bias = weights["r_mag"].double().exp(), weights["b_mag"].double()
            threshold = bias - r * weights["b_gate"].double()
            encoder = encoder * r[:, None].to(encoder.dtype)
        case "batchtopk" | "matryoshka_batchtopk":
            bias = weights["b_enc"].double()
            # In the units of what is chosen by, which has the decoder's norms in it.
            threshold += weights["topk_threshold"].double() / (
                scale if cfg.rescale_acts_by_decoder_norm else 1.0
            )
        case _:
            bias = weights["b_enc"].double()
            threshold = weights.get("threshold", threshold).double()
    if cfg.rescale_acts_by_decoder_norm:
        norm = decoder.double().norm(dim=1)
        encoder = encoder * norm[:, None].to(encoder.dtype)
        decoder = decoder / norm.clamp(min=1e-8)[:, None].to(decoder.dtype)
        bias = bias * norm
    if not cfg.apply_b_dec_to_input and not cfg.is_transcoder:
        bias = bias + _product(encoder, b_dec)
    return _Units(encoder, decoder, bias, b_dec, threshold)


def _product(weight: Float[Tensor, "m n"], vector: Float[Tensor, "n"]) -> Float[Tensor, "m"]:
    """In float64, some rows at a time: the whole matrix may be large."""
    return torch.cat([rows.double() @ vector.double() for rows in weight.split(4096)])


def _config(cfg: Cfg, scale: float) -> SAEConfig:
    normalize = cfg.normalize_activations
    shared: dict[str, Any] = {
        "normalize_activations": "none" if normalize == "expected_average_only_in" else normalize,
        "activation_threshold": 0.0,
    }
    sizes = (cfg.d_sae,)
    match cfg.trained_as:
        case "matching_pursuit":
            return _matching_pursuit(cfg, scale, shared)
        case "topk":
            return TopKConfig(sizes, (_k(cfg),), encoder_bias=True, **shared)
        case "batchtopk":
            return BatchTopKConfig(sizes, (_mean_k(cfg),), encoder_bias=True, **shared)
        case "matryoshka_batchtopk":
            widths, k = _widths(cfg), (_mean_k(cfg),)
            return MatryoshkaConfig(widths, k, selection="batch", encoder_bias=True, **shared)
        case "transcoder" | "jumprelu_transcoder":
            # The one of the systems that may be transcoders whose features have thresholds.
            return BatchTopKConfig(sizes, sizes, encoder_bias=True, normalize_target="none", **shared)
        case _:
            return JumpReLUConfig(sizes, sizes, encoder_bias=True, threshold_init=0.0, **shared)


def _matching_pursuit(cfg: Cfg, scale: float, shared: dict[str, Any]) -> SAEConfig:
    if not cfg.stop_on_duplicate_support:
        raise InputError(
            "key 'stop_on_duplicate_support' is false, but pursuit here ends with a repeated feature"
        )
    iterations = cfg.max_iterations or cfg.d_in
    if iterations > cfg.d_sae:
        raise InputError(
            f"max_iterations = {iterations} (d_in by default), but there are {cfg.d_sae} features; expected no more"
        )
    return MatchingPursuitConfig(
        (cfg.d_sae,),
        (iterations,),
        residual_tolerance=cfg.residual_threshold / scale,
        decoder_bias=cfg.apply_b_dec_to_input,
        **shared,
    )


def _k(cfg: Cfg) -> int:
    if cfg.k is None:
        raise InputError("there is no key 'k'; expected the number of features of an activation")
    if cfg.k != int(cfg.k):
        raise InputError(f"key 'k' is {shown(cfg.k)}: expected the number of features of an activation")
    return int(cfg.k)


def _details(cfg: Cfg) -> dict[str, Any]:
    """What only training knows of an SAE: in the metadata when training has ended."""
    found = cfg.metadata.get("training_architecture_details")
    return found if isinstance(found, dict) else {}


def _mean_k(cfg: Cfg) -> int:
    """The mean number of features of an activation, which need not be whole; all where the file does not say."""
    k = cfg.k if cfg.k is not None else _details(cfg).get("k")
    if isinstance(k, int | float) and not isinstance(k, bool) and 0 < k <= cfg.d_sae:
        return math.ceil(k)
    return cfg.d_sae


def _widths(cfg: Cfg) -> tuple[int, ...]:
    """The number of features that each prefix adds to the one before; one prefix where the file does not say."""
    given = _details(cfg).get("matryoshka_widths") if cfg.matryoshka_widths is None else cfg.matryoshka_widths
    widths = [] if given is None else given
    if not isinstance(widths, list) or not all(type(width) is int for width in widths):
        raise InputError(f"key 'matryoshka_widths' is {shown(widths)}: expected whole numbers")
    ends = widths if widths and widths[-1] == cfg.d_sae else [*widths, cfg.d_sae]
    sizes = tuple(end - start for start, end in pairwise((0, *ends)))
    if min(sizes) < 1:
        raise InputError(
            f"key 'matryoshka_widths' is {shown(widths)}: expected ascending, up to d_sae = {cfg.d_sae}"
        )
    return sizes
