"""Sites of language models: against values taken elsewhere, early stop, hooks, and errors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lm_cases import (
    ARCHITECTURES,
    LAYERS,
    VOCAB,
    WIDTH,
    bloom,
    gemma2,
    get,
    gpt2,
    llama,
    n_hooks,
    neox,
    one_line,
    opt,
    tiny,
    tokenizer,
)
from saeforest.errors import InputError
from saeforest.lm import LanguageModel, Site


@pytest.fixture(params=ARCHITECTURES, ids=lambda make: make.__name__)
def lm(request: pytest.FixtureRequest) -> LanguageModel:
    return tiny(request.param)


@pytest.fixture
def ids() -> Tensor:
    return torch.randint(0, VOCAB, (2, 7), generator=torch.Generator().manual_seed(1))


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
            get(lm, ids, f"blocks.{i}.hook_{hook}")
            for hook in ("resid_pre", "attn_out", "mlp_out", "resid_post")
        )
        assert min(attn.abs().max(), mlp.abs().max()) > 1e-3
        torch.testing.assert_close(pre + attn + mlp, post)


def test_module_paths_give_the_module_output_or_its_first_element(ids: Tensor) -> None:
    lm = tiny(llama)
    for path, hook in (("mlp", "mlp_out"), ("self_attn", "attn_out")):
        site = lm.site(f"model.layers.1.{path}")
        assert site == Site(f"model.layers.1.{path}", f"model.layers.1.{path}", "output")
        expected = get(lm, ids, f"blocks.1.hook_{hook}")
        torch.testing.assert_close(lm.activations(ids, site), expected, rtol=0, atol=0)


def test_inputs_of_modules(ids: Tensor) -> None:
    """What a module makes of the activation at its input is the activation at its output."""
    lm = tiny(llama)
    for hook, path in (
        ("ln2.hook_normalized", "model.layers.1.mlp"),
        ("attn.hook_z", "model.layers.1.self_attn.o_proj"),
    ):
        x = get(lm, ids, f"blocks.1.{hook}")
        assert torch.equal(get(lm, ids, f"{path}:input"), x)
        assert torch.equal(lm.model.get_submodule(path)(x), get(lm, ids, path))
    assert torch.equal(get(lm, ids, "model.layers.1.self_attn"), get(lm, ids, "blocks.1.hook_attn_out"))
    norm = lm.model.get_submodule("model.layers.1.post_attention_layernorm")
    assert torch.equal(
        norm(get(lm, ids, "blocks.1.hook_resid_mid")), get(lm, ids, "blocks.1.ln2.hook_normalized")
    )


@pytest.mark.parametrize("make", [llama, gpt2, gemma2, bloom, opt])
def test_what_replaces_resid_mid_goes_around_the_mlp_too(make: Any, ids: Tensor) -> None:
    """To add to the stream behind the attention is to add to what the attention writes."""
    lm = tiny(make)
    add = torch.randn(WIDTH, generator=torch.Generator().manual_seed(0))
    mid, attn, post = (lm.site(f"blocks.1.hook_{hook}") for hook in ("resid_mid", "attn_out", "resid_post"))
    at_mid, at_attn = (lm.logits(ids, {site: lambda x: x + add}) for site in (mid, attn))
    torch.testing.assert_close(at_mid, at_attn)
    # A function at the output of the block sees the change, whatever the order in which the two were given.
    seen = []
    with lm.hooked({post: seen.append}), lm.hooked({mid: lambda x: x + add}):
        torch.testing.assert_close(lm.logits(ids), at_mid)
    with lm.hooked({mid: lambda x: x + add}):
        torch.testing.assert_close(lm.activations(ids, post), seen[0])


def test_parallel_blocks_have_no_resid_mid() -> None:
    with pytest.raises(InputError) as info:
        tiny(neox).site("blocks.1.hook_resid_mid")
    one_line(info, "site 'blocks.1.hook_resid_mid': ", "in parallel", "choose resid_pre or resid_post")


def test_post_attention_norm_of_llama_is_not_its_attention_output() -> None:
    assert tiny(llama).site("blocks.0.hook_attn_out").module_path == "model.layers.0.self_attn"
    assert tiny(gemma2).site("blocks.0.hook_attn_out").module_path.endswith("post_attention_layernorm")


def test_site_width(lm: LanguageModel) -> None:
    assert lm.site_width(lm.site("blocks.0.hook_mlp_out")) == WIDTH
    assert tiny(llama).site_width(Site("gate", "model.layers.0.mlp.gate_proj", "output")) == 24


def test_properties(lm: LanguageModel) -> None:
    assert (lm.n_layers, lm.eos_id, lm.device.type, lm.dtype) == (LAYERS, 2, "cpu", torch.float32)
    assert lm.special_ids.tolist() == [0, 1, 2]


@pytest.mark.parametrize("special", [{"bos_token": "<s>"}, {"sep_token": "<s>"}, {"pad_token": "<s>"}])
def test_eos_falls_back(special: dict[str, str]) -> None:
    lm = LanguageModel("tiny", llama(), tokenizer(**special))
    assert lm.eos_id == 1
    assert lm.special_ids.tolist() == [1]


def test_tokenizer_without_special_tokens_is_refused() -> None:
    with pytest.raises(InputError, match=r"^model 'tiny': its tokenizer has no eos"):
        _ = LanguageModel("tiny", llama(), tokenizer()).eos_id


# Early stop and hooks


class Computed(Exception):
    pass


def forbid(module: torch.nn.Module) -> None:
    def forward(*_: Any, **__: Any) -> None:
        raise Computed

    module.forward = forward


@pytest.mark.parametrize("make", [llama, gpt2, neox])
@pytest.mark.parametrize("hook", ["resid_pre", "resid_post"])
def test_nothing_behind_the_site_is_computed(make: Any, hook: str, ids: Tensor) -> None:
    lm = tiny(make)
    site = lm.site(f"blocks.1.hook_{hook}")
    before = lm.activations(ids, site)
    blocks: Any = lm.model.get_submodule(site.module_path.rsplit(".", 1)[0])
    forbid(blocks[1] if hook == "resid_pre" else blocks[2])
    assert torch.equal(lm.activations(ids, site), before)
    with pytest.raises(Computed):  # what is forbidden would have been computed otherwise
        lm.token_losses(ids)


def test_activations_carry_no_gradient(lm: LanguageModel, ids: Tensor) -> None:
    lm.model.requires_grad_(True)
    assert not get(lm, ids, "blocks.1.hook_resid_post").requires_grad


def test_hooks_are_always_removed(lm: LanguageModel, ids: Tensor) -> None:
    assert n_hooks(lm) == 0

    def fail(_: Tensor) -> Tensor:
        raise Computed

    for hook in ("resid_pre", "resid_post"):
        site = lm.site(f"blocks.1.hook_{hook}")
        lm.activations(ids, site)
        lm.token_losses(ids, {site: torch.zeros_like})
        with pytest.raises(Computed):
            lm.token_losses(ids, {site: fail})
    forbid(lm.model.get_submodule(lm.site("blocks.0.hook_resid_pre").module_path))
    with pytest.raises(Computed):
        lm.activations(ids, lm.site("blocks.1.hook_resid_post"))
    assert n_hooks(lm) == 0


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("blocks.3.hook_resid_post", ["block 3 is out of range", "0..2"]),
        ("blocks.1.hook_resid_pots", ["did you mean blocks.1.hook_resid_post", "0..2", "resid_pre"]),
        ("model.layers.1.mpl", ["did you mean", "model.layers.1.mlp", "blocks.I.H"]),
        ("blocks.1.hook_mlp_in", ["did you mean blocks.1.", "mlp.hook_in"]),
        ("model.layers.1.mpl:input", ["no such hook or module", "model.layers.0.mlp:input"]),
        ("", ["no such hook or module", "a module path such as model.layers.0.mlp"]),
    ],
)
def test_unknown_sites(name: str, parts: list[str]) -> None:
    with pytest.raises(InputError) as info:
        tiny(llama).site(name)
    one_line(info, f"site {name!r}: ", *parts)


def test_block_without_a_known_part() -> None:
    lm = tiny(llama)
    layers: Any = lm.model.get_submodule("model.layers")
    layers[0].unusual = layers[0].mlp
    del layers[0].mlp
    with pytest.raises(InputError) as info:
        lm.site("blocks.0.hook_mlp_out")
    one_line(info, "has no module known for this hook", "model.layers.0.unusual")


@pytest.mark.parametrize(
    ("path", "part"),
    [
        ("model.rotary_emb", "float32 [1, 3, 8]"),
        ("model", "BaseModelOutputWithPast"),
        ("model.layers", "is not used in the forward pass"),
    ],
)
def test_sites_without_an_activation(path: str, part: str, ids: Tensor) -> None:
    lm = tiny(llama)
    with pytest.raises(InputError) as info:
        lm.site_width(lm.site(path))
    one_line(info, f"site {path!r}: ", part)
    assert n_hooks(lm) == 0
    with pytest.raises(InputError, match="site"):
        lm.token_losses(ids, {lm.site(path): torch.clone})
