"""Tiny random language models of several architectures, and their tokenizer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging

from saeforest.errors import InputError
from saeforest.lm import LanguageModel

WORDS = ["<unk>", "<s>", "</s>", *["the", "cat", "sat", "on", "a", "mat", "and", "dog", "ran", "home"]]
VOCAB, WIDTH, LAYERS = len(WORDS), 16, 3
COMMON: dict[str, Any] = {"vocab_size": VOCAB, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None}
DEEP: dict[str, Any] = COMMON | {
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "intermediate_size": 24,
}


def llama() -> PreTrainedModel:
    return LlamaForCausalLM(LlamaConfig(**DEEP))


def gpt2() -> PreTrainedModel:
    return GPT2LMHeadModel(GPT2Config(**COMMON, n_embd=WIDTH, n_layer=LAYERS, n_head=2, n_positions=32))


def neox() -> PreTrainedModel:
    return GPTNeoXForCausalLM(GPTNeoXConfig(**DEEP, use_parallel_residual=True))


def gemma2() -> PreTrainedModel:
    config = Gemma2Config(**DEEP, num_key_value_heads=1, head_dim=8, sliding_window=8)
    return Gemma2ForCausalLM(config)


def bloom() -> PreTrainedModel:
    return BloomForCausalLM(BloomConfig(**COMMON, hidden_size=WIDTH, n_layer=LAYERS, n_head=2))


def opt() -> PreTrainedModel:
    config = OPTConfig(
        **COMMON, hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=2, ffn_dim=24,
        word_embed_proj_dim=WIDTH, max_position_embeddings=32,
    )  # fmt: skip
    return OPTForCausalLM(config)


ARCHITECTURES = [llama, gpt2, neox, gemma2, bloom, opt]


def tokenizer(**special: str) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)


def tiny(make: Callable[[], PreTrainedModel]) -> LanguageModel:
    """A random model, frozen as a loaded one. Weights are large and biases random: nothing is equal by accident."""
    torch.manual_seed(0)
    model = make().eval().requires_grad_(False)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return LanguageModel("tiny", model, tokenizer(bos_token="<s>", eos_token="</s>", unk_token="<unk>"))


def save(lm: LanguageModel, folder: Path) -> str:
    verbosity = logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        lm.model.save_pretrained(folder)
        lm.tokenizer.save_pretrained(folder)
    finally:
        logging.enable_progress_bar()
        logging.set_verbosity(verbosity)
    return str(folder)


def n_hooks(lm: LanguageModel) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in lm.model.modules())


def get(lm: LanguageModel, ids: Tensor, name: str) -> Tensor:
    return lm.activations(ids, lm.site(name))


def one_line(info: pytest.ExceptionInfo[InputError], *parts: str) -> None:
    message = str(info.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


def truncated_weights(folder: Path) -> str:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    return ""
