"""Passes that share their start equal whole passes, bit by bit, and do not run the blocks before the site."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lm_cases import ARCHITECTURES, LAYERS, VOCAB, llama, tiny
from saeforest.lm import LanguageModel
from saeforest.lm.shared_start import SharedStart, blocks_before
from saeforest.lm.sites import block_list


@pytest.fixture
def ids() -> Tensor:
    return torch.randint(0, VOCAB, (4, 7), generator=torch.Generator().manual_seed(1))


def blocks_of(lm: LanguageModel) -> list[nn.Module]:
    return list(block_list(lm.model, lm.n_layers, "blocks.0.hook_resid_pre")[1])


def computed(lm: LanguageModel) -> list[int]:
    """Counts, from now on, the passes in which each block's attention or MLP ran."""
    counts = [0] * LAYERS
    for i, block in enumerate(blocks_of(lm)):
        inner = next(block.children())

        def count(*_: Any, i: int = i) -> None:
            counts[i] += 1

        inner.register_forward_hook(count)
    return counts


@pytest.mark.parametrize("make", ARCHITECTURES, ids=lambda make: make.__name__)
@torch.no_grad()
def test_passes_equal_whole_ones(make: Any, ids: Tensor) -> None:
    lm = tiny(make)
    for hook, shared in (("resid_pre", 1), ("attn_out", 1), ("mlp_out", 1), ("resid_post", 2)):
        site = lm.site(f"blocks.1.hook_{hook}")
        blocks = blocks_before(lm, site)
        assert len(blocks) == shared
        start = SharedStart(lm, blocks)
        with start.first_pass():
            assert torch.equal(lm.logits(ids), lm.logits(ids))
        noise = torch.randn(lm.activations(ids, site).shape, generator=torch.Generator().manual_seed(2))
        for change in (torch.zeros_like, lambda x, noise=noise: x + noise, lambda x: x):
            assert torch.equal(start.logits(ids, {site: change}), lm.logits(ids, {site: change}))
    # The first texts alone: sums may be rounded in another way where a product has fewer rows.
    few = start.logits(ids[:3], {site: torch.zeros_like})
    torch.testing.assert_close(few, lm.logits(ids[:3], {site: torch.zeros_like}), rtol=0, atol=1e-6)
    assert all("forward" not in vars(block) for block in blocks_of(lm))


@torch.no_grad()
def test_blocks_before_the_site_run_once(ids: Tensor) -> None:
    lm = tiny(llama)
    site = lm.site(f"blocks.{LAYERS - 2}.hook_resid_post")
    start = SharedStart(lm, blocks_before(lm, site))
    counts = computed(lm)
    with start.first_pass():
        lm.logits(ids)
    for _ in range(3):
        start.logits(ids, {site: torch.zeros_like})
    assert counts == [*[1] * (LAYERS - 1), 4]


@torch.no_grad()
def test_a_model_that_hands_on_something_else_is_run_whole(ids: Tensor) -> None:
    """As those do whose later blocks read keys and values of earlier ones."""
    lm, kept = tiny(llama), []
    first, last = blocks_of(lm)[0], blocks_of(lm)[-1]
    next(first.children()).register_forward_hook(lambda _m, _a, output: kept.append(output))
    site = lm.site("blocks.1.hook_resid_post")
    assert len(blocks_before(lm, site)) == 2  # what is kept and not used changes nothing

    def used(_module: Any, _args: Any, output: Any) -> Any:
        more = kept[-1][0] if isinstance(kept[-1], tuple) else kept[-1]
        return (output[0] + more, *output[1:]) if isinstance(output, tuple) else output + more

    last.register_forward_hook(used)
    assert blocks_before(lm, site) == ()
    start = SharedStart(lm, ())
    with start.first_pass():
        lm.logits(ids)
    assert torch.equal(start.logits(ids, {site: torch.zeros_like}), lm.logits(ids, {site: torch.zeros_like}))


def test_sites_outside_the_blocks_share_nothing() -> None:
    lm = tiny(llama)
    for name in ("model.norm", "model.embed_tokens", "blocks.0.hook_resid_pre", "blocks.0.hook_mlp_out"):
        assert blocks_before(lm, lm.site(name)) == ()


def test_blocks_run_again_after_an_error(ids: Tensor) -> None:
    lm = tiny(llama)
    site = lm.site("blocks.1.hook_resid_post")
    start = SharedStart(lm, blocks_before(lm, site))
    with start.first_pass(), torch.no_grad():
        clean = lm.logits(ids)

    def fail(_x: Tensor) -> None:
        raise KeyError

    with pytest.raises(KeyError):
        start.logits(ids, {site: fail})
    with torch.no_grad():
        assert torch.equal(lm.logits(ids), clean)


def test_a_forward_of_the_blocks_own_is_put_back() -> None:
    """accelerate sets one on each module of a model that is spread over devices."""
    lm = tiny(llama)
    block = blocks_of(lm)[0]
    own = block.forward
    block.forward = own
    assert len(blocks_before(lm, lm.site("blocks.1.hook_resid_pre"))) == 1
    assert vars(block)["forward"] is own
