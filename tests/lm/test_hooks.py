"""Functions at several sites at once, in plain passes, with gradients, and while text is generated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from lm_cases import ARCHITECTURES, LAYERS, VOCAB, WIDTH, get, llama, n_hooks, one_line, opt, tiny
from saeforest.errors import InputError
from saeforest.lm import LanguageModel

POSTS = [f"blocks.{i}.hook_resid_post" for i in range(LAYERS)]


@pytest.fixture(params=ARCHITECTURES, ids=lambda make: make.__name__)
def lm(request: pytest.FixtureRequest) -> LanguageModel:
    return tiny(request.param)


@pytest.fixture
def ids() -> Tensor:
    return torch.randint(0, VOCAB, (2, 7), generator=torch.Generator().manual_seed(1))


def nothing(x: Tensor) -> None:
    del x


def adding(direction: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda x: x + direction


def test_several_sites_at_once(lm: LanguageModel, ids: Tensor) -> None:
    """What is added at two sites at once is what is added at one in a pass and at the other in the next."""
    first, last = torch.randn(2, WIDTH, generator=torch.Generator().manual_seed(0))
    stream = get(lm, ids, POSTS[0])
    expected = lm.logits(ids, {POSTS[0]: lambda _: stream + first, POSTS[1]: adding(last)})
    with lm.hooked({POSTS[0]: adding(first), lm.site(POSTS[1]): adding(last)}):
        found = lm.logits(ids)
    torch.testing.assert_close(found, expected)
    with lm.hooked({POSTS[0]: adding(first)}), lm.hooked({POSTS[1]: adding(last)}):
        assert torch.equal(lm.logits(ids), found)
    assert not torch.allclose(found, lm.logits(ids))
    assert n_hooks(lm) == 0


def test_none_leaves_the_activation(lm: LanguageModel, ids: Tensor) -> None:
    clean = lm.logits(ids)
    assert torch.equal(lm.logits(ids, dict.fromkeys(["blocks.1.hook_mlp_out", *POSTS], nothing)), clean)


def test_several_sites_are_read_in_one_pass(lm: LanguageModel, ids: Tensor) -> None:
    names = ["blocks.1.hook_resid_post", "blocks.0.hook_resid_pre", "blocks.1.hook_mlp_out"]
    passes = []
    with lm.model.register_forward_pre_hook(lambda *_: passes.append(1)):
        found = lm.activations(ids, [lm.site(name) for name in names])
    assert len(passes) == 1
    assert set(found) == set(names)
    for name in names:
        assert torch.equal(found[name], lm.activations(ids, name))


def test_nothing_behind_the_last_of_several_sites_is_computed(ids: Tensor) -> None:
    lm, reached = tiny(llama), []
    for i in range(LAYERS):
        block = lm.model.get_submodule(f"model.layers.{i}")
        block.register_forward_pre_hook(lambda *_, i=i: reached.append(i))
    lm.activations(ids, [lm.site(POSTS[1]), lm.site(POSTS[0])])
    assert reached == [0, 1]


def test_gradients_reach_what_a_function_adds(lm: LanguageModel, ids: Tensor) -> None:
    """Against finite differences; some norms compute in single precision whatever the model's."""
    lm.model.double()
    direction = torch.zeros(WIDTH, dtype=torch.float64, requires_grad=True)

    def loss(direction: Tensor) -> Tensor:
        return lm.logits(ids, {POSTS[0]: adding(direction)}).square().mean()

    assert torch.autograd.gradcheck(loss, (direction,), eps=1e-3, atol=1e-4)


@pytest.mark.parametrize("path", ["model.rotary_emb", "model.layers"])
def test_a_site_that_is_never_reached_is_an_error(path: str, ids: Tensor) -> None:
    lm = tiny(llama)
    with pytest.raises(InputError) as info, lm.hooked({POSTS[0]: nothing, path: nothing}):
        lm.logits(ids)
    one_line(info, f"site {path!r}: ")
    assert n_hooks(lm) == 0
    with lm.hooked({"model.layers": nothing}):  # nor was there any pass
        pass


# Generation


@pytest.mark.parametrize("use_cache", [True, False])
def test_a_function_that_changes_nothing_changes_no_token(
    lm: LanguageModel, ids: Tensor, use_cache: bool
) -> None:
    plain = lm.generate(ids, 6, use_cache=use_cache)
    assert plain.shape[0] == 2
    assert 1 <= plain.shape[1] <= 6
    seen: list[tuple[int, ...]] = []
    for change in (torch.clone, nothing):
        seen.clear()

        def watched(x: Tensor, change: Any = change) -> Tensor | None:
            seen.append(tuple(x.shape))
            return change(x)

        with lm.hooked({POSTS[1]: watched}):
            assert torch.equal(lm.generate(ids, 6, use_cache=use_cache), plain)
        steps = range(1, plain.shape[1])
        later = [(2, 1, WIDTH) for _ in steps] if use_cache else [(2, 7 + i, WIDTH) for i in steps]
        assert seen == [(2, 7, WIDTH), *later]


def test_generation_is_greedy(lm: LanguageModel, ids: Tensor) -> None:
    text = ids[:1]
    for token in lm.generate(text, 5)[0]:
        assert token == lm.logits(text)[0, -1].argmax()
        text = torch.cat([text, token[None, None]], 1)


def test_steering_changes_what_is_generated(lm: LanguageModel, ids: Tensor) -> None:
    """The stream behind the last block becomes the one that speaks for one token, at every step."""
    wanted = 5
    head: Any = lm.model.get_output_embeddings()
    push = adding(1000 * head.weight[wanted].detach())
    for use_cache in (True, False):
        with lm.hooked({POSTS[-1]: push}):
            steered = lm.generate(ids, 4, use_cache=use_cache)
            expected = lm.logits(ids)[:, -1].argmax(-1)
        assert torch.equal(steered[:, 0], expected)
        assert not torch.equal(steered, lm.generate(ids, 4, use_cache=use_cache))


def test_what_is_drawn_depends_on_the_seed(ids: Tensor) -> None:
    lm = tiny(opt)
    before = torch.get_rng_state()
    drawn = [lm.generate(ids, 8, temperature=5.0, seed=seed).tolist() for seed in (0, 0, 1, 2)]
    assert torch.equal(torch.get_rng_state(), before)
    assert drawn[0] == drawn[1]
    assert len({str(tokens) for tokens in drawn}) > 1


def test_a_text_is_continued_with_text() -> None:
    lm = tiny(llama)
    ids = torch.tensor([lm.tokenizer("the cat sat")["input_ids"]])
    continued = lm.generate("the cat sat", 5)
    assert continued == lm.tokenizer.decode(lm.generate(ids, 5)[0], skip_special_tokens=True)


@pytest.mark.parametrize(
    ("prompt", "settings", "part"),
    [
        ("", {}, "a prompt of at least one token"),
        ("the", {"n_tokens": 0}, "n_tokens of 1 or more"),
        ("the", {"temperature": -1.0}, "temperature = -1.0"),
        ("the", {"n_tokens": 10_000}, "can read at most"),
    ],
)
def test_what_generate_refuses(prompt: str, settings: Any, part: str) -> None:
    with pytest.raises(InputError) as info:
        tiny(llama).generate(prompt, **{"n_tokens": 3, **settings})
    one_line(info, part)
