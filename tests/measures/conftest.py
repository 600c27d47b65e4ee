"""A tiny language model, its text, and an SAE, for tests of measures."""

from __future__ import annotations

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from measure_cases import (
    CONTEXT,
    EOS,
    N_WINDOWS,
    SITE,
    VOCAB,
    D,
    tree_sae,
)
from saeforest.activations import ActivationReader
from saeforest.lm import LanguageModel
from saeforest.saes import TreeSAE
from saeforest.text import Tokens


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=D, num_hidden_layers=3, num_attention_heads=2, intermediate_size=24,
        bos_token_id=1, eos_token_id=EOS, pad_token_id=None,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    words = {"<unk>": 0, "<s>": 1, "</s>": EOS} | {f"w{i}": i for i in range(3, VOCAB)}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return LanguageModel("tiny", model, PreTrainedTokenizerFast(tokenizer_object=backend, **special))


@pytest.fixture
def reader(lm: LanguageModel) -> ActivationReader:
    return ActivationReader(lm, lm.site(SITE), batch_size=5)


@pytest.fixture(scope="module")
def tokens() -> Tokens:
    ids = torch.randint(3, VOCAB, (N_WINDOWS, CONTEXT), generator=torch.Generator().manual_seed(1))
    ids[::3, 4] = EOS
    return Tokens(ids.int(), torch.tensor([0]), ("document",))


@pytest.fixture(scope="module")
def sae() -> TreeSAE:
    return tree_sae()
