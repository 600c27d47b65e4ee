"""Judged edges: strict replies, controls, and judges that see everything, nothing, or affirm it all."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from judge_cases import BUFFER, LETTERS, PARENT, Fake, marked, world
from saeforest.errors import InputError
from saeforest.judges import NO_JUDGE, Judge, JudgeConfig, open_judge
from saeforest.lm import LanguageModel
from saeforest.measures.examples import FeatureWindows
from saeforest.measures.pair_judge import Answer, PairJudgeConfig, draw_controls, pair_judge, parse_verdict
from saeforest.measures.record import Record
from saeforest.measures.subject import Subject
from saeforest.structure.forest import Forest, flat_forest
from subject_cases import but, lazily, never

CONFIG = PairJudgeConfig(buffer=BUFFER)
EDGES = {(0, 3), (0, 4), (1, 5), (2, 6)}  # (2, 7) too, but 7 never fires


def judged(subject: Subject, config: PairJudgeConfig, judge: Judge | None = None) -> Record:
    """What a judge makes of it."""
    return pair_judge(but(subject, judge=judge), config)


@pytest.fixture(scope="module")
def seen(tiny_model: Path) -> Subject:
    return world(tiny_model)


def sides(user: str) -> tuple[str, str]:
    a, b = user.split("\n\nPassages of unit B:\n")
    return a.removeprefix("Passages of unit A:\n"), b


def reader_of_marks(system: str, user: str) -> str:
    a, b = map(marked, sides(user))
    related = a <= b or b <= a
    return f"HaveRelationship: {'Yes' if related else 'No'}\nConfidence: High"


@pytest.mark.parametrize(
    ("reply", "wanted"),
    [
        ("HaveRelationship: Yes\nConfidence: High", Answer(True, "High")),
        ("\nHaveRelationship: No \n Confidence:Low\n", Answer(False, "Low")),
        ("HaveRelationship: Yes\r\nConfidence: Medium", Answer(True, "Medium")),
        ("", None),
        ("Yes", None),
        ("HaveRelationship: Yes", None),
        ("HaveRelationship: Yes Confidence: High", None),
        ("HaveRelationship: Maybe\nConfidence: High", None),
        ("HaveRelationship: Yes\nConfidence: Certain", None),
        ("HaveRelationship: Yes\n\nConfidence: High", None),
        ("HaveRelationship: Yes or No\nConfidence: High", None),
        ("HaveRelationship: yes\nConfidence: high", None),
        ("Confidence: High\nHaveRelationship: Yes", None),
        ("HaveRelationship: Yes\nConfidence: High\nBecause A is B.", None),
        ("Answer:\nHaveRelationship: Yes\nConfidence: High", None),
        ("**HaveRelationship: Yes**\n**Confidence: High**", None),
    ],
)
def test_verdicts_are_read_strictly(reply: str, wanted: Answer | None) -> None:
    assert parse_verdict(reply) == wanted


def test_a_judge_that_reads_the_marks_affirms_edges_alone(seen: Subject) -> None:
    judge = Fake(reader_of_marks)
    record = judged(seen, CONFIG, judge)
    assert record.value == {
        "yes": 1.0, "yes_random": 0.0, "asked": 4, "asked_random": 4, "unparsable": 0, "unparsable_random": 0,
    }  # fmt: skip
    assert record.interval["yes"] == (1.0, 1.0)
    assert record.settings["judge"] == "fake"
    assert record.settings["config"] == asdict(CONFIG)
    pairs = record.detail["pairs"]
    assert {(p["parent"], p["child"]) for p in pairs if p["kind"] == "edge"} == EDGES
    for p in pairs:
        assert p["related"] == (p["kind"] == "edge") == (PARENT[p["child"]] == p["parent"])
        assert p["confidence"] == "High"
    for pair, (_, user, _) in zip(pairs, judge.asked, strict=True):
        a, b = sides(user)
        assert (marked(a), marked(b)) == (set(LETTERS[pair["parent"]]), set(LETTERS[pair["child"]]))
        assert (len(a.splitlines()), len(b.splitlines())) == (15, 15)
    # Controls have the same parents as the edges.
    assert sorted(p["parent"] for p in pairs if p["kind"] == "random") == [0, 0, 1, 2]


def test_ten_top_windows_come_first(seen: Subject) -> None:
    judge = Fake(reader_of_marks)
    record = judged(seen, CONFIG, judge)
    for pair, (_, user, _) in zip(record.detail["pairs"], judge.asked, strict=True):
        windows = FeatureWindows(seen, pair["parent"], BUFFER)
        texts = windows.texts(windows.top(10), mark_above=windows.level(windows.top(10)))
        assert sides(user)[0].splitlines()[:10] == [f"{i}. {t}" for i, t in enumerate(texts, 1)]


def test_the_power_changes_what_is_sampled(seen: Subject) -> None:
    def asked(power: float) -> list[str]:
        judge = Fake(reader_of_marks)
        judged(seen, replace(CONFIG, power=power), judge)
        return [user for _, user, _ in judge.asked]

    assert asked(1) == asked(1)
    assert asked(1) != asked(2)


def test_a_judge_that_affirms_everything_is_seen(seen: Subject) -> None:
    record = judged(seen, CONFIG, Fake(lambda s, u: "HaveRelationship: Yes\nConfidence: Low"))
    assert record.value["yes"] == record.value["yes_random"] == 1


def test_replies_that_cannot_be_read_are_counted_and_left_out(seen: Subject) -> None:
    def reply(system: str, user: str) -> str:
        return "?" if marked(sides(user)[0]) == set("AB") else reader_of_marks(system, user)

    record = judged(seen, CONFIG, Fake(reply))
    assert record.value == {
        "yes": 1.0, "yes_random": 0.0, "asked": 4, "asked_random": 4, "unparsable": 2, "unparsable_random": 2,
    }  # fmt: skip
    assert sum(p["related"] is None and p["confidence"] is None for p in record.detail["pairs"]) == 4


def test_fractions_equal_counts_by_hand(seen: Subject) -> None:
    def reply(system: str, user: str) -> str:
        b = marked(sides(user)[1])
        if b == {"C"}:
            return "unreadable"
        return f"HaveRelationship: {'Yes' if b == {'A'} else 'No'}\nConfidence: High"

    record = judged(seen, CONFIG, Fake(reply))
    for kind, name in (("edge", "yes"), ("random", "yes_random")):
        pairs = [p for p in record.detail["pairs"] if p["kind"] == kind and p["child"] != 5]
        assert pairs
        assert record.value[name] == pytest.approx(np.mean([p["child"] == 3 for p in pairs]), abs=1e-15)
    assert record.value["yes"] == pytest.approx(1 / 3, abs=1e-15)


def test_a_judge_that_talks_nonsense(seen: Subject, tmp_path: Path) -> None:
    record = judged(seen, CONFIG, Fake(lambda s, u: "They are alike."))
    why = "no reply of the judge could be parsed"
    assert record.null == {"yes": why, "yes_random": why}
    assert (record.value["asked"], record.value["unparsable"]) == (4, 4)
    record.write(tmp_path / "pair_judge.json")
    assert Record.read(tmp_path / "pair_judge.json") == record


def test_without_a_judge_the_record_says_what_to_set(seen: Subject) -> None:
    record = judged(seen, CONFIG)
    assert record.null == {"yes": NO_JUDGE, "yes_random": NO_JUDGE}
    assert set(record.value.values()) == {None, 0}
    assert record.detail["pairs"] == []


def test_nothing_to_judge(seen: Subject) -> None:
    judge = Fake(reader_of_marks)
    flat = judged(but(seen, forest=flat_forest((8,))), CONFIG, judge)
    assert flat.null["yes"] == flat.null["yes_random"]
    assert flat.null["yes"] == "the forest has no edges: every feature hangs from the root"
    # No judge is opened where there is nothing to ask.
    nothing = pair_judge(lazily(seen, "judge", never), replace(CONFIG, min_fired=10**6))
    assert "no edge joins two features that fire on more than 1000000 tokens" in nothing.null["yes"]
    assert "once 16 tokens" in judged(seen, replace(CONFIG, buffer=16), judge).null["yes"]
    assert judge.asked == []


def test_where_all_children_have_one_parent_there_is_no_control(seen: Subject) -> None:
    forest = Forest(torch.tensor([-1, -1, -1, 0, 0, 0, -1, -1]), (3, 5))
    record = judged(but(seen, forest=forest), CONFIG, Fake(reader_of_marks))
    assert record.value["asked_random"] == 0
    assert record.value["yes"] == pytest.approx(2 / 3)
    assert record.null == {
        "yes_random": "no edge has another between the same levels with an unrelated child"
    }


def test_controls_are_unrelated_and_of_the_same_levels() -> None:
    rng = np.random.default_rng(0)
    parent = np.concatenate([[-1] * 4, rng.integers(-1, 4, 12), rng.integers(-1, 16, 24)])
    forest = Forest(torch.tensor(parent), (4, 12, 24))
    edges = [(int(p), int(c)) for p, c in forest.edges.T.tolist()]
    controls = draw_controls(forest, edges, np.random.default_rng(1))
    assert sum(c is not None for c in controls) > len(edges) / 2
    for (p, c), control in zip(edges, controls, strict=True):
        if control is not None:
            assert control[0] == p
            assert forest.layer[control[1]] == forest.layer[c]
            assert control[0] not in forest.path(control[1])
            assert control[1] not in forest.path(control[0])


def test_in_a_forest_without_layers_levels_are_depths() -> None:
    # 0 > 1 > 2 and 3 > 4 > 5
    forest = Forest(torch.tensor([-1, 0, 1, -1, 3, 4]), (6,), layered=False)
    controls = draw_controls(forest, [(0, 1), (1, 2), (3, 4), (4, 5)], np.random.default_rng(0))
    assert controls == [(0, 4), (1, 5), (3, 1), (4, 2)]


def test_the_seed_draws_edges(seen: Subject) -> None:
    def drawn(seed: int) -> list[tuple[int, int]]:
        record = judged(seen, replace(CONFIG, seed=seed, pairs=2), Fake(reader_of_marks))
        return [(p["parent"], p["child"]) for p in record.detail["pairs"] if p["kind"] == "edge"]

    assert drawn(0) == drawn(0)
    assert len(drawn(0)) == 2
    assert len({tuple(drawn(seed)) for seed in range(5)}) > 1


@pytest.mark.parametrize(
    ("name", "value"), [("pairs", 0), ("min_fired", -1), ("buffer", 0), ("seed", -1), ("power", -0.5)]
)
def test_configurations_out_of_range(name: str, value: float) -> None:
    with pytest.raises(InputError, match=rf"^pair_judge.{name} = {value}: expected"):
        replace(CONFIG, **{name: value})


@pytest.mark.model
def test_the_embedded_model_as_a_judge(
    tiny_model: Path, tmp_path: Path, smollm2: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = world(tiny_model)
    config = replace(CONFIG, pairs=1, judge=JudgeConfig(model="smollm2-135m"))

    def once_more() -> Record:
        with open_judge(config.judge, smollm2, tmp_path) as judge:
            return judged(seen, config, judge)

    record = once_more()
    assert (record.value["asked"], record.value["asked_random"]) == (1, 0)
    assert len((tmp_path / "judge.jsonl").read_text().splitlines()) == 1
    assert once_more() == record
