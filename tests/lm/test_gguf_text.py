"""GGUF files: how their text is split, by all names that are known; what is unpacked is what the file holds."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from lm_cases import one_line
from saeforest.errors import InputError
from saeforest.lm import gguf as gguf_module
from saeforest.lm import load_lm
from saeforest.lm.gguf_splits import BOS, PATTERNS, pre_tokenizer

HEADS, KV_HEADS, BLOCKS = 4, 2, 2
PARTS = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


@pytest.fixture(scope="module")
def vocabulary() -> dict[str, Any]:
    """A byte-level vocabulary with some merges of words and digits, and two special tokens."""
    made: Any = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer: Any = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<|begin|>", "<|end|>"],
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    made.train_from_iterator(["the cat sat on the mat 12345 1234 123 12"] * 3, trainer)
    return json.loads(made.to_str())["model"]


@pytest.fixture(scope="module")
def llama(vocabulary: dict[str, Any]) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=len(vocabulary["vocab"]),
        hidden_size=32,
        num_hidden_layers=BLOCKS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        intermediate_size=48,
        max_position_embeddings=256,
        bos_token_id=0,
        eos_token_id=1,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.15)
    return model


def interleaved(weight: Tensor, heads: int) -> Tensor:
    """Rotary dimensions in the order of the format."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def write(
    path: Path, model: LlamaForCausalLM, vocabulary: dict[str, Any], pre: str | None, bos: bool | None = None
) -> str:
    w = gguf.GGUFWriter(path, "llama")
    w.add_context_length(256)
    w.add_embedding_length(32)
    w.add_block_count(BLOCKS)
    w.add_feed_forward_length(48)
    w.add_head_count(HEADS)
    w.add_head_count_kv(KV_HEADS)
    w.add_layer_norm_rms_eps(model.config.rms_norm_eps)
    w.add_rope_freq_base(10000.0)
    tokens = sorted(vocabulary["vocab"], key=vocabulary["vocab"].get)
    w.add_vocab_size(len(tokens))
    w.add_tokenizer_model("gpt2")
    if pre is not None:
        w.add_tokenizer_pre(pre)
    if bos is not None:
        w.add_add_bos_token(bos)
    w.add_token_list(tokens)
    w.add_token_types([3 if token.startswith("<|") else 1 for token in tokens])
    w.add_token_merges([" ".join(merge) for merge in vocabulary["merges"]])
    w.add_bos_token_id(0)
    w.add_eos_token_id(1)
    weights = model.state_dict()

    def add(name: str, tensor: Tensor) -> None:
        w.add_tensor(name, np.ascontiguousarray(tensor.numpy()))

    add("token_embd.weight", weights["model.embed_tokens.weight"])
    add("output_norm.weight", weights["model.norm.weight"])
    add("output.weight", weights["lm_head.weight"])
    for i in range(BLOCKS):
        for ours, theirs in PARTS.items():
            weight = weights[f"model.layers.{i}.{ours}.weight"]
            if theirs in ("attn_q", "attn_k"):
                weight = interleaved(weight, HEADS if theirs == "attn_q" else KV_HEADS)
            add(f"blk.{i}.{theirs}.weight", weight)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    return str(path)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SAEFOREST_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "models"


MEANT = {  # how 1234567 is split
    "smollm": "1|2|3|4|5|6|7",
    "deepseek-llm": "1234567",
    "deepseek-v3": "123|456|7",
    "llama-bpe": "123|456|7",
    "tiny_aya": "1|234|567",
}


@pytest.mark.parametrize("pre", MEANT)
def test_a_file_is_read_as_it_says(
    pre: str, tmp_path: Path, llama: LlamaForCausalLM, vocabulary: dict[str, Any]
) -> None:
    path = write(tmp_path / "m.gguf", llama, vocabulary, pre)
    ids = torch.arange(20)[None]
    for _ in range(2):  # unpacked, and out of the cache
        lm = load_lm(path)
        torch.testing.assert_close(lm.logits(ids), llama(input_ids=ids).logits)
        splitter: Any = lm.tokenizer.backend_tokenizer  # pyright: ignore[reportAttributeAccessIssue]
        pieces = [piece for piece, _ in splitter.pre_tokenizer.pre_tokenize_str("1234567")]
        assert "|".join(pieces) == MEANT[pre]
        assert len(lm.tokenizer) == lm.model.config.vocab_size == len(vocabulary["vocab"])
        assert (lm.tokenizer.bos_token_id, lm.eos_id) == (0, 1)
        assert (lm.tokenizer("the")["input_ids"][0] == 0) == (pre in BOS)


@pytest.mark.parametrize("pre", ["llama-bpe", "gpt-2"])
@pytest.mark.parametrize("bos", [True, False])
def test_the_flag_for_bos_is_obeyed(
    pre: str, bos: bool, tmp_path: Path, llama: LlamaForCausalLM, vocabulary: dict[str, Any]
) -> None:
    tokenizer = load_lm(write(tmp_path / "m.gguf", llama, vocabulary, pre, bos)).tokenizer
    assert (tokenizer("the")["input_ids"][0] == 0) == bos


@pytest.mark.parametrize("pre", ["of tomorrow", "whitespace", "gemma4"])
def test_an_unknown_name_is_refused(
    pre: str, tmp_path: Path, llama: LlamaForCausalLM, vocabulary: dict[str, Any], cache: Path
) -> None:
    path = write(tmp_path / "m.gguf", llama, vocabulary, pre)
    with pytest.raises(InputError) as info:
        load_lm(path)
    one_line(info, f"model {path!r}", f"{pre!r} (tokenizer.ggml.pre)")
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize("pre", [None, ""])
def test_no_name_is_said(
    pre: str | None,
    tmp_path: Path,
    llama: LlamaForCausalLM,
    vocabulary: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
) -> None:
    load_lm(write(tmp_path / "m.gguf", llama, vocabulary, pre))
    assert "does not say how text is pre-tokenized" in capsys.readouterr().err


def test_all_names_split_and_lose_nothing() -> None:
    text = "Hello world's  12345678 été 北京市ラーメン 한국어 😀\n\n  x = [1,2]\t// foo\r\n   "
    alphabet: Any = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    whole = alphabet.pre_tokenize_str(text)[0][0]
    assert len(PATTERNS) >= 85
    for name in PATTERNS:
        assert "".join(piece for piece, _ in pre_tokenizer(name).pre_tokenize_str(text)) == whole, name


@pytest.mark.parametrize(
    ("names", "text", "pieces"),
    [
        (["gpt-2", "olmo", "exaone4"], "it's 2023, I'LL", "it|'s| 2023|,| I|'|LL"),
        (["falcon"], "a 12345$=b", "a| |123|45|$=|b"),
        (["qwen2", "stablelm2", "hunyuan", "grok-2"], "x 2023's", "x| |2|0|2|3|'s"),
        (["tekken"], "HelloWorld 12", "Hello|World| |1|2"),
        (["gpt-4o", "minimax-m2"], "HelloWorld's 1234", "Hello|World's| |123|4"),
        (["deepseek-coder"], "ab 12, c", "ab| |1|2|,| c"),
        (["deepseek-llm"], "ab 123, c\nd", "ab| |123|,| c|\n|d"),
        (["deepseek-v3", "hunyuan-dense"], "x12345 漢字かな abc", "x|123|45| |漢字かな| abc"),
        (["bloom", "poro-chat"], "a b, 12.", "a| b|,| 12|."),
        (["viking"], "a 12", "a| |1|2"),
        (["superbpe"], "of the 1234567", "of the |1|234|567"),
        (["kimi-k2"], "漢字abc 1234", "漢字|abc| |123|4"),
        (["afmoe"], "1234567 123456 12", "1|234|567| |123|456| |12"),
        (["seed-coder"], "a!!\nb", "a|!!|\n|b"),
        (["bailingmoe"], "a'S \n\nb", "a|'S| \n\n|b"),
        (["ufakzeka"], "it's", "it|'s"),
        (["exaone-moe"], "ab cd 1", "ab cd| |1"),
        (["minicpm5"], "ab 12345", "ab| |123|45"),
        (["laguna"], "ab\n\n12", "ab|\n\n|1|2"),
        (["jais-2"], "a     b", "a|    | b"),
        (["chameleon"], "a  b1.", "a|  |b|1|."),
        (["default"], "a 1234!", "a| |123|4|!"),
    ],
)
def test_how_the_names_split(names: list[str], text: str, pieces: str) -> None:
    alphabet: Any = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    expected = [alphabet.pre_tokenize_str(piece)[0][0] for piece in pieces.split("|")]
    for name in names:
        assert [piece for piece, _ in pre_tokenizer(name).pre_tokenize_str(text)] == expected, name


# The unpacked copy


def flipped(file: Path) -> None:
    """One bit of the last weight."""
    data = bytearray(file.read_bytes())
    data[-3] ^= 0x10
    file.write_bytes(data)


@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json", "config.json", "saeforest.json"])
def test_a_damaged_copy_is_noticed_and_made_anew(
    file: str, tmp_path: Path, llama: LlamaForCausalLM, vocabulary: dict[str, Any], cache: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    path = write(tmp_path / "m.gguf", llama, vocabulary, "gpt-2")
    load_lm(path)
    (copy,) = cache.iterdir()
    before = {part.name: part.read_bytes() for part in copy.iterdir()}
    flipped(copy / file)
    capsys.readouterr()
    lm = load_lm(path)
    assert f"{file} in the unpacked copy of m.gguf is damaged; unpacking again" in capsys.readouterr().err
    ids = torch.arange(20)[None]
    torch.testing.assert_close(lm.logits(ids), llama(input_ids=ids).logits)
    assert {part.name: part.read_bytes() for part in copy.iterdir()} == before
    load_lm(path)
    assert capsys.readouterr().err == ""


def test_leftovers_of_killed_processes_go(
    tmp_path: Path, llama: LlamaForCausalLM, vocabulary: dict[str, Any], cache: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    path = write(tmp_path / "m.gguf", llama, vocabulary, "gpt-2")
    pid = os.fork()
    if pid == 0:  # is killed while it unpacks
        monkeypatch.setattr(gguf_module, "checksum", lambda _: os.kill(os.getpid(), 9))
        load_lm(path)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 9
    assert [p.name.startswith(".saeforest-") for p in cache.iterdir()] == [True]
    (cache / ".partial-old").mkdir()  # of version 0.1
    past = time.time() - 7200
    os.utime(cache / ".partial-old", (past, past))
    (cache / ".partial-new").mkdir()  # may be in use
    load_lm(path)
    assert sorted(p.name[:3] for p in cache.iterdir()) == [".pa", "m-" + next(cache.glob("m-*")).name[2]]
    shutil.rmtree(cache)


def test_without_a_home_the_file_itself_is_read(
    tmp_path: Path, llama: LlamaForCausalLM, vocabulary: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "m.gguf", llama, vocabulary, "gpt-2")
    monkeypatch.delenv("SAEFOREST_CACHE")
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda _: {}[0])  # no entry for this user
    monkeypatch.chdir(tmp_path)
    load_lm(path)
    assert [p.name for p in tmp_path.iterdir()] == ["m.gguf"]
