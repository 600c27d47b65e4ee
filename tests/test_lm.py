"""Language models: sites against values taken elsewhere, early stop, replacement, loading, and errors."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from saeforest.errors import UserError
from saeforest.lm import LanguageModel, Site, load_lm
from saeforest.lm import loading as loading_module
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import (
    BertConfig,
    BertLMHeadModel,
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
    T5Config,
    T5ForConditionalGeneration,
)
from transformers.utils import logging

WORDS = ["<unk>", "<s>", "</s>", *"the cat sat on a mat and dog ran home".split()]
VOCAB, WIDTH, LAYERS = len(WORDS), 16, 3
COMMON: dict[str, Any] = dict(vocab_size=VOCAB, bos_token_id=1, eos_token_id=2, pad_token_id=None)
DEEP: dict[str, Any] = COMMON | dict(
    hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=2, intermediate_size=24
)


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
    """A random model. Weights are large, and biases random, so that nothing is equal by accident."""
    torch.manual_seed(0)
    model = make().eval()
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


@pytest.fixture(params=ARCHITECTURES, ids=lambda make: make.__name__)
def lm(request: pytest.FixtureRequest) -> LanguageModel:
    return tiny(request.param)


@pytest.fixture
def ids() -> Tensor:
    return torch.randint(0, VOCAB, (2, 7), generator=torch.Generator().manual_seed(1))


def get(lm: LanguageModel, ids: Tensor, name: str) -> Tensor:
    return lm.activations(ids, lm.site(name))


# Sites


def test_residual_stream_equals_hidden_states(lm: LanguageModel, ids: Tensor) -> None:
    with torch.no_grad():
        hidden = lm.model(input_ids=ids, output_hidden_states=True, use_cache=False).hidden_states
    assert len(hidden) == LAYERS + 1
    for i in range(LAYERS):
        torch.testing.assert_close(get(lm, ids, f"blocks.{i}.hook_resid_pre"), hidden[i], rtol=0, atol=0)
    for i in range(LAYERS - 1):  # behind the last block, transformers gives the normed stream
        torch.testing.assert_close(get(lm, ids, f"blocks.{i}.hook_resid_post"), hidden[i + 1], rtol=0, atol=0)


def test_a_block_adds_its_attention_and_its_mlp(lm: LanguageModel, ids: Tensor) -> None:
    for i in range(LAYERS):
        pre, attn, mlp, post = (
            get(lm, ids, f"blocks.{i}.hook_{hook}") for hook in ("resid_pre", "attn_out", "mlp_out", "resid_post")
        ) if lm.model.config.model_type != "opt" else (
            get(lm, ids, f"blocks.{i}.hook_{hook}") for hook in ("resid_pre", "attn_out", "resid_post", "resid_post")
        )
        if lm.model.config.model_type == "opt":
            continue
        assert attn.abs().max() > 1e-3
        assert mlp.abs().max() > 1e-3
        torch.testing.assert_close(pre + attn + mlp, post)
