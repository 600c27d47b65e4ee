"""The splice against its definition, in double precision."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lm_cases import VOCAB, WIDTH, llama, tiny
from saeforest.interventions import ablate, splice
from saeforest.lm import LanguageModel
from saeforest.saes import SAE, TopKConfig, TreeConfig, build
from saeforest.sparse_code import SparseCode

SITE = "blocks.1.hook_resid_post"
CONFIGS = [
    TopKConfig(layer_sizes=(40,), k_per_layer=(6,), normalize_activations="none"),
    TreeConfig(layer_sizes=(12, 28), k_per_layer=(3, 3)),
]


@pytest.fixture
def lm() -> LanguageModel:
    lm = tiny(llama)
    lm.model.double()
    return lm


@pytest.fixture(params=CONFIGS, ids=lambda config: f"{config.architecture}-{config.normalize_activations}")
def sae(request: pytest.FixtureRequest) -> SAE:
    sae = build(request.param, WIDTH, seed=1).double()
    torch.nn.init.normal_(sae.b_dec, std=0.1)
    return sae


@pytest.fixture
def ids() -> Tensor:
    return torch.randint(0, VOCAB, (2, 7), generator=torch.Generator().manual_seed(1))


def twice(code: SparseCode) -> SparseCode:
    return SparseCode(2 * code.values, code.ids)


def test_an_unedited_code_with_its_error_changes_nothing(lm: LanguageModel, sae: SAE, ids: Tensor) -> None:
    clean = lm.logits(ids)
    assert torch.equal(lm.logits(ids, {SITE: splice(sae, error=True)}), clean)
    assert not torch.allclose(lm.logits(ids, {SITE: splice(sae)}), clean)


def test_without_an_edit_it_is_the_reconstruction(lm: LanguageModel, sae: SAE, ids: Tensor) -> None:
    x = lm.activations(ids, SITE)
    expected = lm.logits(ids, {SITE: lambda _: sae(x)})
    assert torch.equal(lm.logits(ids, {SITE: splice(sae)}), expected)


def test_an_ablated_feature_alone_is_taken_away(lm: LanguageModel, sae: SAE, ids: Tensor) -> None:
    """x - value * decoder * std, at exactly the tokens where the feature acts."""
    x = lm.activations(ids, SITE)
    code, stats = sae.encode_with_stats(x)
    dense = code.dense(sae.d_sae)
    feature = int(dense.sum((0, 1)).argmax())
    value = dense[..., feature, None]
    assert 0 < (value > 0).sum() < value.numel()
    found = splice(sae, ablate([feature]), error=True)(x)
    torch.testing.assert_close(found, x - value * sae.W_dec[feature] * stats.std, rtol=0, atol=1e-12)
    assert torch.equal(found[value[..., 0] == 0], x[value[..., 0] == 0])
    without = splice(sae, ablate([feature]))(x)
    torch.testing.assert_close(without - sae(x), found - x, rtol=0, atol=1e-12)


def test_edits_see_the_code_and_decide_what_is_decoded(lm: LanguageModel, sae: SAE, ids: Tensor) -> None:
    x = lm.activations(ids, SITE)
    code, stats = sae.encode_with_stats(x)
    change = (code.dense(sae.d_sae) @ sae.W_dec) * stats.std
    torch.testing.assert_close(splice(sae, twice, error=True)(x), x + change, rtol=0, atol=1e-11)


@pytest.mark.parametrize("error", [False, True])
def test_positions_that_are_not_kept_stay(lm: LanguageModel, sae: SAE, ids: Tensor, error: bool) -> None:
    x = lm.activations(ids, SITE)
    keep = torch.arange(7) % 2 == ids % 2
    assert 0 < keep.sum() < keep.numel()
    found, everywhere = (splice(sae, twice, error=error, keep=at)(x) for at in (keep, None))
    assert torch.equal(found[~keep], x[~keep])
    torch.testing.assert_close(found[keep], everywhere[keep], rtol=0, atol=1e-12)
    assert torch.equal(splice(sae, twice, keep=torch.zeros_like(keep))(x), x)


def test_it_steers_what_is_generated(lm: LanguageModel, sae: SAE, ids: Tensor) -> None:
    plain = lm.generate(ids, 4)
    for use_cache in (True, False):
        with lm.hooked({SITE: splice(sae, error=True)}):
            assert torch.equal(lm.generate(ids, 4, use_cache=use_cache), plain)
        with lm.hooked({"blocks.2.hook_resid_post": splice(sae, twice)}):
            steered = lm.generate(ids, 4, use_cache=use_cache)
        assert not torch.equal(steered, plain)


def test_the_language_model_and_the_sae_may_differ_in_type(ids: Tensor) -> None:
    lm, config = tiny(llama), CONFIGS[0]
    lm.model.bfloat16()
    sae = build(config, WIDTH, seed=1)
    clean: Any = lm.logits(ids)
    assert torch.equal(lm.logits(ids, {SITE: splice(sae, error=True)}), clean)
    assert lm.logits(ids, {SITE: splice(sae)}).dtype == torch.bfloat16


@pytest.mark.parametrize("error", [False, True])
def test_gradients_reach_the_site_and_the_weights(
    lm: LanguageModel, sae: SAE, ids: Tensor, error: bool
) -> None:
    """Against finite differences, so small that the same features act."""
    x = lm.activations(ids, SITE)[0, :3].clone().requires_grad_()
    assert torch.autograd.gradcheck(splice(sae, twice, error=error), (x,), eps=1e-7, atol=1e-5)
    lm.logits(ids, {SITE: splice(sae, twice, error=error)}).square().mean().backward()
    assert sae.decoder.grad is not None
    assert bool(sae.decoder.grad.any())
