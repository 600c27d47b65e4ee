"""Automated interpretability: the choice of windows against an oracle, their text, and judges of every kind."""

from __future__ import annotations

import json
import math
import re
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from judge_cases import BUFFER, CONTEXT, LETTERS, Fake, dense, marked, world
from oracles import autointerp as oracle
from saeforest.errors import InputError
from saeforest.judges import NO_JUDGE, Judge, JudgeConfig, open_judge
from saeforest.lm import LanguageModel, load_tokenizer
from saeforest.measures.autointerp import (
    AutoInterpConfig,
    autointerp,
    make_trial,
    parse_explanation,
    parse_indices,
)
from saeforest.measures.examples import FeatureWindows, window_text
from saeforest.measures.record import Record
from saeforest.measures.subject import Firings, Subject
from saeforest.sparse_code import SparseCode
from saeforest.structure.forest import flat_forest
from saeforest.structure.pairs import PairStatistics
from subject_cases import but, lazily, never

CONFIG = AutoInterpConfig(buffer=BUFFER, features=10)
FIRES = 7  # features; the eighth never does
SCORES = ("autointerp_score", "chance_none", "multi_child", "other")


def judged(subject: Subject, config: AutoInterpConfig, judge: Judge | None = None) -> Record:
    """What a judge makes of it."""
    return autointerp(but(subject, judge=judge), config)


@pytest.fixture(scope="module")
def seen(tiny_model: Path) -> Subject:
    return world(tiny_model)


def rows(found: list[oracle.Centre]) -> list[int]:
    return [w * CONTEXT + p for w, p in found]


# ---- the choice of windows


@pytest.mark.parametrize("feature", range(FIRES))
def test_top_windows_equal_the_oracle(seen: Subject, feature: int) -> None:
    a = dense(seen)[:, :, feature]
    windows = FeatureWindows(seen, feature, BUFFER)
    for n in (1, 12, 10_000):
        assert windows.top(n).tolist() == rows(oracle.top(a, BUFFER, n))
    found = windows.top(12)
    assert len(found) == 12
    apart = np.abs(found[:, None] - found)[~np.eye(12, dtype=bool)]
    same = (found[:, None] // CONTEXT == found // CONTEXT)[~np.eye(12, dtype=bool)]
    assert (apart[same] > BUFFER).all()
    np.testing.assert_array_equal(
        windows.around(found), [oracle.window(a, (r // CONTEXT, r % CONTEXT), BUFFER) for r in found]
    )
    assert windows.level(found) == 0.01 * windows.around(found).max()


def test_of_equal_peaks_the_earlier_comes_first(seen: Subject) -> None:
    same = PairStatistics(1)
    same.add(SparseCode(torch.ones(len(seen.rows), 1), torch.zeros(len(seen.rows), 1, dtype=torch.int64)))
    windows = FeatureWindows(but(seen, firings=Firings(seen.rows, same)), 0, BUFFER)
    step = BUFFER + 1
    first = [BUFFER + i * step for i in range(-(-(CONTEXT - 2 * BUFFER) // step))]
    assert windows.top(len(first) + 1).tolist() == [*first, CONTEXT + BUFFER]
    assert len(windows.silent(5, np.random.default_rng(0))) == 0
    assert len(windows.sampled(5, 1.0, 2, np.random.default_rng(0))) == 0
    assert make_trial(but(seen, firings=Firings(seen.rows, same)), 0, CONFIG) is None


@pytest.mark.parametrize("power", [1, 2])
def test_sampled_windows_come_as_often_as_they_should(seen: Subject, power: int) -> None:
    windows = FeatureWindows(seen, 3, BUFFER)
    below = float(windows.values[windows.top(12)].min())
    wanted = oracle.sampling(dense(seen)[:, :, 3], BUFFER, below, power)
    rng = np.random.default_rng(0)
    n = 4000
    drawn = [int(windows.sampled(1, below, power, rng)[0]) for _ in range(n)]
    assert set(drawn) <= set(rows(list(wanted)))
    for centre, p in wanted.items():
        assert abs(drawn.count(rows([centre])[0]) - n * p) < 5 * math.sqrt(n * p * (1 - p))
    # The powers are far enough apart for this to tell them: the largest value's share differs by more.
    assert len({round(p, 4) for p in wanted.values()}) > 5


def test_sampled_windows_are_different_and_not_among_the_top(seen: Subject) -> None:
    windows = FeatureWindows(seen, 0, BUFFER)
    top = windows.top(12)
    below = float(windows.values[top].min())
    everything = windows.sampled(10_000, below, 2, np.random.default_rng(1))
    assert sorted(everything) == sorted(rows(list(oracle.sampling(dense(seen)[:, :, 0], BUFFER, below, 2))))
    assert not set(everything) & set(top)
    some = windows.sampled(7, below, 2, np.random.default_rng(1))
    assert len(set(some)) == 7


@pytest.mark.parametrize("feature", range(len(LETTERS)))
def test_silent_windows_equal_the_oracle(seen: Subject, feature: int) -> None:
    windows = FeatureWindows(seen, feature, BUFFER)
    a = dense(seen)[:, :, feature]
    found = windows.silent(10**6, np.random.default_rng(0))
    assert sorted(found) == sorted(rows(list(oracle.silent(a, BUFFER))))
    assert windows.around(found).max() == 0


def test_windows_anywhere_are_whole_and_may_show_the_feature(seen: Subject) -> None:
    windows = FeatureWindows(seen, 0, BUFFER)
    found = windows.anywhere(5000, np.random.default_rng(0))
    position = found % CONTEXT
    assert (position.min(), position.max()) == (BUFFER, CONTEXT - BUFFER - 1)
    assert (found.min() // CONTEXT, found.max() // CONTEXT) == (0, len(seen.tokens.ids) - 1)
    fires = windows.around(found).max(1) > 0
    allowed = len(oracle.silent(dense(seen)[:, :, 0], BUFFER)) / len(
        oracle.centres(dense(seen)[:, :, 0], BUFFER)
    )
    assert abs((~fires).mean() - allowed) < 0.04


@pytest.mark.parametrize("random", ["checked", "unchecked"])
def test_a_trial_is_what_the_specification_says(seen: Subject, random: str) -> None:
    config = replace(CONFIG, random=random)
    firing_negatives = 0
    for feature in range(FIRES):
        trial = make_trial(seen, feature, config)
        assert trial is not None
        assert (len(trial.shown), len(trial.asked), trial.truth.sum()) == (15, 14, 4)
        assert not any("<<" in text for text in trial.asked)
        assert all(marked(text) for text in trial.shown)
        letters = set(LETTERS[feature])
        for text, active in zip(trial.asked, trial.truth, strict=True):
            if active:
                assert letters & set(text)
            else:
                firing_negatives += bool(letters & set(text))
        sample = [int(i) for i in trial.sample_reply.split(", ")]
        assert len(sample) == 4
        assert sample == sorted(set(sample))
        assert sample[0] >= 1
        assert sample[-1] <= 14
        strongest = set(FeatureWindows(seen, feature, BUFFER).texts(
            FeatureWindows(seen, feature, BUFFER).top(12), 0.0))  # fmt: skip
        assert len(strongest & set(trial.shown)) == 10
    assert (firing_negatives > 0) == (random == "unchecked")
    orders = {tuple(make_trial(seen, f, config).truth) for f in range(FIRES)}  # pyright: ignore[reportOptionalMemberAccess]
    assert len(orders) == FIRES


def test_windows_are_sampled_by_the_square_of_values_below_the_top(
    seen: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[tuple[int, float, float]] = []
    sampled = FeatureWindows.sampled

    def spy(self: FeatureWindows, n: int, below: float, power: float, rng: np.random.Generator) -> np.ndarray:
        given.append((n, below, power))
        return sampled(self, n, below, power, rng)

    monkeypatch.setattr(FeatureWindows, "sampled", spy)
    make_trial(seen, 4, CONFIG)
    windows = FeatureWindows(seen, 4, BUFFER)
    assert given == [(7, windows.values[windows.top(12)].min(), 2)]


def test_what_is_below_a_hundredth_of_the_largest_is_not_active(seen: Subject) -> None:
    windows = FeatureWindows(seen, 0, BUFFER)
    large = windows.top(12)
    apart = ~np.isin(windows.centers // CONTEXT, large // CONTEXT)
    values = torch.zeros(seen.tokens.n_tokens)
    values[windows.centers[apart]] = 0.0099
    values[large] = 1.0
    one = PairStatistics(1)
    one.add(SparseCode(values[seen.rows, None], torch.zeros(len(seen.rows), 1, dtype=torch.int64)))
    trial = make_trial(but(seen, firings=Firings(seen.rows, one)), 0, CONFIG)
    assert trial is not None
    assert trial.truth.sum() == 2
    assert [bool(marked(text)) for text in trial.shown] == [True] * 10 + [False] * 5


def test_shown_windows_are_sorted_by_their_largest_value(seen: Subject) -> None:
    trial = make_trial(seen, 1, CONFIG)
    assert trial is not None
    windows = FeatureWindows(seen, 1, BUFFER)
    everywhere = windows.texts(windows.centers, mark_above=0.0)
    largest = dict(zip(everywhere, windows.around(windows.centers).max(1), strict=True))
    peaks = [largest[text] for text in trial.shown]
    assert peaks == sorted(peaks, reverse=True)


def test_an_excluded_position_counts_as_silent(seen: Subject) -> None:
    windows = FeatureWindows(seen, 0, BUFFER)
    first = np.arange(0, seen.tokens.n_tokens, CONTEXT)
    letters = [chr(i) for i in seen.tokens.ids.flatten()[first]]
    assert set(letters) & set(LETTERS[0])
    assert (windows.values[first] == 0).all()


# ---- the text of windows


@pytest.mark.parametrize(
    ("text", "on", "wanted"),
    [
        ("abc", [0, 0, 0], "abc"),
        ("abc", [1, 0, 1], "<<a>>b<<c>>"),
        ("abc", [1, 1, 0], "<<ab>>c"),
        ("abc", [1, 1, 1], "<<abc>>"),
        ("a\nb", [0, 1, 0], "a<<↵>>b"),
        ("aéb", [0, 0, 1, 0], "a<<é>>b"),
        ("aéb", [0, 1, 0, 1], "a<<éb>>"),
        ("\x1b[2J", [0, 0, 0, 1], "␛[2<<J>>"),
        ("北京", [0, 1, 0, 0, 0, 1], "<<北京>>"),
    ],
)
def test_the_text_of_a_window(tiny_model: Path, text: str, on: list[int], wanted: str) -> None:
    tokenizer = load_tokenizer(str(tiny_model))
    assert window_text(list(text.encode()), np.array(on, dtype=bool), tokenizer) == wanted


def test_a_window_may_be_cut_inside_a_character(tiny_model: Path) -> None:
    tokenizer = load_tokenizer(str(tiny_model))
    ids = list("éaé".encode())[1:-1]
    for on in np.ndindex(2, 2, 2):
        said = window_text(ids, np.array(on, dtype=bool), tokenizer)
        assert said.replace("<<", "").replace(">>", "") == "\ufffda\ufffd"
        assert (("a" in marked(said)), said.count("<<") > 0) == (bool(on[1]), any(on))


# ---- replies


@pytest.mark.parametrize(
    ("reply", "wanted"),
    [
        ("None", set()), (" none. ", set()), ("NONE", set()), ("3", {3}), ("1, 14", {1, 14}), ("1,2,3.", {1, 2, 3}),
        ("\n2 , 5\n", {2, 5}),
        ("", None), (".", None), ("0", None), ("15", None), ("1, 15", None), ("-1", None), ("1.5", None),
        ("1 2", None), ("1, 2,", None), (",1", None), ("1, , 2", None), ("1, 1", None), ("1 and 2", None),
        ("None, 1", None), ("Passages 1, 2", None), ("[1, 2]", None), ("١", None), ("1; 2", None), ("1, 2 ...", None),
        ("1" * 5000, None), ("nothing", None), ("None of them", None), ("1, 2\nbecause", None),
    ],
)  # fmt: skip
def test_indices_are_read_strictly(reply: str, wanted: set[int] | None) -> None:
    assert parse_indices(reply, 14) == wanted


@pytest.mark.parametrize(
    ("reply", "wanted"),
    [
        ("This unit activates on verbs.", "verbs"),
        ("This unit ACTIVATES ON\n verbs\nof  motion. ", "verbs of motion"),
        ("names of rivers", "names of rivers"),
        ("activates on what activates on", "what activates on"),
        ("", None), (" \n", None), ("This unit activates on", None), ("activates on ...", None),
    ],
)  # fmt: skip
def test_explanations_are_read(reply: str, wanted: str | None) -> None:
    assert parse_explanation(reply) == wanted


# ---- judges


def reader_of_marks(system: str, user: str) -> str:
    """Explains by the marked letters, and finds them again."""
    if "Passages:" not in user:
        return f"This unit activates on the letters {' '.join(sorted(marked(user)))}."
    explanation, passages = user.split("\n\nPassages:\n")
    letters = set(explanation.split("letters ")[1].split())
    texts = [line.split(". ", 1)[1] for line in passages.splitlines()]
    assert len(texts) == 14
    return ", ".join(str(i) for i, text in enumerate(texts, 1) if letters & set(text)) or "None"


def none_of_them(system: str, user: str) -> str:
    return "None"


def test_a_judge_that_reads_the_marks_is_always_right(seen: Subject) -> None:
    judge = Fake(reader_of_marks)
    record = judged(seen, CONFIG, judge)
    assert record.value == {
        "autointerp_score": 1.0, "chance_none": 10 / 14, "multi_child": 1.0, "other": 1.0,
        "scored": FIRES, "unparsable": 0, "skipped": 0,
    }  # fmt: skip
    assert record.interval["autointerp_score"] == (1.0, 1.0)
    assert record.tokens == len(seen.rows)
    assert record.settings["judge"] == "fake"
    assert record.settings["config"] == asdict(CONFIG)
    assert {f["feature"] for f in record.detail["features"]} == set(range(FIRES))
    assert all(f["predicted"] == f["truth"] for f in record.detail["features"])
    for f in record.detail["features"]:
        assert set(f["explanation"].removeprefix("the letters ").split()) == set(LETTERS[f["feature"]])
    assert {tokens for *_, tokens in judge.asked} == {30, 33}
    assert len(judge.asked) == 2 * FIRES


def test_a_judge_that_always_says_none(seen: Subject) -> None:
    record = judged(seen, CONFIG, Fake(none_of_them))
    assert record.value["autointerp_score"] == pytest.approx(10 / 14, abs=1e-15)
    assert record.value["chance_none"] == record.value["autointerp_score"]


def test_where_it_is_not_checked_the_one_who_reads_seems_wrong(seen: Subject) -> None:
    record = judged(seen, replace(CONFIG, random="unchecked"), Fake(reader_of_marks))
    score = record.value["autointerp_score"]
    assert score is not None
    assert 0.4 < score < 0.95


def test_scores_equal_the_oracle_for_any_judge(seen: Subject) -> None:
    rng = np.random.default_rng(0)

    def guess(system: str, user: str) -> str:
        return ", ".join(map(str, rng.choice(14, rng.integers(1, 15), replace=False) + 1))

    record = judged(seen, CONFIG, Fake(guess))
    wanted = {}
    for f in record.detail["features"]:
        wanted[f["feature"]] = oracle.score(set(f["predicted"]), [i in f["truth"] for i in range(1, 15)])
        assert f["score"] == pytest.approx(wanted[f["feature"]], abs=1e-15)
    assert record.value["autointerp_score"] == pytest.approx(np.mean(list(wanted.values())), abs=1e-14)
    # Features 0 and 2 have two children, 1 has one.
    assert record.value["multi_child"] == pytest.approx((wanted[0] + wanted[2]) / 2, abs=1e-14)
    assert record.value["other"] == pytest.approx(np.mean([wanted[f] for f in (1, 3, 4, 5, 6)]), abs=1e-14)
    assert [(b["children"], b["features"]) for b in record.detail["branching"]] == [(0, 4), (1, 1), (2, 2)]
    assert record.detail["branching"][1]["score"] == pytest.approx(wanted[1], abs=1e-14)
    low, high = record.interval["autointerp_score"] or (0, 0)
    assert low < np.mean(list(wanted.values())) < high


def test_a_judge_that_talks_nonsense(seen: Subject, tmp_path: Path) -> None:
    record = judged(seen, CONFIG, Fake(lambda system, user: "I think that it is, hm, 3 perhaps"))
    assert record.value == {**dict.fromkeys(SCORES), "scored": 0, "unparsable": FIRES, "skipped": 0}
    assert record.null == dict.fromkeys(SCORES, "no reply of the judge could be parsed")
    record.write(tmp_path / "autointerp.json")
    assert Record.read(tmp_path / "autointerp.json") == record


def test_a_feature_without_an_explanation_is_not_asked_about_again(seen: Subject) -> None:
    judge = Fake(lambda system, user: "")
    record = judged(seen, CONFIG, judge)
    assert record.value["unparsable"] == FIRES
    assert len(judge.asked) == FIRES


def test_some_replies_that_cannot_be_read(seen: Subject) -> None:
    calls = iter(range(100))

    def sometimes(system: str, user: str) -> str:
        return reader_of_marks(system, user) if next(calls) % 2 or "Passages:" not in user else "?"

    record = judged(seen, CONFIG, Fake(sometimes))
    assert record.value["autointerp_score"] == 1
    assert (record.value["scored"], record.value["unparsable"]) == (4, 3)


def test_without_a_judge_the_record_says_what_to_set(seen: Subject) -> None:
    record = judged(seen, CONFIG)
    assert record.value == {**dict.fromkeys(SCORES), "scored": 0, "unparsable": 0, "skipped": 0}
    assert record.null == dict.fromkeys(SCORES, NO_JUDGE)
    assert record.settings["judge"] is None
    assert "set judge.model to smollm2-135m" in NO_JUDGE
    assert "OPENAI_API_KEY" in NO_JUDGE


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"buffer": 16}, "no window of 33 tokens fits in a context of 32"),
        ({"min_fired": 10**6}, "no feature fires on more than 1000000 tokens and has 12 top windows"),
    ],
)
def test_nothing_to_ask_about(seen: Subject, changes: dict[str, int], why: str) -> None:
    judge = Fake(none_of_them)
    record = judged(seen, replace(CONFIG, **changes), judge)
    assert judge.asked == []
    assert all(why in record.null[name] for name in SCORES)
    # No judge is opened where there is nothing to ask.
    assert autointerp(lazily(seen, "judge", never), replace(CONFIG, **changes)).null == record.null


def test_a_text_too_short_has_no_features_with_enough_windows(tiny_model: Path) -> None:
    record = judged(world(tiny_model, windows=4), replace(CONFIG, min_fired=1), Fake(none_of_them))
    assert record.value["scored"] == 0
    assert record.value["skipped"] == FIRES


def test_a_forest_without_edges(seen: Subject) -> None:
    record = judged(but(seen, forest=flat_forest((8,))), CONFIG, Fake(none_of_them))
    assert record.value["other"] == record.value["autointerp_score"]
    assert record.null == {"multi_child": "no scored feature has two children or more"}


def test_the_seed_draws_features_and_windows(seen: Subject) -> None:
    def drawn(seed: int, features: int = 3) -> tuple[list[int], list[str]]:
        judge = Fake(none_of_them)
        record = judged(seen, replace(CONFIG, seed=seed, features=features), judge)
        return [f["feature"] for f in record.detail["features"]], [user for _, user, _ in judge.asked]

    assert drawn(0) == drawn(0)
    assert len(drawn(0)[0]) == 3
    assert drawn(0)[1] != drawn(1)[1]
    assert len({tuple(drawn(seed)[0]) for seed in range(4)}) > 1
    # More features are these and others: what was answered is of use.
    assert drawn(0, 5)[0][:3] == drawn(0)[0]
    assert drawn(0, 5)[1][:3] == drawn(0)[1][:3]


@pytest.mark.parametrize("name", ["features", "min_fired", "buffer", "seed"])
def test_configurations_out_of_range(name: str) -> None:
    with pytest.raises(InputError, match=rf"^autointerp.{name} = -1: expected \d or more$"):
        replace(CONFIG, **{name: -1})


def test_the_configuration_can_be_stored() -> None:
    assert json.loads(json.dumps(asdict(CONFIG)))["judge"]["key_env"] == "OPENAI_API_KEY"


@pytest.mark.model
def test_the_embedded_model_as_a_judge(
    tiny_model: Path, tmp_path: Path, smollm2: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = world(tiny_model)
    config = replace(CONFIG, features=1, judge=JudgeConfig(model="smollm2-135m"))

    def once_more() -> Record:
        with open_judge(config.judge, smollm2, tmp_path) as judge:
            return judged(seen, config, judge)

    record = once_more()
    scored, unparsable = record.value["scored"], record.value["unparsable"]
    assert scored is not None
    assert unparsable is not None
    assert scored + unparsable == 1
    (feature,) = record.detail["features"]
    assert feature["explanation"]
    assert record.settings["judge"] == "smollm2-135m in float32"
    kept = (tmp_path / "judge.jsonl").read_text()
    assert len(kept.splitlines()) == 2  # an explanation, and which texts it fits
    monkeypatch.setattr(type(smollm2.model), "generate", None)  # all answers are there
    assert once_more() == record
    assert (tmp_path / "judge.jsonl").read_text() == kept
    assert re.search(r"<<[A-F]+>>", kept)
