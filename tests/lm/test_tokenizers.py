"""Tokenizers: ids are those of tokenizer.json, whatever transformers makes of the folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from lm_cases import llama, neox, one_line, save, tiny
from saeforest.errors import InputError
from saeforest.lm import LanguageModel, load_lm, load_tokenizer
from saeforest.lm.tokenizer import SAMPLES, difference, read_tokenizer

TEXTS = [*SAMPLES[:-1], *(f"In {y} there were {y * 7} of {y * 13}" for y in range(1000, 1400))]
THREES = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"  # as Llama 3 splits
NUMBERS = "In 2023 we wrote 650841823 lines."


def in_threes() -> Tokenizer:
    """A byte-level vocabulary that takes digits in threes."""
    made: Any = Tokenizer(models.BPE(ignore_merges=True))
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(THREES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    made.decoder = decoders.ByteLevel()
    trainer: Any = trainers.BpeTrainer(
        vocab_size=900,
        special_tokens=["<|end|>"],
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    made.train_from_iterator(TEXTS, trainer)
    return made


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama of 13 rows with a tokenizer of 900 tokens: only read_tokenizer reads it."""
    folder = tmp_path_factory.mktemp("tokenizer") / "m"
    ends = {"bos_token": "<|end|>", "eos_token": "<|end|>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=in_threes(), **ends)
    save(LanguageModel("tiny", llama(), tokenizer), folder)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "m"))


def settings(folder: Path, file: str = "tokenizer_config.json", **changes: Any) -> None:
    data = json.loads((folder / file).read_text())
    data.pop("backend", None)
    data.update(changes)
    (folder / file).write_text(json.dumps({k: v for k, v in data.items() if v is not None}))


CLASSES = [
    *("GPT2Tokenizer", "Qwen2Tokenizer", "GPTNeoXTokenizer", "CodeGenTokenizer", "LlamaTokenizer"),
    *("LlamaTokenizerFast", "PreTrainedTokenizerFast", "GemmaTokenizer", "NoSuchTokenizer", None),
]


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "qwen2", "deepseek_v3"])
@pytest.mark.parametrize("name", CLASSES)
def test_ids_are_those_of_the_file_whatever_the_class(
    name: str | None, model_type: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings(folder, tokenizer_class=name)
    settings(folder, "config.json", model_type=model_type)
    right = Tokenizer.from_file(str(folder / "tokenizer.json"))
    found = read_tokenizer(folder)
    assert found.tokenize(NUMBERS) == right.encode(NUMBERS).tokens
    assert difference(found, right) is None
    assert (found.eos_token, found.bos_token) == ("<|end|>", "<|end|>")
    assert capsys.readouterr().err.count("\n") <= 1


def test_a_line_says_that_the_file_is_read(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    read_tokenizer(folder)
    assert capsys.readouterr().err == ""
    settings(folder, tokenizer_class="GPT2Tokenizer")
    read_tokenizer(folder)
    assert "GPT2Tokenizer splits text differently from tokenizer.json" in capsys.readouterr().err
    assert load_tokenizer(str(folder)).tokenize(NUMBERS) == read_tokenizer(folder).tokenize(NUMBERS)


def test_the_template_and_the_special_tokens_stay(folder: Path) -> None:
    template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    settings(folder, tokenizer_class="GPT2Tokenizer", chat_template=template)
    found = read_tokenizer(folder)
    assert found.chat_template == template
    assert found.all_special_ids == [0]
    assert found("a <|end|> b", split_special_tokens=False)["input_ids"].count(0) == 1
    assert 0 not in found("a <|end|> b", split_special_tokens=True)["input_ids"]


def added(**flags: Any) -> Callable[[Tokenizer], None]:
    def change(tokenizer: Tokenizer) -> None:
        from tokenizers import AddedToken

        tokenizer.add_tokens([AddedToken("<think>", **flags), AddedToken("  ", normalized=False)])

    return change


@pytest.mark.parametrize(
    "change",
    [
        added(),
        added(lstrip=True),
        added(rstrip=True, normalized=False),
        added(single_word=True),
        lambda tokenizer: tokenizer.enable_truncation(4),
        lambda tokenizer: tokenizer.enable_padding(length=32),
    ],
)
@pytest.mark.parametrize("name", ["PreTrainedTokenizerFast", "Qwen2Tokenizer"])
def test_added_tokens_truncation_and_padding(name: str, change: Any, folder: Path) -> None:
    raw = Tokenizer.from_file(str(folder / "tokenizer.json"))
    change(raw)
    raw.save(str(folder / "tokenizer.json"))
    settings(folder, tokenizer_class=name)
    raw.no_truncation()
    raw.no_padding()
    found = read_tokenizer(folder)
    for text in ("a <think> b", "a<think>b", "x   y", NUMBERS):
        assert found(text, add_special_tokens=False)["input_ids"] == raw.encode(text).ids, text


@pytest.mark.parametrize("stated", [None, True, False])
@pytest.mark.parametrize("name", ["PreTrainedTokenizerFast", "LlamaTokenizer", "GPT2Tokenizer"])
def test_bos_of_the_file_stays(name: str, stated: bool | None, folder: Path) -> None:
    raw: Any = Tokenizer.from_file(str(folder / "tokenizer.json"))
    raw.post_processor = processors.TemplateProcessing(single="<|end|> $A", special_tokens=[("<|end|>", 0)])
    raw.save(str(folder / "tokenizer.json"))
    settings(folder, tokenizer_class=name, add_bos_token=stated)
    plain = raw.encode(NUMBERS, add_special_tokens=False).ids
    found = read_tokenizer(folder)
    assert found(NUMBERS, add_special_tokens=False)["input_ids"] == plain
    if stated is not False:
        assert found(NUMBERS)["input_ids"] == [0, *plain]


# Files that are missing or damaged


def no_file(folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        (folder / name).unlink(missing_ok=True)


def only_settings(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def damaged(folder: Path) -> None:
    (folder / "tokenizer.json").write_text('{"version": "1.0"')


def another_file(folder: Path) -> None:
    (folder / "tokenizer.json").write_text('{"hello": 1}')


def no_words(folder: Path) -> None:
    data = json.loads((folder / "tokenizer.json").read_text())
    data["model"] |= {"vocab": {"<|end|>": 0}, "merges": []}
    (folder / "tokenizer.json").write_text(json.dumps(data))


def sentencepiece(folder: Path) -> None:
    (folder / "tokenizer.json").rename(folder / "tokenizer.model")


@pytest.mark.parametrize("damage", [no_file, only_settings, damaged, another_file, no_words, sentencepiece])
@pytest.mark.parametrize(
    "name", ["llama", "gpt2", "gemma2", "qwen2", "gpt_neox", "phi3", "mamba", "bloom", "opt"]
)
def test_missing_or_damaged_files_are_one_line(damage: Any, name: str, folder: Path) -> None:
    settings(folder, "config.json", model_type=name)
    damage(folder)
    for load in (load_lm, load_tokenizer):
        with pytest.raises(InputError) as info:
            load(str(folder))
        one_line(info, f"model {str(folder)!r}: ", "tokenizer")
        assert len(str(info.value)) < 900
        assert not str(info.value).rstrip().endswith("one of:")


def test_a_slow_tokenizer_without_files_is_read(tmp_path: Path) -> None:
    """ByT5's tokenizer knows its bytes by itself."""
    save(tiny(neox), tmp_path)
    no_file(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "ByT5Tokenizer"}')
    assert read_tokenizer(tmp_path)("abc", add_special_tokens=False)["input_ids"] == [100, 101, 102]
