"""Direct effects on logits against the model's own final norm and unembedding."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from explore_cases import byte_tokenizer
from saeforest.explore.index.form import LOGITS
from saeforest.explore.measuring.logits import direct_logits, final_norm
from saeforest.lm import LanguageModel
from saeforest.saes import TopKConfig, TopKSAE

WIDTH, VOCAB = 16, 50
SMALL: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": WIDTH,
    "intermediate_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
}


def model(kind: str) -> PreTrainedModel:
    torch.manual_seed(0)
    match kind:
        case "gpt2":
            made = GPT2LMHeadModel(GPT2Config(vocab_size=VOCAB, n_embd=WIDTH, n_layer=2, n_head=2))
        case "gemma2":
            made = Gemma2ForCausalLM(Gemma2Config(**SMALL))
        case _:
            made = LlamaForCausalLM(LlamaConfig(**SMALL))
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "norm" in name or "ln" in name:
                parameter.normal_(std=0.5)
    return made.eval()


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2"])
def test_the_final_norm_is_found_by_what_it_does(kind: str) -> None:
    made = model(kind)
    found = final_norm(made, WIDTH)
    assert found is not None
    scale, centers = found
    assert centers == (kind == "gpt2")
    norm = made.get_submodule("transformer.ln_f" if kind == "gpt2" else "model.norm")
    x = torch.randn(WIDTH)
    x = (x - x.mean()) / x.std(unbiased=False)  # of mean 0 and variance 1: both kinds leave it as it is
    with torch.no_grad():
        torch.testing.assert_close(norm(x) - norm(0 * x), scale * x, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2"])
def test_logits_of_decoder_rows(kind: str) -> None:
    made = model(kind)
    lm = LanguageModel("made", made, byte_tokenizer())
    sae = TopKSAE(TopKConfig(layer_sizes=(20,), k_per_layer=(3,)), WIDTH, seed=1)
    found = direct_logits(sae, lm, "blocks.1.hook_resid_post")
    assert found is not None
    norm = final_norm(made, WIDTH)
    assert norm is not None
    scale = norm[0].double().numpy()
    head: Any = made.get_output_embeddings()
    unembedding = head.weight.detach().double().numpy()
    for f, row in enumerate(sae.W_dec.detach().double().numpy()):
        unit = row / np.linalg.norm(row)
        logits = unembedding @ (scale * (unit - unit.mean() if norm[1] else unit))
        assert found.up_id[f].tolist() == np.argsort(-logits)[:LOGITS].tolist()
        assert found.down_id[f].tolist() == np.argsort(logits)[:LOGITS].tolist()
        np.testing.assert_allclose(found.up[f], np.sort(logits)[::-1][:LOGITS], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found.down[f], np.sort(logits)[:LOGITS], rtol=1e-4, atol=1e-5)


def test_no_logits_where_the_decoder_does_not_write_to_the_residual_stream() -> None:
    lm = LanguageModel("made", model("llama"), byte_tokenizer())
    sae = TopKSAE(TopKConfig(layer_sizes=(20,), k_per_layer=(3,)), WIDTH, seed=1)
    for site in ("blocks.1.attn.hook_z", "blocks.1.ln2.hook_normalized", "model.layers.1.mlp", ""):
        assert direct_logits(sae, lm, site) is None
    narrow = TopKSAE(TopKConfig(layer_sizes=(20,), k_per_layer=(3,)), WIDTH // 2, seed=1)
    assert direct_logits(narrow, lm, "blocks.1.hook_mlp_out") is None
