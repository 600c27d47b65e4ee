"""TPP: against slow arithmetic and token-by-token ablation, the specification's vector, and on a planted world."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_sparse_probing import D, planted_sae, planted_texts, subject_of, texts_of

from oracles import sparse_probing as oracle
from saeforest.errors import InputError
from saeforest.interventions import ablate, splice
from saeforest.measures import tpp as module
from saeforest.measures.pooled import LabeledTextConfig, apart, one_vs_rest, read_texts
from saeforest.measures.pooled_probes import PooledProbeConfig, fit_probes
from saeforest.measures.tpp import (
    TPPConfig,
    ablated,
    effects,
    tpp,
    tpp_score,
    train_probes,
)
from saeforest.run_folder import RunFolder
from saeforest.saes import HSAE, SAE, HSAEConfig, TreeConfig, TreeSAE
from saeforest.session import open_reader

QUICK = TPPConfig(n=(1, 2, 5), epochs=6)


def test_the_specifications_vector() -> None:
    """Section 10, 9: an intended drop of 0.2, others of 0.05 on average."""
    one = np.array([[0.2, 0.1, 0.0], [0.05, 0.2, 0.05], [0.1, 0.0, 0.2]])
    np.testing.assert_allclose(tpp_score(np.stack([one, 0 * one, one + 1])), [0.15, 0, 0.15])


def test_score_and_effects_against_the_oracle() -> None:
    rng = np.random.default_rng(0)
    drop = rng.normal(size=(2, 4, 4))
    assert tpp_score(drop) == pytest.approx([oracle.tpp(table.tolist()) for table in drop])
    difference, along = rng.normal(size=30), rng.normal(size=30)
    effect = effects(difference, along)
    assert effect.tolist() == [max(0.0, a * b) for a, b in zip(difference, along, strict=True)]
    assert ablated(effect, 6).tolist() == oracle.largest(effect, 6)


def test_a_feature_without_effect_is_never_ablated() -> None:
    assert ablated(np.array([0.0, 2.0, 0.0, 1.0, 2.0]), 4).tolist() == [1, 4, 3]


def test_probes_against_adamw_by_hand() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(30, 5)) + 2 * np.repeat(np.eye(3, 5), 10, axis=0)
    texts = np.arange(30).reshape(3, 10)
    config = TPPConfig(epochs=1, batch_size=6, lr=0.05, l1=0.02)
    probes = train_probes(x, texts, texts, config, seed=4)
    rows, own = one_vs_rest(texts, 4)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(4)).tolist()
    for c in range(3):
        w, b = oracle.train_probe(
            x[rows[c]], own.astype(float), [order[i : i + 6] for i in range(0, 20, 6)], lr=0.05, l1=0.02
        )
        np.testing.assert_allclose(probes.weight[c], w, atol=1e-5)
        assert probes.bias[c] == pytest.approx(b, abs=1e-5)


def test_each_probe_keeps_its_best_epoch() -> None:
    """Checked on texts whose labels are wrong, a probe was best before it learned anything."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(80, 3)) + 3 * np.repeat(np.eye(2, 3), 40, axis=0)
    texts = np.arange(80).reshape(2, 40)
    config = TPPConfig(epochs=5, batch_size=80, lr=0.1)
    first = train_probes(x, texts, texts, TPPConfig(epochs=1, batch_size=80, lr=0.1), 0)
    wrong = train_probes(x, texts, texts[::-1], config, 0)
    right = train_probes(x, texts, texts, config, 0)
    np.testing.assert_array_equal(wrong.weight, first.weight)
    assert (np.abs(right.weight) >= np.abs(first.weight)).any()


@pytest.mark.parametrize("normalize", ["layer_norm", "none"])
def test_record_against_ablation_token_by_token(normalize: Any) -> None:
    """Every activation decoded with and without the features, then pooled, then shown to the probes."""
    rng = np.random.default_rng(2)
    config = TreeConfig(layer_sizes=(8, 24), k_per_layer=(4, 4), normalize_activations=normalize)
    sae = TreeSAE(config, D, seed=5)
    label = np.repeat(np.arange(3), 40)
    towards = rng.normal(size=(3, D))
    x = [
        rng.uniform(1, 4) * (rng.normal(size=(int(rng.integers(1, 6)), D)) + 0.7 * towards[c]) for c in label
    ]
    texts = texts_of(x, label)
    record = tpp(subject_of(sae, texts), QUICK)

    f, scale = [], []
    for t in x:
        with torch.no_grad():
            code, stats = sae.encode_with_stats(torch.from_numpy(t).float())
        f.append(code.dense(sae.d_sae).double().numpy())
        scale.append(stats.std[:, 0].double().numpy())
    decoder = sae.W_dec.detach().double().numpy()
    pooled = oracle.mean_over_tokens(x)
    np.testing.assert_allclose(texts.pooled, pooled, atol=1e-5)
    probes = train_probes(texts.pooled, *apart(texts.train, 0.2), QUICK, 42)
    train, train_own = one_vs_rest(texts.train, 42)
    test, test_own = one_vs_rest(texts.test, 42)

    def accuracies(vectors: np.ndarray) -> list[float]:
        return [
            oracle.accuracy(vectors, probes.weight[c], probes.bias[c], test[c].tolist(), test_own.tolist())
            for c in range(3)
        ]

    clean = accuracies(pooled)
    effective = oracle.mean_over_tokens([s[:, None] * v for s, v in zip(scale, f, strict=True)])
    moved = 0
    for n in QUICK.n:
        drop = []
        for c in range(3):
            difference = oracle.mean_difference(effective[train[c]], train_own.tolist())
            effect = np.maximum(difference * (decoder @ probes.weight[c]), 0)
            features = oracle.largest(effect, n)
            assert effect[features].min() > 0
            assert record.detail["classes"][c]["features"][:n] == features
            ablated = oracle.ablate(x, f, scale, decoder, features)
            spliced = splice(sae, ablate(features), error=True)(torch.from_numpy(x[0]).float())
            np.testing.assert_allclose(spliced.detach(), ablated[0], atol=1e-4)
            without = oracle.mean_over_tokens(ablated)
            moved += int(np.abs(without - pooled).max() > 0.1)
            drop.append([a - b for a, b in zip(clean, accuracies(without), strict=True)])
        np.testing.assert_allclose(record.detail["drop"][str(n)], drop, atol=1e-9)
        assert record.value[f"tpp_{n}"] == pytest.approx(oracle.tpp(drop))
        interval = record.interval[f"tpp_{n}"]
        assert interval is not None
        assert interval[0] <= oracle.tpp(drop) <= interval[1]
    assert moved == 9
    assert [entry["accuracy"] for entry in record.detail["classes"]] == pytest.approx(clean)
    assert np.abs(record.detail["drop"]["5"]).max() > 0


def test_the_planted_feature_carries_its_class() -> None:
    record = tpp(subject_of(planted_sae(), planted_texts(n=60)), TPPConfig(n=(1, 2, 13), lr=0.02))
    assert [entry["features"][0] for entry in record.detail["classes"]] == [3, 4, 5]
    assert [entry["accuracy"] for entry in record.detail["classes"]] == [1, 1, 1]
    drop = np.array(record.detail["drop"]["1"])
    assert (np.diag(drop) >= 0.4).all()
    assert (drop - np.diag(np.diag(drop)) <= 0.1).all()
    value = record.value["tpp_1"]
    assert value is not None
    assert value > 0.35
    assert record.value["tpp_13"] is record.interval["tpp_13"] is None
    assert record.null == {"tpp_13": "only 12 features take part in the reconstruction"}


def test_a_dead_sae_changes_nothing() -> None:
    sae = planted_sae()
    sae.encoder.data = -torch.eye(D)
    record = tpp(subject_of(sae, planted_texts()), QUICK)
    assert record.value == {"tpp_1": 0, "tpp_2": 0, "tpp_5": 0}
    assert [(entry["features"], entry["helpful"]) for entry in record.detail["classes"]] == [([], 0)] * 3


def test_select_on_test_is_another_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = planted_texts()
    seen: list[tuple[np.ndarray, np.ndarray]] = []

    def spy(x: Any, train: Any, check: Any, config: TPPConfig, seed: int) -> Any:
        seen.append((train, check))
        return train_probes(x, train, check, config, seed)

    monkeypatch.setattr(module, "train_probes", spy)
    for select_on in ("validation", "test"):
        tpp(subject_of(planted_sae(), texts), TPPConfig(n=(1,), epochs=1, select_on=select_on))
    (train, check), (all_train, test) = seen
    assert {*train.ravel(), *check.ravel()} == {*texts.train.ravel()}
    assert not set(train.ravel()) & set(check.ravel())
    assert all_train is texts.train
    assert test is texts.test


def test_levels_that_reconstruct_alone() -> None:
    """An HSAE's reconstruction is its last level's; a Tree SAE's is everyone's."""
    hsae: SAE = HSAE(HSAEConfig((2, 4), (1, 1), normalize_activations="none"), D)
    assert hsae.in_reconstruction.tolist() == [False, False, True, True, True, True]
    assert bool(TreeSAE(TreeConfig(layer_sizes=(2, 4), k_per_layer=(1, 1)), D).in_reconstruction.all())


def test_each_level_ablates_its_own_features() -> None:
    """Levels of an HSAE are disjoint, prefixes of a tree are nested; the last is the whole reconstruction."""
    texts = planted_texts(n=60)
    config = TPPConfig(n=(1, 3), lr=0.02, levels=True)
    tree = TreeSAE(TreeConfig(layer_sizes=(4, 8), k_per_layer=(4, 8), normalize_activations="none"), D)
    planted = planted_sae()
    tree.encoder.data, tree.decoder.data = planted.encoder.data, planted.decoder.data
    tree.parent.fill_(-1)
    record = tpp(subject_of(tree, texts), config)
    whole = tpp(subject_of(tree, texts), replace(config, levels=False))
    assert whole.value.items() <= record.value.items()
    assert record.detail["classes"] == whole.detail["classes"]
    for n in (1, 3):
        assert record.value[f"tpp_{n}_level_1"] == record.value[f"tpp_{n}"]
        assert record.interval[f"tpp_{n}_level_1"] == record.interval[f"tpp_{n}"]
    # Of the planted features 3, 4 and 5, the first layer holds only 3.
    drop = np.array(record.detail["drop"]["1_level_0"])
    assert drop[0, 0] >= 0.4
    assert np.abs(drop.diagonal()[1:]).max() < drop[0, 0]
    rare = tpp(subject_of(tree, texts), replace(config, n=(5,)))
    assert rare.value["tpp_5_level_0"] is None
    assert rare.null == {"tpp_5_level_0": "only 4 features take part in the reconstruction"}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"n": ()}, r"tpp\.n = \[\]: expected different numbers"),
        ({"n": (0,)}, r"tpp\.n = \[0\]"),
        ({"validation": 0.0}, r"tpp\.validation = 0\.0"),
        ({"epochs": 0}, r"tpp\.epochs = 0: expected 1 or more"),
        ({"batch_size": 0}, r"tpp\.batch_size = 0"),
        ({"lr": float("nan")}, r"tpp\.lr = nan: expected a number above 0"),
        ({"l1": -1.0}, r"tpp\.l1 = -1\.0: expected 0 or more"),
    ],
)
def test_wrong_configurations(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        TPPConfig(**wrong)


def test_a_record_from_texts_on_disk(finished_run: Path, tmp_path: Path) -> None:
    config, sae = RunFolder(finished_run).load()
    reader = open_reader(config)
    records = [
        {"text": letter * length, "label": kind}
        for kind, letters in (("vowel", "aei"), ("other", "bcd"))
        for letter in letters
        for length in range(3, 10)
    ]
    path = tmp_path / "letters.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    probing = TPPConfig(LabeledTextConfig(str(path), train=30, test=12), n=(2, 5, 500), epochs=8)
    subject = subject_of(sae, read_texts(reader, probing.texts))
    record = tpp(subject, probing)
    record.write(tmp_path / "tpp.json")
    assert json.loads((tmp_path / "tpp.json").read_text())["value"].keys() == {"tpp_2", "tpp_5", "tpp_500"}
    assert record.null == {"tpp_500": "only 112 features take part in the reconstruction"}
    assert record.settings["classes"] == ["other", "vowel"]
    assert record.settings["sae"] == "test"
    assert tpp(subject, probing) == record


def test_of_epochs_without_a_mistake_the_one_of_the_smallest_loss_counts_if_wanted() -> None:
    """Two far groups are told apart from the first epoch on, while the loss falls until the last."""
    own = np.arange(24) < 12
    x = np.where(own, 1.0, -1.0)[:, None] * np.linspace(0.5, 1.5, 5)
    rows = np.arange(24)[None]
    norms = {}
    for by_loss in (True, False):
        for epochs in (1, 6):
            config = PooledProbeConfig(epochs=epochs, lr=0.05)
            probe = fit_probes(x, rows, own, rows, own, config, 0, by_loss=by_loss)
            assert ((probe.logits(x)[:, 0] > 0) == own).all()
            norms[by_loss, epochs] = float(np.linalg.norm(probe.weight))
    assert norms[False, 6] == norms[False, 1] == norms[True, 1]
    assert norms[True, 6] > 2 * norms[True, 1]
