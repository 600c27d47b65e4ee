"""Losses of language models, and what replacing an activation does to them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lm_cases import (
    ARCHITECTURES,
    VOCAB,
    get,
    llama,
    tiny,
)
from saeforest.lm import LanguageModel, Site


@pytest.fixture(params=ARCHITECTURES, ids=lambda make: make.__name__)
def lm(request: pytest.FixtureRequest) -> LanguageModel:
    return tiny(request.param)


@pytest.fixture
def ids() -> Tensor:
    return torch.randint(0, VOCAB, (2, 7), generator=torch.Generator().manual_seed(1))


HOOKS = ["resid_pre", "attn_out", "mlp_out", "resid_post"]


def independent_losses(lm: LanguageModel, ids: Tensor) -> Tensor:
    with torch.no_grad():
        log_p = lm.model(input_ids=ids).logits.double().log_softmax(-1)
    rows = [[-log_p[b, t, ids[b, t + 1]] for t in range(ids.shape[1] - 1)] for b in range(len(ids))]
    return torch.tensor(rows, dtype=torch.float32)


def test_losses_are_the_cross_entropy_of_the_next_token(lm: LanguageModel, ids: Tensor) -> None:
    torch.testing.assert_close(lm.token_losses(ids), independent_losses(lm, ids), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(lm.token_losses(ids.int()), lm.token_losses(ids))


@pytest.mark.parametrize("hook", HOOKS)
def test_replacement(lm: LanguageModel, ids: Tensor, hook: str) -> None:
    site, clean, seen = lm.site(f"blocks.1.hook_{hook}"), lm.token_losses(ids), []

    def identity(x: Tensor) -> Tensor:
        seen.append(x)
        return x.clone()

    assert torch.equal(lm.token_losses(ids, {site: identity}), clean)
    assert len(seen) == 1
    assert torch.equal(seen[0], lm.activations(ids, site))
    assert (lm.token_losses(ids, {site: torch.zeros_like}) - clean).abs().max() > 1e-3
    # a replacement in another dtype is cast
    torch.testing.assert_close(lm.token_losses(ids, {site: Tensor.double}), clean)


def test_replaced_stream_alone_decides_what_follows(lm: LanguageModel, ids: Tensor) -> None:
    """The stream of other texts, put in at a block, gives those texts' predictions."""
    others = ids.flip(0, 1)
    site = lm.site("blocks.1.hook_resid_post")
    stream = lm.activations(others, site)
    with torch.no_grad():
        log_p = lm.model(input_ids=others).logits[:, :-1].log_softmax(-1)
    expected = -log_p.gather(-1, ids[:, 1:, None]).squeeze(-1)
    torch.testing.assert_close(lm.token_losses(ids, {site: lambda _: stream}), expected)


def test_replacing_resid_post_equals_replacing_the_next_resid_pre(lm: LanguageModel, ids: Tensor) -> None:
    post, pre = lm.site("blocks.0.hook_resid_post"), lm.site("blocks.1.hook_resid_pre")
    halve = lambda x: x / 2  # noqa: E731
    torch.testing.assert_close(lm.token_losses(ids, {post: halve}), lm.token_losses(ids, {pre: halve}))


class ByKeyword(torch.nn.Module):
    """A block that is called with keywords only, and answers with a tuple, as older architectures do."""

    def __init__(self, block: torch.nn.Module) -> None:
        super().__init__()
        self.inner = Pair(block)

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Tensor:
        output, second = self.inner(hidden_states=hidden_states, **kwargs)
        assert second == "second"
        return output


class Pair(torch.nn.Module):
    def __init__(self, block: torch.nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> tuple[Tensor, str]:
        return self.block(hidden_states, **kwargs), "second"


def test_keyword_inputs_and_tuple_outputs(ids: Tensor) -> None:
    lm = tiny(llama)
    clean, stream = lm.token_losses(ids), get(lm, ids, "blocks.1.hook_resid_pre")
    after = get(lm, ids, "blocks.1.hook_resid_post")
    layers: Any = lm.model.get_submodule("model.layers")
    layers[1] = ByKeyword(layers[1])
    path = "model.layers.1.inner"
    for site, expected in ((Site("in", path, "input"), stream), (Site("out", path, "output"), after)):
        assert torch.equal(lm.activations(ids, site), expected)
        assert torch.equal(lm.token_losses(ids, {site: torch.clone}), clean)
        assert not torch.equal(lm.token_losses(ids, {site: torch.zeros_like}), clean)


def test_a_function_must_keep_the_shape(ids: Tensor) -> None:
    lm = tiny(llama)
    with pytest.raises(ValueError, match=r"\(2, 7, 8\): expected that of the activation, \(2, 7, 16\)"):
        lm.token_losses(ids, {lm.site("blocks.0.hook_mlp_out"): lambda x: x[..., :8]})


def test_bfloat16(ids: Tensor) -> None:
    lm = tiny(llama)
    clean = lm.token_losses(ids)
    lm.model.bfloat16()
    site = lm.site("blocks.1.hook_resid_post")
    assert lm.activations(ids, site).dtype == lm.dtype == torch.bfloat16
    losses = lm.token_losses(ids, {site: Tensor.float})
    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses, clean, rtol=0.1, atol=0.2)
