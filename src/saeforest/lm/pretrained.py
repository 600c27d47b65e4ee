"""Reading a model and its tokenizer through transformers, quietly, safely and completely."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging
from transformers.utils.quantization_config import QuantizationConfigMixin

Pretrained = tuple[PreTrainedModel, PreTrainedTokenizerBase]


def read_pretrained(
    source: str, dtype: torch.dtype, quantization: QuantizationConfigMixin | None = None, **options: Any
) -> Pretrained:
    """The model at `source` (a folder or a Hub name) on the CPU, in `dtype`, and its tokenizer.

    `options` go to the `from_pretrained` of both. Raises whatever transformers raises, and ValueError when
    the files lack some of the weights, which transformers would fill with random numbers.
    """
    options |= {"trust_remote_code": False}
    tokenizer = AutoTokenizer.from_pretrained(source, **options)
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        source,
        dtype=dtype,
        quantization_config=quantization,
        use_safetensors=True,
        output_loading_info=True,
        **options,
    )
    model, report = loaded
    missing = sorted(report["missing_keys"])
    if missing:
        raise ValueError(f"{len(missing)} weights are missing, such as {missing[0]}")
    return model.eval().requires_grad_(False), tokenizer


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Within, transformers shows no progress bars and logs errors only. Downloads keep their bars."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    download_bars = not are_progress_bars_disabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()  # switches off those of the Hub as well
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
