"""Sparse probing: against slow arithmetic, on a planted world, and from texts on disk to a record."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from oracles import sparse_probing as oracle
from saeforest.activations import ActivationReader
from saeforest.errors import InputError
from saeforest.evaluation.supplies import Shared
from saeforest.lm import LanguageModel
from saeforest.measures import pooled as pooled_module
from saeforest.measures.pooled import (
    LabeledCodes,
    LabeledTextConfig,
    ReadTexts,
    apart,
    by_text,
    choose,
    divide,
    mean_difference,
    one_vs_rest,
    pooled_code,
    read_texts,
)
from saeforest.measures.sparse_probing import SparseProbingConfig, sparse_probing, top_dimensions
from saeforest.measures.subject import Subject
from saeforest.run_folder import RunFolder
from saeforest.saes import SAE, MatryoshkaConfig, MatryoshkaSAE, TopKConfig, TopKSAE, TreeConfig, TreeSAE
from saeforest.session import open_reader
from saeforest.text.labeled import LabeledText
from subject_cases import given

D = 12
CLASSES = ("arts", "birds", "cars")


def texts_of(x: list[np.ndarray], label: np.ndarray, config: LabeledTextConfig | None = None) -> ReadTexts:
    config = config or LabeledTextConfig(train=3, test=1)
    train, test = divide(label, config)
    tokens = torch.from_numpy(np.concatenate(x)).float()
    count = np.array([len(t) for t in x])
    return ReadTexts(config, CLASSES[: label.max() + 1], tokens, count, train, test, len(tokens))


def subject_of(sae: SAE, texts: ReadTexts) -> Subject:
    return given(sae, {"sae": "test"}, labeled_texts=LabeledCodes(texts, pooled_code(sae, texts)))


def planted_sae() -> TopKSAE:
    """Feature i is coordinate i, whose value it takes."""
    config = TopKConfig(layer_sizes=(D,), k_per_layer=(D,), normalize_activations="none")
    sae = TopKSAE(config, D)
    sae.encoder.data = torch.eye(D)
    sae.decoder.data = torch.eye(D)
    return sae


def planted_texts(seed: int = 0, n: int = 40) -> ReadTexts:
    """Class c is told by feature 3 + c, which fires on a third of its tokens; the others fire on all texts alike."""
    rng = np.random.default_rng(seed)
    x, label = [], np.repeat(np.arange(3), n)
    for c in label:
        tokens = rng.random((int(rng.integers(3, 9)), D))
        tokens[:, 3:6] = 0
        tokens[::3, 3 + c] = 8
        x.append(tokens)
    return texts_of(x, label)


def test_top_dimensions_takes_the_lower_of_equals() -> None:
    assert top_dimensions(np.array([0.1, -3.0, 2.0, 3.0, 0.0]), 3).tolist() == [1, 3, 2]


def test_mean_difference_and_top_dimensions_against_the_oracle() -> None:
    rng = np.random.default_rng(0)
    x, own = rng.normal(size=(20, 7)), np.arange(20) % 3 == 0
    expected = oracle.mean_difference(x, own.tolist())
    np.testing.assert_allclose(mean_difference(x, own), expected, atol=1e-12)
    assert top_dimensions(expected, 4).tolist() == oracle.largest(np.abs(expected), 4)


@pytest.mark.parametrize("normalize", ["layer_norm", "none"])
def test_pooled_codes_against_the_oracle(monkeypatch: pytest.MonkeyPatch, normalize: Any) -> None:
    """In slices and whole, with texts of one token, an SAE whose features fire often, and duplicates to add up."""
    rng = np.random.default_rng(1)
    sae = TreeSAE(
        TreeConfig(layer_sizes=(6, 14), k_per_layer=(3, 2), normalize_activations=normalize), D, seed=2
    )
    lengths = [1, 5, 2, 7, 1, 3] * 4
    x = [rng.normal(size=(n, D)) * rng.uniform(0.5, 20, size=(n, 1)) for n in lengths]
    monkeypatch.setattr(pooled_module, "_SLICE_TOKENS", 6)
    texts = texts_of(x, np.repeat([0, 1], 12))
    code = pooled_code(sae, texts)
    dense, scaled = [], []
    for t in x:
        found, stats = sae.encode_with_stats(torch.from_numpy(t).float())
        f = found.detach().dense(sae.d_sae).double().numpy()
        std = t.std(1, ddof=1, keepdims=True) if normalize == "layer_norm" else np.ones((len(t), 1))
        np.testing.assert_allclose(stats.std, std, rtol=1e-4)
        dense.append(f)
        scaled.append(std * f)
    assert (np.concatenate(dense) > 0).sum() > 200
    np.testing.assert_allclose(code.raw.todense(), oracle.mean_over_tokens(dense), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        code.effective.todense(), oracle.mean_over_tokens(scaled), rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(texts.pooled, oracle.mean_over_tokens(x), rtol=1e-5, atol=1e-5)


def test_one_vs_rest_is_balanced_and_even() -> None:
    texts = np.random.default_rng(0).permutation(60).reshape(4, 15)
    rows, own = one_vs_rest(texts, seed=1)
    assert rows.shape == (4, 30)
    for c in range(4):
        assert rows[c, own].tolist() == texts[c].tolist()
        others = rows[c, ~own]
        assert len(set(others)) == 15
        assert [int(np.isin(others, texts[o]).sum()) for o in range(4) if o != c] == [5, 5, 5]
    assert not np.array_equal(rows, one_vs_rest(texts, seed=2)[0])
    np.testing.assert_array_equal(rows, one_vs_rest(texts, seed=1)[0])


def test_one_vs_rest_of_two_classes_is_all() -> None:
    rows, own = one_vs_rest(np.arange(8).reshape(2, 4), seed=0)
    assert [sorted(row[~own]) for row in rows] == [[4, 5, 6, 7], [0, 1, 2, 3]]


def test_by_text() -> None:
    test = np.array([[7, 2], [4, 9]])
    placed = by_text(np.array([[2, 9], [4, 7]]), np.array([[0.5, 2.0], [3.0, 4.0]]), test)
    assert placed.tolist() == [[0, 0.5, 0, 2], [4, 0, 3, 0]]


def test_divide_gives_every_class_the_same_number_and_no_text_twice() -> None:
    label = np.repeat([0, 1, 2], [30, 12, 20])
    train, test = divide(label, LabeledTextConfig(train=300, test=100))
    assert train.shape == (3, 9)
    assert test.shape == (3, 3)
    both = np.hstack([train, test])
    assert len(set(both.ravel())) == 36
    assert (label[both] == np.arange(3)[:, None]).all()


def test_apart_leaves_some_of_both() -> None:
    texts = np.arange(20).reshape(2, 10)
    assert [part.shape for part in apart(texts, 0.2)] == [(2, 8), (2, 2)]
    assert [part.shape for part in apart(texts, 0.001)] == [(2, 9), (2, 1)]
    assert [part.shape for part in apart(texts, 0.999)] == [(2, 1), (2, 9)]


def some(**counts: int) -> list[LabeledText]:
    return [LabeledText(f"{label} {i}", label, "") for label, n in counts.items() for i in range(n)]


def test_choose_takes_the_most_frequent_labels_and_no_text_twice() -> None:
    found = some(a=12, rare=9, c=30, b=30)
    classes, texts = choose(found + found, LabeledTextConfig(n_classes=3, train=30, test=15))
    assert classes == ("b", "c", "a")
    assert {label: [t.label for t in texts].count(label) for label in classes} == {"a": 12, "b": 12, "c": 12}
    assert len({t.text for t in texts}) == 36
    classes, texts = choose(found, LabeledTextConfig(classes=("c", "b"), train=16, test=8))
    assert classes == ("c", "b")
    assert len(texts) == 24
    assert texts != choose(found, LabeledTextConfig(classes=("c", "b"), train=16, test=8, seed=1))[1]


def test_choose_needs_two_labels_with_enough_texts() -> None:
    with pytest.raises(InputError, match=r"'here': expected two .* 10 or more .* are a \(12\), rare \(9\)$"):
        choose(some(a=12, rare=9), LabeledTextConfig(source="here"))
    with pytest.raises(InputError, match=r"'here': 9 different texts .* label 'rare'; expected 10 or more"):
        choose(some(a=12, rare=9), LabeledTextConfig(source="here", classes=("a", "rare")))
    with pytest.raises(InputError, match=r"0 different texts .* label 'none'"):
        choose(some(a=12, rare=9), LabeledTextConfig(classes=("a", "none")))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"train": 0}, r"texts\.train = 0: expected 1 or more"),
        ({"test": -1}, r"texts\.test = -1"),
        ({"n_classes": 1}, r"texts\.n_classes = 1: expected 2 or more"),
        ({"context": 1}, r"texts\.context = 1"),
        ({"classes": ("a",)}, r"texts\.classes = \['a'\]: expected two or more different"),
        ({"classes": ("a", "b", "a")}, r"texts\.classes"),
    ],
)
def test_wrong_text_configurations(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        LabeledTextConfig(**wrong)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"k": ()}, r"sparse_probing\.k = \[\]"),
        ({"k": (0, 1)}, r"sparse_probing\.k = \[0, 1\]: expected different numbers of 1 or more"),
        ({"k": (2, 2)}, r"sparse_probing\.k"),
        ({"validation": 1.0}, r"sparse_probing\.validation = 1\.0: expected a fraction"),
    ],
)
def test_wrong_configurations(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        SparseProbingConfig(**wrong)


def test_the_planted_feature_is_found() -> None:
    record = sparse_probing(subject_of(planted_sae(), planted_texts()), SparseProbingConfig(k=(1, 2, 50)))
    assert [entry["features"][0] for entry in record.detail["classes"]] == [3, 4, 5]
    assert [entry["label"] for entry in record.detail["classes"]] == list(CLASSES)
    assert record.value["sae_top_1"] == record.value["llm_top_1"] == record.value["llm_all"] == 1
    assert record.interval["sae_top_1"] == (1, 1)
    assert record.value["sae_top_50"] is record.interval["llm_top_50"] is None
    assert record.null == dict.fromkeys(("sae_top_50", "llm_top_50"), "there are only 12 dimensions")


def test_a_feature_of_another_class_does_not_help() -> None:
    """With the labels dealt at random there is nothing to find: nothing is far above chance."""
    texts = planted_texts(n=200)
    label = np.random.default_rng(3).integers(3, size=600)
    train, test = divide(label, LabeledTextConfig(train=1, test=1))
    dealt = ReadTexts(texts.config, CLASSES, texts.x, texts.count, train, test, texts.n_tokens)
    record = sparse_probing(subject_of(planted_sae(), dealt), SparseProbingConfig())
    for name, value in record.value.items():
        interval = record.interval[name]
        assert value is not None
        assert interval is not None
        assert abs(value - 0.5) < 0.12
        assert interval[0] < value < interval[1]


def test_a_dead_sae_is_at_chance() -> None:
    sae = planted_sae()
    sae.encoder.data = -torch.eye(D)
    record = sparse_probing(subject_of(sae, planted_texts()), SparseProbingConfig())
    assert [record.value[f"sae_top_{k}"] for k in (1, 2, 5)] == [0.5, 0.5, 0.5]
    assert record.value["llm_all"] == 1


def test_accuracy_is_that_of_the_classes() -> None:
    """The mean over classes of the class's own, and of a text's answers in the classes that asked for it."""
    rng = np.random.default_rng(5)
    x = [rng.random((4, D)) + 0.15 * (np.arange(D) == c) for c in np.repeat(np.arange(3), 40)]
    record = sparse_probing(
        subject_of(planted_sae(), texts_of(x, np.repeat(np.arange(3), 40))), SparseProbingConfig()
    )
    for name, value in record.value.items():
        own = [entry[name] for entry in record.detail["classes"]]
        assert len(set(own)) > 1
        assert value == pytest.approx(np.mean(own))


# From texts on disk


@pytest.fixture(scope="module")
def animals(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Texts of two labels that share no letter, of one token to many; and a few that repeat."""
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("labeled") / "animals.jsonl"
    records = [
        {"text": "".join(rng.choice(list(letters), size=length)), "label": label}
        for label, letters in (("cats", "acegik"), ("dogs", "bdfhjl"))
        for length in [*rng.integers(20, 60, size=40), 1, 1]
    ]
    path.write_text("".join(json.dumps(r) + "\n" for r in [*records, *records[:5]]), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def reader(finished_run: Path) -> ActivationReader:
    return open_reader(RunFolder(finished_run).load()[0])


def test_texts_are_read_one_by_one(reader: ActivationReader, animals: str) -> None:
    """What is pooled is what the model gives each text alone: no padding, no first token, no text of one token."""
    config = LabeledTextConfig(animals, train=60, test=24, context=32)
    texts = read_texts(reader, config)
    lm = reader.lm
    expected = []
    for line in Path(animals).read_text("utf-8").splitlines()[:84]:
        ids = torch.tensor([list(json.loads(line)["text"].encode())[:32]])
        if ids.shape[1] > 1:
            expected.append(lm.activations(ids, reader.site)[0, 1:].double().mean(0).numpy())
    assert texts.pooled.shape == (80, len(expected[0]))
    assert sorted(texts.count)[-1] == 31
    distance = np.abs(texts.pooled[:, None] - np.array(expected)).max(2)
    assert distance.min(1).max() < 1e-4
    assert sorted(distance.argmin(1)) == list(range(80))
    label = np.array([i < 40 for i in distance.argmin(1)])
    assert label[texts.train[0]].all()
    assert not label[texts.test[1]].any()


def test_a_record_from_texts_on_disk(
    reader: ActivationReader,
    finished_run: Path,
    animals: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = SparseProbingConfig(LabeledTextConfig(animals, train=60, test=24))
    shared, sae = Shared(lambda: reader), RunFolder(finished_run).load()[1]
    record = sparse_probing(subject_of(sae, shared.texts(config.texts)), config)
    record.write(tmp_path / "sparse_probing.json")
    assert record.measure == "sparse_probing"
    assert set(record.value) == {f"{of}_top_{k}" for of in ("sae", "llm") for k in (1, 2, 5)} | {"llm_all"}
    llm_all = record.value["llm_all"]
    assert llm_all is not None
    assert llm_all > 0.9  # no letter in common
    assert record.settings["classes"] == ["cats", "dogs"]
    assert record.settings["data"] == animals
    assert record.settings["context"] == 128
    assert record.settings["tokens_read"] == record.tokens + 84  # the first of every text
    assert (record.settings["train_texts"], record.settings["test_texts"]) == (58, 22)
    assert json.loads((tmp_path / "sparse_probing.json").read_text())["settings"]["config"]["k"] == [1, 2, 5]

    def never(*_: object) -> None:
        raise AssertionError("read again")

    with monkeypatch.context() as patch:
        patch.setattr(LanguageModel, "activations", never)
        assert sparse_probing(subject_of(sae, shared.texts(config.texts)), config) == record
    assert sparse_probing(subject_of(sae, read_texts(reader, config.texts)), config) == record


def test_texts_without_a_measured_token(reader: ActivationReader, tmp_path: Path) -> None:
    """One token each, the first: nothing is measured."""
    path = tmp_path / "short.jsonl"
    records = [{"text": chr(33 + i), "label": "ab"[i % 2]} for i in range(60)]
    path.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    with pytest.raises(InputError, match=r"0 different texts with tokens to measure have the label 'a'"):
        read_texts(reader, LabeledTextConfig(str(path)))


def test_a_context_that_the_model_lacks(reader: ActivationReader, animals: str) -> None:
    with pytest.raises(InputError, match=r"texts\.context = 5000: .* can read at most 2048 tokens"):
        read_texts(reader, LabeledTextConfig(animals, context=5000))


def test_each_level_is_probed_by_itself() -> None:
    """Features 3 and 4, which tell two of the classes, are in the first layer, and 5, of the third, in the second."""
    config = MatryoshkaConfig(layer_sizes=(5, 7), k_per_layer=(D,), normalize_activations="none")
    sae = MatryoshkaSAE(config, D)
    sae.load_state_dict(planted_sae().state_dict(), strict=False)
    subject = subject_of(sae, planted_texts())
    value = sparse_probing(subject, SparseProbingConfig(k=(1, 2), levels=True)).value
    plain = sparse_probing(subject, SparseProbingConfig(k=(1, 2))).value
    assert value.keys() == {*plain, *(f"sae_top_{k}_level_{level}" for k in (1, 2) for level in (0, 1))}
    assert {name: value[name] for name in plain} == plain
    for k in (1, 2):
        assert value[f"sae_top_{k}_level_1"] == value[f"sae_top_{k}"]
    assert value["sae_top_1"] == 1
    # By two features of the first layer, the third class is what has neither.
    assert (value["sae_top_1_level_0"] or 1) < 0.95 < (value["sae_top_2_level_0"] or 0)
