"""The short check of a model at its first use, and what a block multiplies before it adds."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from torch import nn
from transformers import FalconH1Config, FalconH1ForCausalLM, GraniteConfig, GraniteForCausalLM

from lm_cases import DEEP, LAYERS, VOCAB, gemma2, get, gpt2, llama, one_line, tiny
from saeforest.errors import InputError
from saeforest.lm import LanguageModel
from saeforest.lm.parity import TEXT, parity


def granite() -> GraniteForCausalLM:
    settings: dict[str, Any] = DEEP | {"residual_multiplier": 0.22, "embedding_multiplier": 12.0}
    settings |= {"attention_multiplier": 0.5, "logits_scaling": 8.0}
    return GraniteForCausalLM(GraniteConfig(**settings))


def falcon_h1() -> FalconH1ForCausalLM:
    settings: dict[str, Any] = DEEP | {
        "num_key_value_heads": 1,
        "head_dim": 8,
        "attention_out_multiplier": 0.5,
    }
    settings |= {
        "mamba_d_ssm": 16,
        "mamba_n_heads": 2,
        "mamba_d_head": 8,
        "mamba_d_state": 8,
        "mamba_chunk_size": 8,
    }
    return FalconH1ForCausalLM(FalconH1Config(**settings))


@pytest.mark.parametrize("make", [llama, gpt2, gemma2, granite])
def test_sums_hold_and_an_untrained_model_is_known(make: Any) -> None:
    lm = tiny(make)
    found = parity(lm)
    assert found["sums_hold"]
    assert set(found["sums"]) == {str(i) for i in range(LAYERS)}
    assert max(found["sums"].values()) < 1e-4
    assert found["loss_of_guessing"] == pytest.approx(math.log(VOCAB))
    assert not found["trained"]
    assert "predicts a plain English text badly" in found["warnings"][0]
    assert len(found["warnings"]) == 1
    json.dumps(found, allow_nan=False)


def test_it_is_the_loss_on_the_text() -> None:
    lm = tiny(llama)
    ids = torch.tensor([lm.tokenizer(TEXT)["input_ids"][:96]])
    assert parity(lm)["loss"] == pytest.approx(float(lm.token_losses(ids).mean()))
    with_bos = torch.cat([torch.tensor([[1]]), ids], 1)[:, :96]
    assert parity(lm, bos=True)["loss"] == pytest.approx(float(lm.token_losses(with_bos).mean()))


def test_a_model_that_knows_the_text_is_taken_for_trained() -> None:
    """It knows how often each token is, which is all there is to learn in so small a vocabulary."""
    lm = tiny(llama)
    read = lm.tokenizer(TEXT)["input_ids"]
    often = torch.tensor([0.01 + read.count(i) for i in range(VOCAB)])
    head = nn.Linear(16, VOCAB)
    head.weight.data.zero_()
    head.bias.data.copy_(often.log())
    lm.model.set_output_embeddings(head)
    found = parity(lm)
    assert found["trained"]
    assert found["warnings"] == []


def test_sums_that_do_not_hold_are_said() -> None:
    lm = tiny(falcon_h1)
    found = parity(lm)
    assert found["sums_hold"] is False
    assert "adds more to the residual stream than attn_out and mlp_out" in found["warnings"][-1]


def test_a_loss_that_is_no_number_is_one_line() -> None:
    lm = tiny(llama)
    lm.model.get_parameter("lm_head.weight").data.fill_(float("nan"))
    with pytest.raises(InputError, match="its weights are damaged") as info:
        parity(lm)
    one_line(info)


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(0, VOCAB, (2, 7), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("make", "hook"), [(granite, "attn_out"), (granite, "mlp_out"), (falcon_h1, "attn_out")]
)
def test_what_a_block_multiplies_is_part_of_the_site(make: Any, hook: str, ids: torch.Tensor) -> None:
    lm: LanguageModel = tiny(make)
    site = lm.site(f"blocks.1.hook_{hook}")
    assert site.scale in (0.22, 0.5)
    inner = lm.site(site.module_path)  # the module's own output, as it comes
    assert inner.scale == 1
    torch.testing.assert_close(lm.activations(ids, site), lm.activations(ids, inner) * site.scale)
    clean = lm.token_losses(ids)
    torch.testing.assert_close(lm.token_losses(ids, {site: torch.clone}), clean)
    # To add a vector to the site is to add it to the stream behind the attention.
    if hook == "mlp_out":
        add = torch.randn(16, generator=torch.Generator().manual_seed(0))
        after = lm.site("blocks.1.hook_resid_post")
        torch.testing.assert_close(
            lm.token_losses(ids, {site: lambda x: x + add}), lm.token_losses(ids, {after: lambda x: x + add})
        )


def test_granite_adds_up(ids: torch.Tensor) -> None:
    lm = tiny(granite)
    for i in range(LAYERS):
        hooks = ("resid_pre", "attn_out", "mlp_out", "resid_post")
        pre, attn, mlp, post = (get(lm, ids, f"blocks.{i}.hook_{hook}") for hook in hooks)
        torch.testing.assert_close(pre + attn + mlp, post)
