"""First letters and their absorption: slow float64 arithmetic, the specification's vectors, and a world in which the
absorption is known."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tokenizers.processors import TemplateProcessing
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from llama_cases import EOS, byte_tokenizer
from saeforest.activations import ActivationReader
from saeforest.errors import InputError
from saeforest.evaluation.supplies import Shared
from saeforest.lm import LanguageModel
from saeforest.measures.absorption import (
    AbsorptionConfig,
    absorption,
    encode_words,
)
from saeforest.measures.first_letters import (
    LETTERS,
    FirstLetterConfig,
    draw,
    first_letters,
    letters_of,
    prompts,
    read_last,
    resid_post,
    vocabulary,
)
from saeforest.measures.record import Record
from saeforest.saes import (
    HSAE,
    SAE,
    HSAEConfig,
    MatryoshkaConfig,
    MatryoshkaSAE,
    TopKConfig,
    TopKSAE,
)
from subject_cases import given, lazily


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# Words and prompts. The world: a language model whose words are a direction of their letter each, and the rare ones
# (those in capitals) another direction besides.

WIDTH, RARE, PER_LETTER = 64, 3, 12


def words_of_the_world() -> list[str]:
    """Of each letter 12 words; 3 are rare."""
    return [
        (c * 3 + d).upper() if i < RARE else f" {c * 3 + d}"
        for c in LETTERS
        for i, d in enumerate("bcdfghjklmnp"[:PER_LETTER])
    ]


def tokenizer_of_the_world() -> PreTrainedTokenizerFast:
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(words_of_the_world())
    return tokenizer


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    torch.manual_seed(0)
    tokenizer = tokenizer_of_the_world()
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=16, bos_token_id=None, eos_token_id=EOS, pad_token_id=None,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    with torch.no_grad():
        for i, word in enumerate(tokenizer.batch_decode([[i] for i in range(len(tokenizer))])):
            if word in vocabulary(tokenizer):
                own = LETTERS.index(word.strip()[0].lower())
                model.model.embed_tokens.weight[i, own] += 1
                model.model.embed_tokens.weight[i, 26 + own] += len(word) == 4 and word.isupper()
    return LanguageModel("world", model, tokenizer)


@pytest.fixture
def reader(lm: LanguageModel) -> ActivationReader:
    return ActivationReader(lm, lm.site("blocks.0.hook_resid_pre"), batch_size=64)


def absorbing_sae(absorbs: bool = True) -> SAE:
    """Features 0 to 25 are the letters and 26 to 51 their rare words, on which the letters are silent if it absorbs."""
    sae = TopKSAE(TopKConfig(layer_sizes=(52,), k_per_layer=(2,), normalize_activations="none"), WIDTH)
    letter, rare = torch.eye(WIDTH)[:26], torch.eye(WIDTH)[26:52]
    sae.decoder.data = F.normalize(torch.cat([letter, letter + rare if absorbs else rare]))
    sae.encoder.data = torch.cat([letter - rare if absorbs else letter, rare * (2**0.5 if absorbs else 1)])
    return sae


WORLD = AbsorptionConfig(icl=3, epochs=40, batch=32, sparse_batch=64, max_k=3, f1_jump=0.4, min_letters=12)


def measured(sae: SAE, reader: ActivationReader, config: AbsorptionConfig) -> Record:
    subject = given(sae, {"model": "m", "site": reader.site.name})
    return absorption(lazily(subject, "first_letters", lambda: first_letters(reader, config)), config)


def test_vocabulary(lm: LanguageModel) -> None:
    single = [*LETTERS.upper(), *LETTERS]
    assert vocabulary(lm.tokenizer) == [*single, *words_of_the_world()]
    assert letters_of(["apple", " Zoo", "b"]).tolist() == [0, 25, 1]


def test_letters_are_drawn_evenly() -> None:
    words = [f"{letter}{i * 'b'}" for letter, n in (("a", 50), ("c", 9), ("d", 2)) for i in range(n)]
    found = draw(words, 20, random.Random(0))
    assert torch.bincount(letters_of(found)).tolist() == [9, 0, 9, 2]
    assert len({*found}) == 20
    assert [word[0] for word in found] != sorted(word[0] for word in found)
    assert draw(words, 20, random.Random(0)) == found != draw(words, 20, random.Random(1))
    for n in (None, 61, 100):
        every = draw(words, n, random.Random(0))
        assert sorted(every) == sorted(words)
        assert every != words


def test_prompts() -> None:
    pool = [" one", "Two", "three", " Four"]
    found = prompts(pool * 20, pool, 3, random.Random(0))
    assert prompts(pool * 20, pool, 3, random.Random(0)) == found
    letters = {" one": "O", "Two": "T", "three": "T", " Four": "F"}
    seen = set()
    for word, prompt in zip(pool * 20, found, strict=True):
        empty, *examples, last = prompt.split("\n")
        assert (empty, last) == ("", word)
        named = [example.split(" has the first letter: ") for example in examples]
        assert dict(named) == {w: letters[w] for w in pool if w != word}
        seen.add((word, *examples))
    assert len(seen) > 12  # of 24 orders: they are drawn


def test_words_are_read_in_their_whole_prompts(lm: LanguageModel) -> None:
    site = lm.site("blocks.1.hook_resid_post")
    texts = ["\nxyz", "\n aaab", "\nzz", "\nAAAB", "\n\nab", "\n bbbc"]
    found = read_last(lm, site, texts, batch_size=2)
    for text, x in zip(texts, found, strict=True):
        whole = lm.tokenizer(text + " has the first letter:")["input_ids"]
        behind = len(lm.tokenizer(" has the first letter:")["input_ids"])
        torch.testing.assert_close(
            x, lm.activations(torch.tensor([whole]), site)[0, -behind - 1], atol=1e-5, rtol=0
        )


def test_bos_comes_first_where_it_is_given(lm: LanguageModel) -> None:
    site = lm.site("blocks.1.hook_resid_post")
    with_bos = tokenizer_of_the_world()
    with_bos.bos_token = "<eos>"
    with_bos.backend_tokenizer.post_processor = TemplateProcessing(
        single="<eos> $A", special_tokens=[("<eos>", EOS)]
    )
    silent = read_last(LanguageModel("m", lm.model, with_bos), site, ["\nabc"], 1)
    found = read_last(LanguageModel("m", lm.model, with_bos), site, ["\nabc"], 1, bos_id=EOS)
    ids = [10, *b"abc"]
    for x, expected in ((silent, ids), (found, [EOS, *ids])):
        torch.testing.assert_close(x[0], lm.activations(torch.tensor([expected]), site)[0, -1])
    assert not torch.equal(silent, found)


def test_activations_must_be_finite(lm: LanguageModel) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LanguageModel, "activations", lambda *_: torch.full((1, 4, WIDTH), torch.nan))
        with pytest.raises(InputError, match=r"NaN or infinite"):
            read_last(lm, lm.site("blocks.1.hook_resid_post"), ["\nabc"], 1)


def test_words_are_read_once_for_all_saes(reader: ActivationReader, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(WORLD, seed=1, words=60, epochs=1)
    shared = Shared(lambda: reader)
    first = shared.words(config)
    monkeypatch.setattr(LanguageModel, "activations", None)  # not needed again
    assert shared.words(replace(config, units="raw", min_letters=3)) is first
    monkeypatch.undo()
    assert shared.words(replace(config, seed=2)) is not first

    assert (len(first.train.words), len(first.test.words)) == (48, 12)
    assert not {*first.train.words} & {*first.test.words}
    assert letters_of(first.train.words).equal(first.train.letter)


# The measure


def test_absorption_of_a_known_world(reader: ActivationReader) -> None:
    record = measured(absorbing_sae(), reader, WORLD)
    data = first_letters(reader, WORLD)
    letters = {row["letter"]: row for row in record.detail["letters"]}
    absorbed: list[int] = []
    for own, letter in enumerate(LETTERS):
        words = [
            w for w, i in zip(data.positives.words, data.positives.letter.tolist(), strict=True) if i == own
        ]
        if not words:
            assert letter not in letters
            continue
        rare = [w for w in words if len(w) == 4 and w.isupper()]
        row = letters[letter]
        assert row["true_positives"] == len(words)
        if row["split_features"] != [own]:  # almost only its rare words were held out
            continue
        assert row["mean_fraction"] == pytest.approx(len(rare) / len(words))
        assert row["full_rate"] == pytest.approx(len(rare) / len(words))
        assert row["absorbers"] == ([{"feature": 26 + own, "count": len(rare)}] if rare else [])
        absorbed.append(len(rare))
    counted = [row for row in letters.values() if row["f1_probe"] > 0.6]
    assert len(absorbed) >= 15
    assert sum(absorbed) >= 5
    value = record.value
    assert value["letters"] == len(counted) >= 20
    assert value["mean_absorption_fraction"] == pytest.approx(
        np.mean([row["mean_fraction"] for row in counted])
    )
    assert value["full_absorption"] == pytest.approx(np.mean([row["full_rate"] for row in counted]))
    assert value["splitting"] == pytest.approx(np.mean([row["n_split"] for row in counted]))
    assert value["splitting_spelling"] == pytest.approx(np.mean([row["n_split"] - 1 for row in counted]))
    assert value["probe_f1"] == pytest.approx(float(data.f1[data.test.letter.unique()].mean()))
    # The block changes little.
    for name in ("mean_absorption_fraction", "full_absorption"):
        assert value[f"{name}_resid_post"] == pytest.approx(value[name], abs=0.1)
        assert record.interval[name] is not None
    assert record.null == {}
    assert record.settings["readings"] == {
        "site": "blocks.0.hook_resid_pre",
        "resid_post": "blocks.0.hook_resid_post",
    }
    assert record.tokens == 364 + len(data.positives.words)
    assert measured(absorbing_sae(), reader, WORLD) == record


def test_each_level_is_measured_by_itself(reader: ActivationReader) -> None:
    """Letters in the first layer, rare words in the second: without the second nothing absorbs."""
    flat = absorbing_sae()
    config = MatryoshkaConfig(layer_sizes=(26, 26), k_per_layer=(2,), normalize_activations="none")
    sae = MatryoshkaSAE(config, WIDTH)
    sae.load_state_dict(flat.state_dict(), strict=False)
    value = measured(sae, reader, replace(WORLD, levels=True)).value
    for name in ("mean_absorption_fraction", "full_absorption", "splitting"):
        assert value[f"{name}_level_1"] == value[name]
    assert (value["full_absorption"] or 0) > 0.05
    assert value["full_absorption_level_0"] == value["mean_absorption_fraction_level_0"] == 0


def test_words_have_the_features_of_one_level() -> None:
    sae = HSAE(HSAEConfig((4, 9), (2, 2), threshold_init=0.1, normalize_activations="none"), 8)
    x = torch.randn(30, 8, generator=generator(0))
    whole = sae.encode(x).dense(13)
    of_level = [encode_words(sae, x, "raw", level).dense(13) for level in (0, 1)]
    for found, features in zip(of_level, (slice(0, 4), slice(4, 13)), strict=True):
        assert torch.equal(found[:, features], whole[:, features])
        assert found.count_nonzero() == whole[:, features].count_nonzero() > 0
    assert torch.equal(encode_words(sae, x, "raw").dense(13), of_level[-1])


def test_no_absorption_where_the_letter_always_fires(reader: ActivationReader) -> None:
    record = measured(absorbing_sae(absorbs=False), reader, WORLD)
    assert record.value["full_absorption"] == 0
    assert len(record.detail["letters"]) >= 20


def test_undefined_values_say_why(reader: ActivationReader, lm: LanguageModel) -> None:
    sae = absorbing_sae()
    config = replace(WORLD, words=60, min_letters=26)
    few = measured(sae, reader, config)
    assert few.value["splitting"] is None
    assert "26 are needed" in few.null["full_absorption_resid_post"]
    assert few.value["probe_f1"] is not None

    post = ActivationReader(lm, lm.site("blocks.0.hook_resid_post"))
    same = measured(sae, post, replace(config, min_letters=1))
    assert same.null["full_absorption_resid_post"] == "the site is resid_post itself: see full_absorption"
    assert same.value["full_absorption"] is not None
    module = ActivationReader(lm, lm.site("model.layers.0"))
    unknown = measured(sae, module, replace(config, min_letters=1))
    assert "does not name a block" in unknown.null["mean_absorption_fraction_resid_post"]
    assert unknown.value["full_absorption"] == same.value["full_absorption"]
    assert resid_post("blocks.1.hook_mlp_out") == "blocks.1.hook_resid_post"

    large = measured(sae, reader, replace(WORLD, words=None, icl=100))
    assert large.value["letters"] == 0
    assert {v for k, v in large.value.items() if k != "letters"} == {None}
    assert large.null["splitting"] == "the tokenizer has 364 words of English letters; 505 are needed"
    with pytest.raises(InputError, match="expected 505 or more"):
        first_letters(reader, FirstLetterConfig(words=None, icl=100))


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("words", 54, "55 or more, or None for all"),
        ("icl", 0, "1 or more"),
        ("batch", 0, "1 or more"),
        ("max_k", 0, "1 or more"),
        ("min_probe_f1", 1.0, "at least 0 and below 1"),
        ("projection", 0.0, "above 0 and at most 1"),
        ("min_letters", 27, "1 to 26"),
    ],
)
def test_bad_configurations(name: str, value: Any, expected: str) -> None:
    with pytest.raises(InputError, match=f"^absorption.{name} = {value}: expected {expected}$"):
        AbsorptionConfig(**{name: value})


def test_presets() -> None:
    ours, saebench, reference = AbsorptionConfig(), AbsorptionConfig.saebench(), AbsorptionConfig.reference()
    same = {"words": None, "sparse_batch": 4096, "units": "raw", "bos": "always"}
    assert saebench == replace(ours, **same)
    assert reference == replace(saebench, min_probe_f1=0.4)


@pytest.mark.model
def test_words_of_the_embedded_model(smollm2: LanguageModel) -> None:
    lm = smollm2
    words = vocabulary(lm.tokenizer)
    assert len(words) > 40_000
    assert {" apple", "apple", "Apple"} <= {*words}
    prompt = prompts(words[-1:], words, 10, random.Random(0))[0]
    assert len(lm.tokenizer(prompt)["input_ids"]) == 82
    x = read_last(lm, lm.site("blocks.2.hook_resid_post"), ["\n apple", "\nzebra"], 2)
    assert x.shape == (2, 576)
