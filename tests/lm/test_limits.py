"""Room for tokens and for long texts, by whatever name a model has it; and what every reader of text says about it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MptConfig,
    MptForCausalLM,
    PreTrainedTokenizerFast,
    RwkvConfig,
    RwkvForCausalLM,
)

from llama_cases import MakeConfig, byte_tokenizer
from lm_cases import COMMON, DEEP, VOCAB, bloom, gpt2, llama, one_line, opt, save, tiny, tokenizer
from saeforest.errors import InputError
from saeforest.judges.local import LocalJudge
from saeforest.lm import LanguageModel, load_lm
from saeforest.measures.first_letters import read_last
from saeforest.measures.pooled import read_texts
from saeforest.session import open_reader, read_tokens
from saeforest.training.dry_run import estimate


def llama_with(**settings: Any) -> LlamaForCausalLM:
    return LlamaForCausalLM(LlamaConfig(**(DEEP | settings)))


def mpt() -> MptForCausalLM:
    return MptForCausalLM(
        MptConfig(**COMMON, d_model=16, n_layers=2, n_heads=2, expansion_ratio=2, max_seq_len=64)
    )


def gemma3() -> Gemma3ForConditionalGeneration:
    text = DEEP | {"num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 64}
    vision: dict[str, Any] = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    vision |= {"image_size": 28, "patch_size": 14}
    return Gemma3ForConditionalGeneration(Gemma3Config(text_config=text, vision_config=vision))


def rwkv() -> RwkvForCausalLM:
    return RwkvForCausalLM(RwkvConfig(**COMMON, hidden_size=16, num_hidden_layers=2, context_length=64))


def mamba() -> MambaForCausalLM:
    return MambaForCausalLM(MambaConfig(**COMMON, hidden_size=16, num_hidden_layers=2, state_size=4))


@pytest.mark.parametrize(
    ("make", "longest"),
    [
        (gpt2, 32),
        (opt, 32),
        (mpt, 64),
        (gemma3, 64),
        (rwkv, 64),
        (mamba, None),
        (bloom, None),
        (lambda: llama_with(max_position_embeddings=64), 64),
        (lambda: llama_with(max_position_embeddings=64, rope_scaling={"rope_type": "linear", "factor": 4.0}), 256),
        (
            lambda: llama_with(
                max_position_embeddings=64,
                rope_scaling={"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
            ),
            128,
        ),
        (
            lambda: llama_with(
                max_position_embeddings=64,
                rope_scaling={
                    "rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 16,
                    "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                },
            ),
            64,
        ),
    ],
)  # fmt: skip
def test_the_longest_text(make: Any, longest: int | None) -> None:
    lm = tiny(make)
    assert lm.max_context == longest
    assert lm.vocab_size == VOCAB
    lm.check_context(longest or 10**9, "text.context")
    if longest is not None:
        lm.logits(torch.zeros(1, longest, dtype=torch.int32))
        with pytest.raises(InputError) as info:
            lm.check_context(longest + 1, "text.context")
        one_line(info, f"text.context = {longest + 1}: tiny can read at most {longest} tokens")
        with pytest.raises(InputError, match=f"a text of {longest + 1} tokens") as info:
            lm.token_losses(torch.zeros(1, longest + 1, dtype=torch.int32))
        one_line(info)


@pytest.mark.parametrize("name", ["n_positions", "n_ctx", "max_seq_len", "seq_length", "max_sequence_length"])
def test_other_names_in_a_configuration(name: str) -> None:
    model = tiny(mamba).model
    setattr(model.config, name, 48)
    assert LanguageModel("m", model, tokenizer(eos_token="</s>")).max_context == 48


@pytest.mark.parametrize("value", [0, -1, None, True, "512", 10**15, 4.5])
def test_values_that_are_no_limit(value: Any) -> None:
    model = tiny(mamba).model
    model.config.n_ctx = value
    assert LanguageModel("m", model, tokenizer(eos_token="</s>")).max_context is None


def test_learned_positions_say_it_where_the_configuration_does_not() -> None:
    lm = tiny(gpt2)
    lm.model.config.n_positions = 4096  # edited by somebody
    assert LanguageModel("m", lm.model, lm.tokenizer).max_context == 32


# Tokens without a row


def with_token(**added: str) -> PreTrainedTokenizerFast:
    made = tokenizer(unk_token="<unk>", eos_token="</s>", bos_token="<s>")
    made.add_special_tokens(added)  # pyright: ignore[reportArgumentType]
    return made


def test_an_eos_without_a_row_is_one_line_at_load(tmp_path: Path) -> None:
    folder = save(LanguageModel("m", tiny(llama).model, with_token(eos_token="<|im_end|>")), tmp_path)
    with pytest.raises(InputError) as info:
        load_lm(folder)
    one_line(info, f"token {VOCAB} ('<|im_end|>') has no row in its embedding of {VOCAB}")


def test_a_bos_without_a_row_is_one_line_at_load(tmp_path: Path) -> None:
    from tokenizers.processors import TemplateProcessing

    made = with_token(bos_token="<|start|>")
    backend: Any = made.backend_tokenizer
    backend.post_processor = TemplateProcessing(single="<|start|> $A", special_tokens=[("<|start|>", VOCAB)])
    folder = save(LanguageModel("m", tiny(llama).model, made), tmp_path)
    with pytest.raises(InputError, match=r"'<\|start\|>'"):
        load_lm(folder)


def test_a_pad_without_a_row_is_never_read(tmp_path: Path) -> None:
    folder = save(LanguageModel("m", tiny(llama).model, with_token(pad_token="<|pad|>")), tmp_path)
    lm = load_lm(folder)
    assert len(lm.tokenizer) == VOCAB + 1
    lm.check_ids(torch.arange(VOCAB))
    for ids in (torch.tensor([[VOCAB]]), torch.tensor([[-1, 2]])):
        with pytest.raises(InputError, match="has no row") as info:
            lm.logits(ids)
        one_line(info)


# Every reader of text


@pytest.fixture(scope="module")
def short(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shared tiny model with room for 64 positions, and a pad token without a row."""
    import shutil

    folder = Path(shutil.copytree(tiny_model, tmp_path_factory.mktemp("short") / "m"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 64}))
    made = byte_tokenizer()
    made.add_special_tokens({"pad_token": "<|pad|>"})
    made.save_pretrained(folder)
    return folder


def test_windows_that_are_too_long(short: Path, tiny_config: MakeConfig) -> None:
    with pytest.raises(InputError, match=r"^text\.context = 65: .* can read at most 64 tokens; give fewer$"):
        open_reader(tiny_config(model=str(short), text={"context": 65}))


def test_prompts_of_absorption(short: Path, tiny_config: MakeConfig) -> None:
    reader = open_reader(tiny_config(model=str(short)))
    read_last(reader.lm, reader.site, ["a" * 64], 4)
    with pytest.raises(
        InputError, match=r"^absorption: prompts of up to 65 tokens, .*absorption\.icl"
    ) as info:
        read_last(reader.lm, reader.site, ["a" * 64], 4, bos_id=0)
    one_line(info)


def test_labeled_texts(short: Path, tiny_config: MakeConfig) -> None:
    from saeforest.measures.sparse_probing import SparseProbingConfig

    reader = open_reader(tiny_config(model=str(short)))
    with pytest.raises(
        InputError, match=r"sparse_probing\.texts\.context.* = 128: .* can read at most 64 tokens"
    ):
        read_texts(reader, SparseProbingConfig().texts)


def test_questions_of_a_local_judge(short: Path) -> None:
    judge = LocalJudge(load_lm(str(short)))
    with pytest.raises(InputError, match="exceed the model's context of 64 tokens"):
        judge.ask("a" * 60, "b" * 10, max_tokens=4)


def test_the_dry_run_feeds_only_tokens_with_a_row(short: Path, tiny_config: MakeConfig) -> None:
    """16 windows of 32 tokens go through all ids of the vocabulary, which has one more than the model."""
    assert estimate(tiny_config(model=str(short))).n_steps > 0


def test_text_with_tokens_beyond_the_rows_is_refused_before_it_is_read(
    short: Path, tiny_config: MakeConfig, tmp_path: Path
) -> None:
    made = byte_tokenizer()
    made.add_tokens(["<think>"])
    for file in short.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    made.save_pretrained(tmp_path)
    (tmp_path / "text.txt").write_text("hm <think> well. " * 200)
    config = tiny_config(model=str(tmp_path), data=str(tmp_path / "text.txt"), text={"held_out": 0.01})
    reader = open_reader(config)
    with pytest.raises(InputError, match=r"token 257 \('<think>'\) has no row"):
        read_tokens(config, reader, "train", 512)
