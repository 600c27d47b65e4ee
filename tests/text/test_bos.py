"""BOS at the start of every window: which tokenizers add it, where its tokens are, and that a run agrees on it."""

from __future__ import annotations

import json
import random
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from tokenizers.processors import TemplateProcessing
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from llama_cases import EOS, LAYERS, WIDTH, MakeConfig, byte_tokenizer
from saeforest.activations import harvest_folder, open_store
from saeforest.config import TrainConfig, load_config, save_config
from saeforest.errors import InputError
from saeforest.evaluation import measure_saes
from saeforest.evaluation.options import MeasureOptions
from saeforest.explore.index import Index
from saeforest.explore.measuring.build import build_index
from saeforest.lm import LanguageModel
from saeforest.measures.absorption import AbsorptionConfig
from saeforest.measures.examples import FeatureWindows
from saeforest.measures.first_letters import first_letters
from saeforest.measures.pooled import LabeledTextConfig, read_texts
from saeforest.presets import PRESETS
from saeforest.run_folder import RunFolder
from saeforest.session import about_activations, check_site, open_reader, read_tokens
from saeforest.text import Tokens, adds_bos, bos_before, tokenize
from saeforest.text.passages import read_passage
from saeforest.training import run_training
from saeforest.training.settle import settle_harvest, settle_positions, settle_text

BOS = 257


def tokenizer_with(template: str | None, bos: str | None = "<bos>") -> PreTrainedTokenizerFast:
    """A token a byte; `template` says what it puts around a text, as in "<bos> $A <eos>"."""
    tokenizer = byte_tokenizer()
    if bos == "<bos>":
        tokenizer.add_special_tokens({"bos_token": bos})
    elif bos is not None:
        tokenizer.bos_token = bos
    if template is not None:
        ids = {name: tokenizer.convert_tokens_to_ids(name) for name in re.findall(r"<\w+>", template)}
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single=template, special_tokens=list(ids.items())
        )
    return tokenizer


@pytest.fixture(scope="session")
def gemma_like(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model whose tokenizer puts BOS before every text."""
    folder = tmp_path_factory.mktemp("gemma") / "model"
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=BOS + 1, hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=2,
            intermediate_size=24, bos_token_id=BOS, eos_token_id=EOS, pad_token_id=None,
        )
    )  # fmt: skip
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    tokenizer_with("<bos> $A").save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def with_bos(
    gemma_like: Path, tiny_config: MakeConfig, tmp_path_factory: pytest.TempPathFactory
) -> tuple[TrainConfig, Path]:
    """A finished run on it, with every setting of BOS as it comes."""
    config, out = tiny_config(model=str(gemma_like), epochs=1), tmp_path_factory.mktemp("bos") / "run"
    run_training(config, out)
    return config, out


# Which tokenizers add it


@pytest.mark.parametrize(
    ("template", "bos", "expected"),
    [
        ("<bos> $A", "<bos>", True),
        ("<bos> $A <eos>", "<bos>", True),  # T5-like ends are no part of a window
        ("$A <eos>", "<bos>", False),
        ("$A <eos>", "<eos>", False),  # one token for both, which comes last
        ("<eos> $A", "<eos>", True),  # one token for both, which comes first
        ("<eos> $A", "<bos>", False),  # as [CLS] of another kind of model
        ("<eos> $A", None, False),
        (None, "<bos>", False),
        (None, "<eos>", False),  # GPT-2
        (None, None, False),
    ],
)
def test_the_tokenizer_says_whether_it_adds_bos(template: str | None, bos: str | None, expected: bool):
    tokenizer = tokenizer_with(template, bos)
    assert adds_bos(tokenizer) is expected
    assert bos_before(tokenizer, "auto", "m") == (tokenizer.bos_token_id if expected else None)
    assert bos_before(tokenizer, "no", "m") is None
    if bos is not None:
        assert bos_before(tokenizer, "yes", "m") == tokenizer.bos_token_id


def test_bos_asked_of_a_tokenizer_without():
    with pytest.raises(InputError, match=r"text\.bos = yes: the tokenizer of m has no BOS token"):
        bos_before(tokenizer_with(None, None), "yes", "m")


# Where its tokens are


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("d") / "d.jsonl"
    texts = ["a" * n for n in (1, 5, 2, 9, 3, 1, 1, 30, 4, 4, 19)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), "utf-8")
    return str(path)


def packed(source: str, context: int, bos: str = "auto", n_tokens: int = 10**6) -> Tokens:
    options: dict = {"context": context, "split": "train", "held_out": 0.0, "bos": bos}
    return tokenize(source, tokenizer_with("<bos> $A"), EOS, n_tokens=n_tokens, **options)


@pytest.mark.parametrize("context", [2, 5, 6, 7, 11])
def test_positions_with_bos_match_a_walk_over_the_tokens(source: str, context: int):
    tokens = packed(source, context)
    assert tokens.prepend_bos
    assert (tokens.ids[:, 0] == BOS).all()
    assert (tokens.ids == BOS).sum() == len(tokens.ids)
    plain = packed(source, context - 1, bos="no")
    assert torch.equal(tokens.ids[:, 1:], plain.ids)  # the same text in the same order
    assert tokens.names == plain.names
    document, position, walked = 0, 0, []
    for row, token in enumerate(tokens.ids.flatten().tolist()):
        walked.append((document, row % context, position))  # a BOS goes with the token behind it
        if token != BOS:
            document, position = (document + 1, 0) if token == EOS else (document, position + 1)
    rows = torch.randperm(tokens.n_tokens, generator=torch.Generator().manual_seed(0))
    for some in (rows, rows.int()):
        answers = (tokens.document_of(some), tokens.context_position(some), tokens.document_position(some))
        assert torch.stack(answers, 1).tolist() == [list(walked[row]) for row in rows.tolist()]


def test_windows_with_bos_are_as_many_as_without(source: str):
    assert packed(source, 6, n_tokens=31).n_tokens == packed(source, 6, bos="no", n_tokens=31).n_tokens == 30
    with pytest.raises(InputError, match="at least one window"):
        packed(source, 1)


def test_tokens_with_bos_are_kept_on_disk(source: str, tmp_path: Path):
    for bos in ("yes", "no"):
        tokens = packed(source, 6, bos)
        tokens.save(tmp_path / "t.safetensors")
        loaded = Tokens.load(tmp_path / "t.safetensors")
        assert loaded.prepend_bos == (bos == "yes")
        assert torch.equal(loaded.ids, tokens.ids)
        assert torch.equal(loaded.document_starts, tokens.document_starts)
    replace(packed(source, 6, "no"), prepend_bos=True).save(tmp_path / "t.safetensors")
    with pytest.raises(InputError, match="damaged or of another kind"):
        Tokens.load(tmp_path / "t.safetensors")


def test_text_is_shown_without_bos(source: str):
    tokens, tokenizer = packed(source, 6), tokenizer_with("<bos> $A")
    plain = packed(source, 5, bos="no")
    for row in range(tokens.n_tokens):
        if row % 6:  # not a BOS itself
            shown = read_passage(tokens, tokenizer, row)
            assert shown == read_passage(plain, tokenizer, row - row // 6 - 1)
    examples = object.__new__(FeatureWindows)
    vars(examples).update(tokens=tokens, tokenizer=tokenizer, buffer=2)
    examples.values = torch.ones(tokens.n_tokens).double().numpy()
    for text in examples.texts(torch.arange(len(tokens.ids)).numpy() * 6 + 2, mark_above=0.5):
        assert "bos" not in text
        assert text.startswith("<<")


# A run agrees with itself


def test_a_run_reads_with_bos_throughout(with_bos: tuple[TrainConfig, Path]):
    """Training, held-out text, prompts, labeled texts, index: BOS first, and the record says so."""
    config, out = with_bos
    assert config.text.bos == "auto"
    assert load_config(out / "config.yaml").text.bos == "yes"
    assert yaml.safe_load((out / "config.yaml").read_text("utf-8"))["text"]["bos"] == "yes"
    resolved, sae = RunFolder(out).load()
    assert sae.metadata["prepend_bos"] is True
    reader = open_reader(resolved)
    check_site(sae, reader)
    for split in ("train", "held_out"):
        tokens = read_tokens(resolved, reader, split, 320)
        assert (tokens.ids[:, 0] == BOS).all()
        assert not (tokens.ids[:, 1:] == BOS).any()
        assert not reader.keep(tokens.ids)[:, 0].any()
    records = measure_saes(
        {"tree": (resolved, sae)}, reader, ["sparsity"], MeasureOptions(tokens=640), RunFolder(out)
    )
    assert records["tree"][0].settings["prepend_bos"] is True
    batches = (batch for batch, _ in reader.batches(tokens))
    index = build_index(sae, sae.forest, batches, tokens, total=tokens.n_tokens)
    index.save(out / "index")
    assert json.loads((out / "index" / "index.json").read_text("utf-8"))["prepend_bos"] is True
    assert Index.load(out / "index", sae, sae.forest).tokens.prepend_bos


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """All ids that a language model is shown."""
    shown: list[torch.Tensor] = []
    original = LanguageModel.logits

    def look(self: LanguageModel, ids: torch.Tensor, *rest: object):
        shown.append(ids)
        return original(self, ids, *rest)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(LanguageModel, "logits", look)
    return shown


@pytest.mark.parametrize("bos", ["yes", "no"])
def test_texts_and_prompts_of_measures_follow_the_run(
    bos: str, with_bos: tuple[TrainConfig, Path], tmp_path: Path, seen: list[torch.Tensor]
):
    reader = open_reader(replace(with_bos[0], text=replace(with_bos[0].text, bos=bos)))  # pyright: ignore[reportArgumentType]
    seen.clear()
    rng = random.Random(0)
    lines = [
        json.dumps({"text": "".join(rng.choices(letters, k=rng.randint(5, 40))), "label": letters}) + "\n"
        for letters in ("abc", "xyz")
        for _ in range(20)
    ]
    (tmp_path / "labeled.jsonl").write_text("".join(lines), "utf-8")
    texts = read_texts(
        reader, LabeledTextConfig(str(tmp_path / "labeled.jsonl"), train=30, test=10, context=32)
    )
    first_letters(reader, AbsorptionConfig(words=None, icl=1, epochs=1))
    assert len(seen) > 10
    for ids in seen:
        assert bool((ids[:, 0] == BOS).all()) is (bos == "yes")
        assert not (ids[:, 1:] == BOS).any()
    # The first position is left out, and it is BOS where there is one.
    lengths = [min(len(json.loads(line)["text"]) + (bos == "yes"), 32) - 1 for line in lines]
    assert sorted(texts.count.tolist()) == sorted(lengths)


def test_bos_before_prompts_alone_is_said(
    with_bos: tuple[TrainConfig, Path], seen: list[torch.Tensor], capsys: pytest.CaptureFixture[str]
):
    reader = open_reader(replace(with_bos[0], text=replace(with_bos[0].text, bos="no")))
    seen.clear()
    first_letters(reader, AbsorptionConfig(words=None, icl=1, epochs=1, bos="always"))
    assert all((ids[:, 0] == BOS).all() for ids in seen)
    assert "absorption.bos = always: prompts begin with BOS" in capsys.readouterr().err


@pytest.mark.parametrize("key", ["model", "no key"])
def test_another_state_than_in_training_is_refused(
    key: str,
    with_bos: tuple[TrainConfig, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    """Also where the run's configuration is of before the setting: then the SAE's own word counts."""
    config, sae = RunFolder(with_bos[1]).load()
    other = replace(config, text=replace(config.text, bos="no"))
    out = tmp_path / "run"
    shutil.copytree(with_bos[1], out)
    save_config(other, out / "config.yaml")
    if key == "no key":
        data = yaml.safe_load((out / "config.yaml").read_text("utf-8"))
        del data["text"]["bos"]
        (out / "config.yaml").write_text(yaml.safe_dump(data), "utf-8")
    loaded, sae = RunFolder(out).load()
    assert loaded.text.bos == "no"
    assert load_config(out / "config.yaml", of_run=True).text.bos == "no"
    reader = open_reader(loaded)
    message = r"trained on text with BOS before every window.*measured without BOS; set text\.bos to yes"
    with pytest.raises(InputError, match=message):
        check_site(sae, reader)
    with pytest.raises(InputError, match=message):
        measure_saes(
            {"tree": (loaded, sae)}, reader, ["sparsity"], MeasureOptions(tokens=640), RunFolder(out)
        )
    del sae.metadata["prepend_bos"]  # an SAE of before the setting: read as it was trained, and said
    capsys.readouterr()
    check_site(sae, reader)
    assert (
        "this SAE's metadata do not say whether it was trained with BOS: text is read without it"
        in capsys.readouterr().err
    )


def test_harvested_activations_say_and_keep_it(
    with_bos: tuple[TrainConfig, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    config = replace(with_bos[0], tokens=1280)
    reader = open_reader(config)
    tokens = read_tokens(config, reader, "train", config.tokens)
    settled = settle_positions(settle_text(config, reader), reader, tokens)
    assert settled.text.bos == "yes"
    harvest_folder(reader, tokens, tmp_path / "acts", about_activations(settled, tokens, reader))
    assert open_store(tmp_path / "acts").manifest["prepend_bos"] is True
    on_store = replace(config, data=str(tmp_path / "acts"))
    assert settle_harvest(on_store).text.bos == "yes"
    with pytest.raises(InputError, match=r"text\.bos = no: .* activations of text read with BOS"):
        settle_harvest(replace(on_store, text=replace(config.text, bos="no")))
    run_training(on_store, tmp_path / "run")
    assert RunFolder(tmp_path / "run").load()[1].metadata["prepend_bos"] is True


def test_a_store_without_the_key_was_read_without_bos(
    with_bos: tuple[TrainConfig, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    config = replace(with_bos[0], tokens=1280, text=replace(with_bos[0].text, bos="no"))
    reader = open_reader(config)
    tokens = read_tokens(config, reader, "train", config.tokens)
    about = about_activations(settle_positions(config, reader, tokens), tokens, reader)
    del about["prepend_bos"]
    harvest_folder(reader, tokens, tmp_path / "acts", about)
    capsys.readouterr()
    run_training(replace(config, data=str(tmp_path / "acts"), text=with_bos[0].text), tmp_path / "run")
    assert "puts BOS before a text, harvest again" in capsys.readouterr().err
    assert RunFolder(tmp_path / "run").load()[0].text.bos == "no"


@pytest.mark.parametrize(
    ("written", "expected"), [("yes", "yes"), ("no", "no"), ("'yes'", "yes"), ("auto", "auto")]
)
def test_yaml_takes_yes_for_true(written: str, expected: str, tmp_path: Path):
    (tmp_path / "c.yaml").write_text(f"text:\n  bos: {written}\n", "utf-8")
    assert load_config(tmp_path / "c.yaml").text.bos == expected


@pytest.mark.parametrize("written", ["2", "[yes]", "maybe", "{}"])
def test_other_words_for_bos_are_one_line(written: str, tmp_path: Path):
    (tmp_path / "c.yaml").write_text(f"text:\n  bos: {written}\n", "utf-8")
    with pytest.raises(InputError, match=r"key 'text\.bos"):
        load_config(tmp_path / "c.yaml")


def test_presets_for_gemma_leave_bos_to_the_tokenizer():
    found = [config for config in PRESETS.values() if "gemma" in config.model]
    assert found
    for config in found:
        assert (config.text.bos, config.activations.exclude_first) == ("auto", True)


def test_runs_without_a_bos_are_as_before(finished_run: Path):
    config, sae = RunFolder(finished_run).load()
    assert (config.text.bos, sae.metadata["prepend_bos"]) == ("no", False)
