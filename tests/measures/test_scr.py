"""SCR: the specification's vector, slow arithmetic token by token, a planted world, and a run's SAE."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_sparse_probing import D, planted_sae
from test_sparse_probing import subject_of as without_forest

from oracles import scr as oracle
from oracles.sparse_probing import mean_over_tokens
from saeforest.errors import InputError
from saeforest.measures.matched import alike
from saeforest.measures.pooled import ReadTexts, apart, choose, divide, read_texts
from saeforest.measures.pooled_probes import fit_probes
from saeforest.measures.scr import ScrConfig, TwoLabelTextConfig, balanced, scr, scr_score
from saeforest.measures.subject import Subject
from saeforest.measures.subtrees import NO_EDGES, NOTHING_BELOW
from saeforest.run_folder import RunFolder
from saeforest.saes import SAE, HSAEConfig, TreeConfig, TreeSAE, build
from saeforest.session import open_reader
from saeforest.structure.shuffled import shuffled_parents
from subject_cases import but

QUICK = ScrConfig(n=(1, 2, 4), epochs=4, random_draws=2)


def subject_of(sae: SAE, texts: ReadTexts) -> Subject:
    return but(without_forest(sae, texts), forest=sae.forest)


def texts_of(x: list[np.ndarray], quadrant: np.ndarray) -> ReadTexts:
    config = TwoLabelTextConfig(train=2, test=1)
    train, test = divide(quadrant, config)
    tokens = torch.from_numpy(np.concatenate(x)).float()
    classes = ("p & m", "p & f", "n & m", "n & f")
    return ReadTexts(config, classes, tokens, np.array([len(t) for t in x]), train, test, len(tokens))


def test_the_specifications_vector() -> None:
    """Section 10, 9: accuracies of 0.55, 0.75 and 0.95; a gap below 0.001 gives 0."""
    before, after, best = (
        np.array([0.55, 0.5, 0.7]),
        np.array([0.75, 0.6, 0.6]),
        np.array([0.95, 0.5009, 0.6]),
    )
    assert scr_score(before, after, best) == pytest.approx([0.5, 0, 0])
    assert [oracle.score(*v) for v in zip(before, after, best, strict=True)] == pytest.approx([0.5, 0, 0])


def test_the_texts_of_each_probe() -> None:
    rows, own = balanced(np.arange(16).reshape(4, 4))
    assert rows.tolist() == [
        [0, 1, 4, 5, 8, 9, 12, 13],
        [0, 1, 8, 9, 4, 5, 12, 13],
        [0, 1, 2, 3, 12, 13, 14, 15],
    ]
    assert own.tolist() == [True] * 4 + [False] * 4
    assert balanced(np.arange(4).reshape(4, 1))[0].tolist() == [[0, 1, 2, 3], [0, 2, 1, 3], [0, 0, 3, 3]]


def test_random_features_are_active_as_often() -> None:
    fired = np.array([5.0, 100, 6, 90, 0, 110, 4, 1000])
    usable = np.ones(8, dtype=bool)
    usable[7] = False
    drawn = alike(np.array([0, 1]), fired, usable, np.random.default_rng(0)).tolist()
    assert len({*drawn}) == 2
    assert {*drawn} <= {2, 3, 5, 6}
    assert alike(np.array([0, 1, 2, 3]), fired, usable, np.random.default_rng(0)).tolist() in ([5, 6], [6, 5])


@pytest.mark.parametrize("normalize", ["layer_norm", "none"])
def test_record_against_ablation_token_by_token(normalize: Any) -> None:
    rng = np.random.default_rng(2)
    sae = TreeSAE(
        TreeConfig(layer_sizes=(8, 24), k_per_layer=(4, 4), normalize_activations=normalize), D, seed=5
    )
    quadrant = np.repeat(np.arange(4), 24)
    towards = rng.normal(size=(2, D))
    x = [
        rng.uniform(1, 4)
        * (
            rng.normal(size=(int(rng.integers(1, 5)), D))
            + 0.5 * towards[0] * (q < 2)
            + 0.8 * towards[1] * (q % 2)
        )
        for q in quadrant
    ]
    texts = texts_of(x, quadrant)
    record = scr(subject_of(sae, texts), QUICK)

    f, scale = [], []
    for t in x:
        with torch.no_grad():
            code, stats = sae.encode_with_stats(torch.from_numpy(t).float())
        f.append(code.dense(sae.d_sae).double().numpy())
        scale.append(stats.std[:, 0].double().numpy())
    decoder = sae.W_dec.detach().double().numpy()
    pooled = mean_over_tokens(x)
    fit, check = apart(texts.train, 0.2)
    label, second, one = range(3)
    probes = fit_probes(texts.pooled, *balanced(fit), *balanced(check), QUICK, 42, by_loss=True)
    rows, own = balanced(texts.train)
    effective = mean_over_tokens([s[:, None] * v for s, v in zip(scale, f, strict=True)])
    asked = texts.test.ravel().tolist()
    answers = {
        "label": [quadrant[t] in (0, 1) for t in asked],
        "second": [quadrant[t] in (0, 2) for t in asked],
    }
    entry = record.detail["pairs"][0]
    active = torch.from_numpy((effective[texts.train.ravel()] > 0).sum(0))
    parents = [sae.parent.tolist(), *(shuffled_parents(sae.forest, active, i).tolist() for i in range(2))]
    changed = moved = grown = 0
    for direction, removed, knows in (("label", second, label), ("second", label, second)):
        answer = answers[direction]
        before, best = (
            oracle.accuracy(pooled, probes.weight[p], probes.bias[p], asked, answer) for p in (one, knows)
        )
        assert entry[direction]["before"] == pytest.approx(before)
        assert entry[direction]["best"] == pytest.approx(best)
        for n in QUICK.n:
            found = oracle.features(
                effective, decoder, probes.weight[removed], rows[removed].tolist(), own.tolist(), n
            )
            assert entry[direction]["features"][:n] == found
            after = oracle.after_ablation(
                x, f, scale, decoder, found, probes.weight[one], probes.bias[one], asked, answer
            )
            changed += after != before
            subtrees = [oracle.subtrees(of, found) for of in parents]
            grown += len(subtrees[0]) - len(found)
            true, *shuffled = (
                oracle.after_ablation(
                    x, f, scale, decoder, whole, probes.weight[one], probes.bias[one], asked, answer
                )
                for whole in subtrees
            )
            moved += true != after
            assert entry[direction]["below"][str(n)] == len(subtrees[0]) - len(found)
            for name, accuracy in (("subtree", true), ("subtree_shuffled", float(np.mean(shuffled)))):
                assert entry[direction][f"after_{name}"][str(n)] == pytest.approx(accuracy)
                if entry["reported"] == direction:
                    value = oracle.score(before, accuracy, best)
                    assert record.value[f"scr_{name}_{n}"] == pytest.approx(value)
            assert entry[direction]["after"][str(n)] == pytest.approx(after)
            expected = oracle.score(before, after, best)
            assert record.value[f"scr_{direction}_{n}"] == pytest.approx(expected)
            if entry["reported"] == direction:
                assert record.value[f"scr_{n}"] == pytest.approx(expected)
                assert record.value["accuracy_before"] == pytest.approx(before)
                assert record.interval[f"scr_{n}"] is not None
    assert changed >= 2
    assert grown >= 2
    # With other units no answer is near enough to its threshold.
    assert moved >= (normalize == "layer_norm")
    over = record.value["scr_subtree_2"], record.value["scr_subtree_shuffled_2"]
    assert record.value["scr_subtree_over_shuffled_2"] == pytest.approx((over[0] or 0) - (over[1] or 0))
    lower = min(answers, key=lambda d: entry[d]["before"])
    assert entry["reported"] == lower


def planted(n: int = 40) -> ReadTexts:
    """The first label is feature 3 against 4, the second feature 5 against 6, twice as strong."""
    rng = np.random.default_rng(0)
    quadrant = np.repeat(np.arange(4), n)
    x = []
    for q in quadrant:
        tokens = 0.3 * rng.random((int(rng.integers(3, 6)), D))
        tokens[:, 3:7] = 0
        tokens[:, 3 + q // 2] = 3 + rng.random()
        tokens[:, 5 + q % 2] = 6 + rng.random()
        x.append(tokens)
    return texts_of(x, quadrant)


def test_the_planted_features_are_what_removes_the_second_label() -> None:
    config = ScrConfig(n=(2, 13), lr=0.02, epochs=10, random_draws=3)
    record = scr(subject_of(planted_sae(), planted()), config)
    entry = record.detail["pairs"][0]
    assert entry["reported"] == "label"  # the probe of both has learned the stronger, second label
    assert entry["label"]["before"] < 0.7
    assert entry["label"]["best"] == 1
    assert {*entry["label"]["features"][:2]} == {5, 6}
    value, random = record.value["scr_2"], record.value["scr_random_2"]
    assert value is not None
    assert random is not None
    assert value > 0.9
    assert abs(random) < 0.3
    assert record.value["scr_over_random_2"] == pytest.approx(value - random)
    assert record.value["scr_13"] is None
    assert record.null["scr_13"] == "only 12 features take part in the reconstruction"
    assert record.null["scr_subtree_over_shuffled_2"] == NO_EDGES


def test_levels_that_reconstruct_alone_have_no_subtrees() -> None:
    sae = build(HSAEConfig((4, 8), (2, 3), normalize_activations="none"), D, seed=0).eval()
    sae.parent[4:] = torch.arange(8) % 4
    record = scr(subject_of(sae, planted()), QUICK)
    assert record.value["scr_2"] is not None
    assert record.null["scr_subtree_2"] == NOTHING_BELOW


def test_a_dead_sae_removes_nothing() -> None:
    sae = planted_sae()
    sae.encoder.data = -torch.eye(D)
    record = scr(subject_of(sae, planted()), QUICK)
    assert all(record.value[f"scr_{kind}{n}"] == 0 for kind in ("", "random_", "second_") for n in QUICK.n)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ScrConfig(n=(0,)), r"scr\.n = \[0\]"),
        (lambda: ScrConfig(random_draws=0), r"scr\.random_draws = 0: expected 1 or more"),
        (lambda: ScrConfig(lr=-1.0), r"scr\.lr = -1\.0"),
        (
            lambda: TwoLabelTextConfig(pairs=("nurse",)),
            r"texts\.pairs = 'nurse': expected two different labels",
        ),
        (lambda: TwoLabelTextConfig(second="a:a"), r"texts\.second = 'a:a'"),
        (
            lambda: TwoLabelTextConfig(pairs=("a:b", "b:c")),
            r"texts\.pairs = \['a:b', 'b:c'\]: expected each label in",
        ),
        (lambda: TwoLabelTextConfig(classes=("a", "b")), r"texts\.classes: expected none"),
        (
            lambda: TwoLabelTextConfig(pairs=("nurse:pilot",)).read(),
            "0 texts have the labels 'pilot' and 'male'",
        ),
    ],
)
def test_wrong_configurations(make: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


def test_pairs_are_those_of_saebench_or_the_most_frequent(tmp_path: Path) -> None:
    config = TwoLabelTextConfig(train=160, test=80)
    classes, texts = choose(config.read(), config)
    assert classes[:4] == ("professor & male", "professor & female", "nurse & male", "nurse & female")
    assert len(classes) == 16
    assert len(texts) == 240
    path = tmp_path / "mine.csv"
    rows = [
        f"text {n} {a} {b},{a},{b}"
        for a, most in (("x", 12), ("y", 11), ("z", 9))
        for b in "uv"
        for n in range(most)
    ]
    path.write_text("text,label,second_label\n" + "\n".join(rows) + "\n", encoding="utf-8")
    config = TwoLabelTextConfig(source=str(path))
    assert choose(config.read(), config)[0] == ("x & u", "x & v", "y & u", "y & v")
    path.write_text("text,label,second_label\n" + "\n".join(rows[:24]) + "\n", encoding="utf-8")
    with pytest.raises(InputError, match="expected two labels with 10 or more texts of each second label"):
        config.read()


def test_a_record_of_a_run(finished_run: Path) -> None:
    config, sae = RunFolder(finished_run).load()
    reader = open_reader(config)
    settings = ScrConfig(
        texts=TwoLabelTextConfig(pairs=("nurse:teacher",), train=48, test=24), n=(2, 500), epochs=3
    )
    subject = subject_of(sae, read_texts(reader, settings.texts))
    record = scr(subject, settings)
    assert record.settings["classes"] == [
        "nurse & male",
        "nurse & female",
        "teacher & male",
        "teacher & female",
    ]
    assert record.value["scr_2"] is not None
    assert record.value["scr_500"] is None
    assert scr(subject, settings) == record
