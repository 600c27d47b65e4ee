"""Quantized checkpoints: dequantized by the loader of their format, or refused.

A code is a low-bit number that, with a scale, represents a weight. Read as a weight it would be wrong by orders of
magnitude, so configuration and files are compared before anything is loaded.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, AutoQuantizationConfig

from saeforest.lm.weights import FLOATS, StoredTensor
from saeforest.output import note

# Integer tensors that are not codes: positions and masks saved by older versions of transformers.
_BUFFER = re.compile(
    r"(^|\.)(position_ids|token_type_ids|cache_position|num_batches_tracked|(attn|attention)\.(bias|masked_bias))$"
)
_NO_CODES = {"BOOL", "I64", "C64"}
# Tensors that accompany codes: scales, zero points, tables and shapes in the formats that transformers supports.
_BESIDE = re.compile(
    r"(scales?|scale_inv|zeros?|zero_point|g_idx|absmax|quant_map|quant_state[\w.]*|SCB|weight_format|weight_packed|"
    r"weight_shape|qweight|blocks|codebooks?|codes|_qdata|tensor_impl[\w.]*)$"
)
# Scales of activations, which dequantized weights do not use.
_OF_ACTIVATIONS = re.compile(r"(input|activation|output|k|v|q|kv)_(global_)?(scale|zero_point)$|qscale_act$")


def is_code(tensor: StoredTensor) -> bool:
    """Whether a tensor holds codes, judging by its dtype and name."""
    return (
        tensor.dtype not in FLOATS and tensor.dtype not in _NO_CODES and _BUFFER.search(tensor.name) is None
    )


def is_of_activations(name: str) -> bool:
    """Whether a tensor of this name is a scale of activations."""
    return _OF_ACTIVATIONS.search(name) is not None


def settle_quantization(config: PreTrainedConfig, tensors: Mapping[str, StoredTensor]) -> str | None:
    """The quantization method of a checkpoint, None if its weights are plain. Sets `config` to dequantize them.

    Raises ValueError if codes and configuration do not fit together, or transformers can't dequantize them.
    """
    stated = _stated(config)
    codes = [tensor for tensor in tensors.values() if is_code(tensor)]
    beside = [name for name in tensors if _BESIDE.search(name)]
    if not stated:
        if codes:
            raise ValueError(
                f"{codes[0].name} and {len(codes) - 1} more tensors are quantized ({codes[0].dtype}), but config.json "
                "has no quantization_config; give the model in full precision"
            )
        return None
    method = _method(stated)
    if not codes and not beside:
        note(
            f"config.json says that the weights are quantized ({method}), but they are stored in full precision"
        )
        _state(config, None)
        return None
    if method not in AUTO_QUANTIZATION_CONFIG_MAPPING:
        known = ", ".join(sorted(AUTO_QUANTIZATION_CONFIG_MAPPING))
        raise ValueError(f"quantized as {method!r}, which transformers can't dequantize; it supports {known}")
    _check_scales(method, stated, codes, tensors)
    settings = AutoQuantizationConfig.from_dict(dict(stated))
    if hasattr(settings, "dequantize"):
        stated = {**stated, "dequantize": True}
        stated.pop("run_compressed", None)
    _state(config, stated)
    return method


def _stated(config: PreTrainedConfig) -> dict[str, Any] | None:
    for part in (config, config.get_text_config()):
        stated = getattr(part, "quantization_config", None) or getattr(part, "compression_config", None)
        if stated:
            return dict(stated if isinstance(stated, dict) else stated.to_dict())
    return None


def _state(config: PreTrainedConfig, stated: dict[str, Any] | None) -> None:
    for part in {id(part): part for part in (config, config.get_text_config())}.values():
        if stated is None:
            for name in ("quantization_config", "compression_config"):
                if hasattr(part, name):
                    delattr(part, name)
        elif hasattr(part, "quantization_config") or part is config:
            part.quantization_config = dict(stated)


def _method(stated: Mapping[str, Any]) -> str:
    method = stated.get("quant_method") or "no quant_method"
    method = str(getattr(method, "value", method))
    if stated.get("load_in_4bit") or stated.get("load_in_8bit"):
        return f"bitsandbytes_{'4' if stated.get('load_in_4bit') else '8'}bit"
    return method


def _check_scales(
    method: str, stated: Mapping[str, Any], codes: list[StoredTensor], tensors: Mapping[str, StoredTensor]
) -> None:
    """Raises ValueError for codes without a scale, and for blocks that transformers dequantizes wrongly."""
    for tensor in codes:
        module, _, leaf = tensor.name.rpartition(".")
        if leaf != "weight":
            continue
        scales = [n for n in tensors if n.startswith(f"{module}.") and n != tensor.name and _BESIDE.search(n)]
        if not any(scale for scale in scales if not is_of_activations(scale)):
            raise ValueError(
                f"{tensor.name} is quantized ({tensor.dtype}), but its scale is missing; download or copy it again"
            )
        block = stated.get("weight_block_size")
        grid = tensors.get(f"{tensor.name}_scale_inv")
        if method != "fp8" or grid is None or not block or len(grid.shape) < 2:
            continue
        for size, side, n in zip(tensor.shape[-2:], block, grid.shape[-2:], strict=False):
            if n > 1 and size != n * side:
                raise ValueError(
                    f"{tensor.name} {list(tensor.shape)} is not divisible into its blocks of {list(block)}, and "
                    "transformers would dequantize it wrongly; give the model in full precision"
                )


def plain_model(model: PreTrainedModel, method: str, dtype: torch.dtype) -> PreTrainedModel:
    """The model with plain weights in `dtype`. Raises ValueError if some are still codes."""
    if getattr(model, "hf_quantizer", None) is not None and any(map(_holds_codes, model.modules())):
        try:
            model = model.dequantize(dtype)  # pyright: ignore[reportAssignmentType]
        except Exception as error:
            raise ValueError(
                f"its weights are quantized ({method}), and transformers can run but not dequantize them "
                f"({type(error).__name__}); give the model in full precision"
            ) from error
    kept = model._keep_in_fp32_modules or ()
    for name, tensor in model.named_parameters():
        if (
            tensor.is_floating_point()
            and tensor.element_size() > 1
            and not any(part in name for part in kept)
        ):
            tensor.data = tensor.data.to(dtype)
    for name, module in model.named_modules():
        if _holds_codes(module):
            raise ValueError(
                f"{name} is still quantized ({method}) after dequantization; give the model in full precision"
            )
    return model


def _holds_codes(module: nn.Module) -> bool:
    """Whether a module's own parameters are codes, or it is a layer that computes on codes."""
    own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    if any(not t.is_floating_point() or t.element_size() < 2 for t in module.parameters(recurse=False)):
        return True
    kind = type(module)
    foreign = not kind.__module__.startswith(("torch.", "transformers.models.", "transformers.activations"))
    return (
        foreign
        and bool(own)
        and re.search(r"4bit|8bit|quant|fp8|fp4|int4|int8", kind.__name__, re.I) is not None
    )
