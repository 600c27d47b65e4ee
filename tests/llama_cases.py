"""A tiny Llama with random weights and a tokenizer of bytes, on disk; the type of what makes a configuration for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging

import typecheck  # noqa: F401  # before saeforest

# isort: split
from saeforest.config import TrainConfig

WIDTH, LAYERS, EOS = 16, 2, 256
MakeConfig = Callable[..., TrainConfig]


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A token a byte, and an end-of-text token."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    letters = {chr(byte) if byte in plain else chr(next(others)): byte for byte in range(256)}
    backend = Tokenizer(models.BPE(vocab=letters, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>")


def save_llama(
    folder: Path, width: int = WIDTH, damage: Callable[[Any], object] = lambda model: None
) -> Path:
    """A random Llama, as transformers saves it. `damage` may change the model before."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=EOS + 1,
        hidden_size=width,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        intermediate_size=24,
        bos_token_id=None,
        eos_token_id=EOS,
        pad_token_id=None,
    )
    model = LlamaForCausalLM(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    damage(model)
    logging.disable_progress_bar()
    try:
        model.save_pretrained(folder)
        byte_tokenizer().save_pretrained(folder)
    finally:
        logging.enable_progress_bar()
    return folder
