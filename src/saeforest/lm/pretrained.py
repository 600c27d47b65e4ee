"""Loading a model with transformers, quietly and safely, and checking that it is what its files say."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GgufConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from saeforest.lm.quantized import is_of_activations, plain_model, settle_quantization
from saeforest.lm.tokenizer import read_tokenizer
from saeforest.lm.weights import FLOATS, StoredTensor, stored_tensors
from saeforest.output import note

Pretrained = tuple[PreTrainedModel, PreTrainedTokenizerBase]

# Parts of a checkpoint that are not part of a language model. They may be left out if the rest is complete.
_OTHER_PART = re.compile(
    r"vis(ion|ual)|image|audio|speech|multi_?modal|mm_|projector|aligner|perceiver|(^|_)mtp|v_head|value_head|"
    r"reward|score|classif",
    re.I,
)


def read_pretrained(folder: Path, dtype: torch.dtype) -> Pretrained:
    """Load the model in a folder, on the CPU, in `dtype`, and its tokenizer.

    Raises whatever transformers raises, and ValueError if files and model do not fit together: tensors that are
    missing, have no place in the model, or are quantized in a way that can't be dequantized.
    """
    tokenizer = read_tokenizer(folder)
    tensors = stored_tensors(folder)
    config = AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    method = settle_quantization(config, tensors)
    try:
        model, report = _load(str(folder), dtype, config=config)
    except ImportError as error:
        if method is None:
            raise
        raise ValueError(
            f"its weights are quantized ({method}), and a package is missing: {error}"
        ) from error
    _check_report(report, model, unpacked=method is not None)
    if method is None:
        _check_types(model, tensors)
    return _finish(plain_model(model, method, dtype) if method else model), tokenizer


def read_gguf_model(path: Path, dtype: torch.dtype) -> PreTrainedModel:
    """Load the model in a GGUF file, dequantized. Raises as `read_pretrained` does."""
    model, report = _load(
        str(path.parent), dtype, gguf_file=path.name, quantization_config=GgufConfig(dequantize=True)
    )
    _check_report(report, model, unpacked=False)
    return _finish(model)


def _load(source: str, dtype: torch.dtype, **options: Any) -> tuple[PreTrainedModel, Mapping[str, Any]]:
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        source,
        dtype=dtype,
        use_safetensors=True,
        output_loading_info=True,
        trust_remote_code=False,
        local_files_only=True,
        **options,
    )
    return loaded


def _check_report(report: Mapping[str, Any], model: PreTrainedModel, *, unpacked: bool) -> None:
    missing = sorted(report["missing_keys"])
    if missing:
        raise ValueError(f"{len(missing)} weights are missing, such as {missing[0]}")
    for key, text in (("mismatched_keys", "have the wrong shape"), ("error_msgs", "can't be read")):
        if report.get(key):
            raise ValueError(f"{len(report[key])} weights {text}, such as {min(map(str, report[key]))}")
    unexpected = sorted(
        name for name in report["unexpected_keys"] if not (unpacked and is_of_activations(name))
    )
    others = {part for name in unexpected if (part := _other_part(name, model)) is not None}
    wrong = [name for name in unexpected if _other_part(name, model) is None]
    if wrong:
        raise ValueError(
            f"its files hold {len(wrong)} tensors that {type(model).__name__} does not have, such as {wrong[0]}; "
            "config.json names the wrong kind of model, or does not say how the weights are packed"
        )
    if others:
        parts = ", ".join(sorted(others))
        note(f"not loaded: {parts} ({len(unexpected)} tensors), which is not part of a language model")


def _check_types(model: PreTrainedModel, tensors: Mapping[str, StoredTensor]) -> None:
    """Raises ValueError for a weight that is not stored as floating-point numbers."""
    prefix = f"{model.base_model_prefix}."
    for name, _ in model.named_parameters():
        for known in (name, name.removeprefix(prefix), prefix + name):  # older files leave the prefix out
            if known in tensors and tensors[known].dtype not in FLOATS:
                raise ValueError(
                    f"{known} is stored as {tensors[known].dtype}, not as floating-point numbers; download or copy the "
                    "model again"
                )


def _other_part(name: str, model: nn.Module) -> str | None:
    """The part of a checkpoint that a tensor belongs to if it is not part of a language model; else None."""
    module, path = model, []
    for step in name.split(".")[:-1]:
        path.append(step)
        child = getattr(module, step, None)
        if not isinstance(child, nn.Module):
            named = _OTHER_PART.search(step) and not isinstance(module, nn.ModuleList)
            return ".".join(path) if named and len(path) <= 2 else None
        module = child
    return None


def _finish(model: PreTrainedModel) -> PreTrainedModel:
    zeros, matrices = [], 0
    for name, tensor in model.named_parameters():
        if not tensor.is_floating_point():
            raise ValueError(
                f"{name} is {tensor.dtype}: expected floating-point numbers; download or copy it again"
            )
        if tensor.is_meta:
            raise ValueError(f"{name} was not loaded")
        if not bool(torch.isfinite(tensor.detach()).all()):
            raise ValueError(f"{name} holds NaN or infinite values; download or copy it again")
        if tensor.ndim >= 2:
            matrices += 1
            if not bool(tensor.detach().any()):
                zeros.append(name)
    if zeros:
        note(f"{len(zeros)} of the model's {matrices} weight matrices are all zero, such as {zeros[0]}")
    return model.eval().requires_grad_(False)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Context in which transformers shows no progress bars and logs only errors. Downloads keep their bars."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    download_bars = not are_progress_bars_disabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()  # also disables those of the Hub
    if download_bars:
        enable_progress_bars()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
        if not download_bars:
            disable_progress_bars()
