"""Unlearning: the choice of features and the clamping against slow arithmetic, exams, and records of whole settings."""

from __future__ import annotations

import json
import re
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from measure_cases import SITE, D, tree_sae
from oracles import unlearning as oracle
from saeforest.activations import ActivationReader
from saeforest.errors import InputError
from saeforest.lm import LanguageModel, load_lm
from saeforest.measures import unlearning as module
from saeforest.measures.exams import question_exam, question_text, text_exam
from saeforest.measures.unlearning import (
    UnlearningConfig,
    active_share,
    least_accuracy,
    top_features,
    unlearning,
)
from saeforest.text.questions import Question
from subject_cases import given


def write_text(path: Path, n: int, words: range, seed: int) -> str:
    rng = np.random.default_rng(seed)
    rows = [" ".join(f"w{i}" for i in rng.choice(list(words), 30)) for _ in range(n)]
    path.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def config(tmp_path: Path) -> UnlearningConfig:
    forget = write_text(tmp_path / "forget.jsonl", 30, range(3, 18), 0)
    retain = write_text(tmp_path / "retain.jsonl", 30, range(12, 30), 1)
    return UnlearningConfig(
        forget, retain, documents=12, test=16, context=20, thresholds=(0.2, 0.4), n=(3,), strengths=(30.0,),
        units="code", random_draws=2,
    )  # fmt: skip


def test_features_by_hand() -> None:
    forget, retain = np.array([0.5, 0.0, 0.3, 0.3, 0.9]), np.array([0.01, 0.0, 0.0, 0.0, 0.2])
    assert top_features(forget, retain, 0.1, 3).tolist() == [0, 2, 3]
    assert top_features(forget, retain, 0.01, 5).tolist() == [2, 3]
    assert least_accuracy(np.array([0.4, 0.1, 0.6]), np.array([0.99, 0.98, 1.0])) == 0
    assert least_accuracy(np.array([0.4]), np.array([0.9])) is None
    assert oracle.score([0.4, 0.1, 0.6], [0.99, 0.98, 1.0]) == 0.6
    assert oracle.score([0.4], [0.9]) == 0
    for threshold, n in ((0.1, 3), (0.01, 5)):
        assert top_features(forget, retain, threshold, n).tolist() == oracle.features(
            forget.tolist(), retain.tolist(), threshold, n
        )


def test_records_against_slow_arithmetic(lm: LanguageModel, config: UnlearningConfig) -> None:
    """Without padding, one document at a time; the score on the documents that were not chosen on."""
    sae, reader = tree_sae(), ActivationReader(lm, lm.site(SITE), batch_size=4)
    on: list[Any] = ["all", "half"]
    records = {
        choose_on: unlearning(
            given(sae, {"sae": "test"}, language_model=reader),
            UnlearningConfig(**{**vars(config), "choose_on": choose_on}),
        )
        for choose_on in on
    }
    texts = [module._read(source, reader, config) for source in (config.forget, config.retain)]
    assert [(len(t.choose), len(t.test)) for t in texts] == [(12, 16)] * 2
    decoder = sae.W_dec.detach().double().numpy()

    @torch.no_grad()
    def codes_of(x: Tensor) -> tuple[np.ndarray, np.ndarray]:
        code, stats = sae.encode_with_stats(x.float())
        return code.dense(sae.d_sae).detach().double().numpy(), stats.std.expand(len(x), 1)[
            :, 0
        ].double().numpy()

    shares = []
    for text in texts:
        every = []
        for row in text.choose:
            ids = torch.tensor([row])
            every += list(codes_of(lm.activations(ids, reader.site)[0][reader.keep(ids)[0]])[0])
        shares.append(oracle.active_share(every))
        np.testing.assert_allclose(active_share(sae, reader, text.choose), shares[-1])

    @cache
    def clean(row: tuple[int, ...]) -> np.ndarray:
        return hits(list(row))

    def hits(row: list[int], hooks: Any = None) -> np.ndarray:
        return (lm.logits(torch.tensor([row]), hooks)[0, :-1].argmax(-1) == torch.tensor(row[1:])).numpy()

    @torch.no_grad()
    def kept_right(row: list[int], chosen: list[int], strength: float) -> int:
        keep = reader.keep(torch.tensor([row]))[0].tolist()

        def hook(x: Tensor) -> Tensor:
            f, scale = codes_of(x[0])
            rows = [
                oracle.clamped(v, f[t], scale[t], decoder, chosen, strength) if keep[t] else v
                for t, v in enumerate(x[0].double().numpy())
            ]
            return torch.from_numpy(np.stack(rows))[None].float()

        return int((hits(row, {SITE: hook}) & clean(tuple(row))).sum())

    rows = [[row for row in text.test if hits(row).any()] for text in texts]
    total = [np.array([hits(row).sum() for row in some]) for some in rows]
    seen, found = [], []
    for threshold, n in product(config.thresholds, config.n):
        chosen = oracle.features(shares[0], shares[1], threshold, n)
        if chosen and chosen not in seen:
            seen.append(chosen)
            for strength in config.strengths:
                right = [np.array([kept_right(row, chosen, strength) for row in some]) for some in rows]
                found.append(right)
    assert len(found) == 2
    order = np.random.default_rng((config.seed, 1))
    halves = [order.permutation(len(some)) for some in rows]
    for choose_on, record in records.items():
        choose = [at if choose_on == "all" else at[: len(at) // 2] for at in halves]
        scored = [at if choose_on == "all" else at[len(at) // 2 :] for at in halves]
        accuracy = [
            [right[i][choose[i]].sum() / total[i][choose[i]].sum() for right in found] for i in range(2)
        ]
        assert record.settings["right"] == [int(t.sum()) for t in total]
        assert [e["forget"] for e in record.detail["settings"]] == pytest.approx(accuracy[0])
        assert [e["retain"] for e in record.detail["settings"]] == pytest.approx(accuracy[1])
        assert min(accuracy[0]) < 1
        best = least_accuracy(np.array(accuracy[0]), np.array(accuracy[1]))
        expected = 0.0 if best is None else 1 - found[best][0][scored[0]].sum() / total[0][scored[0]].sum()
        assert record.value["unlearning"] == pytest.approx(expected)
        if best is None:
            assert record.null["retained"].startswith("no setting keeps 99 %")
        if choose_on == "all":
            assert expected == pytest.approx(oracle.score(*accuracy))


def test_a_planted_feature_is_forgotten(
    lm: LanguageModel, config: UnlearningConfig, monkeypatch: Any
) -> None:
    """With no limit on what is lost, clamping far enough below zero breaks what the features stand for."""
    monkeypatch.setattr(module, "_RETAINED", 0.0)
    sae, reader = tree_sae(), ActivationReader(lm, lm.site(SITE), batch_size=16)
    record = unlearning(given(sae, {"sae": "test"}, language_model=reader), config)
    value, random = record.value["unlearning"], record.value["unlearning_random"]
    assert value is not None
    assert random is not None
    assert value > 0.1
    assert record.value["unlearning_over_random"] == pytest.approx(value - random)
    interval = record.interval["unlearning"]
    assert interval is not None
    assert interval[0] <= value <= interval[1]
    assert record.detail["chosen"]["strength"] == 30
    relative = UnlearningConfig(**{**vars(config), "units": "relative", "strengths": (1.0,)})
    strength = unlearning(given(sae, {}, language_model=reader), relative).detail["settings"][0]["strength"]
    assert strength == pytest.approx(D**0.5, rel=0.05)  # an activation is normalized to this length


def test_exams(lm: LanguageModel) -> None:
    reader = ActivationReader(lm, lm.site(SITE), batch_size=3)
    rows = [
        torch.randint(3, 30, (n,), generator=torch.Generator().manual_seed(n)).tolist() for n in range(16, 30)
    ]
    exam = text_exam(reader, rows)
    clean = [
        int((lm.logits(torch.tensor([r]))[0, :-1].argmax(-1) == torch.tensor(r[1:])).sum()) for r in rows
    ]
    assert exam.total.tolist() == [n for n in clean if n]
    np.testing.assert_array_equal(exam.right(reader, lambda _: None), exam.total)
    with pytest.raises(InputError, match="no token for the letter A"):
        question_exam(reader, [Question("w3?", ("w4", "w5", "w6", "w7"), 1, "words")], False)


def test_questions_that_are_known_in_every_order(tiny_model: Path, monkeypatch: Any) -> None:
    """With a model that finds the color in any order, and answers A where there is none."""
    lm = load_lm(str(tiny_model))
    reader = ActivationReader(lm, lm.site("blocks.0.hook_resid_post"), batch_size=24)
    color = Question("Which is a color?", ("seven", "blue", "table", "run"), 1, "words")
    number = Question("Which is a number?", color.choices, 0, "words")
    neither = Question("Which is an animal?", ("cat", "two", "three", "four"), 0, "words")
    assert question_text(color, [1, 0, 3, 2]) == (
        "The following are multiple choice questions (with answers) about words.\nWhich is a color?"
        "\nA. blue\nB. seven\nC. run\nD. table"
    )

    def logits(_: Any, ids: Tensor, hooks: Any = None) -> Tensor:
        out = torch.zeros(*ids.shape, 257)
        for row, text in zip(out, lm.tokenizer.batch_decode(ids), strict=True):
            found = re.search(r"([A-D])\. blue", text)
            row[:, ord(found[1] if found else "A")] = 1
        return out

    monkeypatch.setattr(type(lm), "logits", logits)
    exam = question_exam(reader, [number, color, neither], False)
    assert [lm.tokenizer.decode(row) for row in exam.rows] == [question_text(color, range(4)) + "\nAnswer:"]
    assert exam.right(reader, lambda _: None).tolist() == exam.total.tolist() == [1]
    with pytest.raises(InputError, match=r"no chat template; leave out unlearning\.chat"):
        question_exam(reader, [color], True)


def test_too_little_to_score(lm: LanguageModel, config: UnlearningConfig) -> None:
    reader = ActivationReader(lm, lm.site(SITE), batch_size=8)
    sae = tree_sae()
    rare = UnlearningConfig(**{**vars(config), "thresholds": (1e-9,)})
    record = unlearning(given(sae, {"sae": "test"}, language_model=reader), rare)
    if record.value["unlearning"] is None:
        assert record.null["unlearning"] == (
            "no feature is active in the text to forget and rare enough in the text to retain"
        )
    few = write_text(Path(config.forget), 5, range(3, 18), 0)
    with pytest.raises(
        InputError, match=r"forget\.jsonl': 5 documents have 16 or more tokens; expected 8 or more"
    ):
        unlearning(given(sae, {}, language_model=reader), UnlearningConfig(**{**vars(config), "forget": few}))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"documents": 0}, r"unlearning\.documents = 0: expected 1 or more"),
        ({"n": (3, 3)}, r"unlearning\.n = \[3, 3\]: expected different numbers above 0"),
        ({"strengths": ()}, r"unlearning\.strengths = \[\]"),
        ({"forget_questions": "a.jsonl"}, r"unlearning\.retain_questions: expected questions here too"),
    ],
)
def test_wrong_configurations(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        UnlearningConfig(**wrong)


def test_no_such_topic(lm: LanguageModel, monkeypatch: Any) -> None:
    reader = ActivationReader(lm, lm.site(SITE))
    with pytest.raises(InputError, match="no such topic; expected one of Arts, "):
        unlearning(
            given(tree_sae(), {}, language_model=reader), UnlearningConfig(forget="packaged:topics/Cheese")
        )
