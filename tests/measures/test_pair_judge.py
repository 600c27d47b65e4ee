"""Judged edges: strict replies, controls, and judges that see everything, nothing, or affirm it all."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from judge_cases import BUFFER, LETTERS, OBVIOUS, PARENT, Fake, Sound, marked, world
from oracles.relatedness import auc as all_pairs
from saeforest.errors import InputError
from saeforest.judges import NO_JUDGE, Judge, JudgeConfig, open_judge, related
from saeforest.judges.related import Answer, obvious_trials, parse_answer
from saeforest.lm import LanguageModel
from saeforest.measures import pair_judge as pair_judge_module
from saeforest.measures.examples import FeatureWindows
from saeforest.measures.pair_judge import PairJudgeConfig, pair_judge
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
    assert parse_answer(reply) == wanted


def test_a_judge_that_reads_the_marks_affirms_edges_alone(seen: Subject) -> None:
    judge = Sound(reader_of_marks)
    record = judged(seen, CONFIG, judge)
    assert record.value == {
        "yes": 1.0, "yes_matched": 0.0, "yes_matched_auc": 1.0, "judge_accuracy": 1.0, "asked": 4, "unmatched": 0,
        "unparsable": 0, "unparsable_matched": 0,
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
    # Matched pairs have the same children as the edges, in the same order.
    children = {kind: [p["child"] for p in pairs if p["kind"] == kind] for kind in ("edge", "matched")}
    assert children["edge"] == children["matched"]
    scores = record.edge_scores["yes"]
    assert dict(zip(scores.child.tolist(), scores.score.tolist(), strict=True)) == {3: 3, 4: 3, 5: 3, 6: 3}


def test_ten_top_windows_come_first(seen: Subject) -> None:
    judge = Sound(reader_of_marks)
    record = judged(seen, CONFIG, judge)
    for pair, (_, user, _) in zip(record.detail["pairs"], judge.asked, strict=True):
        windows = FeatureWindows(seen, pair["parent"], BUFFER)
        texts = windows.texts(windows.top(10), mark_above=windows.level(windows.top(10)))
        assert sides(user)[0].splitlines()[:10] == [f"{i}. {t}" for i, t in enumerate(texts, 1)]


def test_the_power_changes_what_is_sampled(seen: Subject) -> None:
    def asked(power: float) -> list[str]:
        judge = Sound(reader_of_marks)
        judged(seen, replace(CONFIG, power=power), judge)
        return [user for _, user, _ in judge.asked]

    assert asked(1) == asked(1)
    assert asked(1) != asked(2)


def test_a_judge_that_affirms_everything_is_seen(seen: Subject) -> None:
    record = judged(seen, CONFIG, Sound(lambda s, u: "HaveRelationship: Yes\nConfidence: Low"))
    assert record.value["yes"] == record.value["yes_matched"] == 1
    assert record.value["yes_matched_auc"] == 0.5


def test_replies_that_cannot_be_read_are_counted_and_left_out(seen: Subject) -> None:
    def reply(system: str, user: str) -> str:
        return "?" if marked(sides(user)[0]) == set("AB") else reader_of_marks(system, user)

    record = judged(seen, CONFIG, Sound(reply))
    unread = int(record.value["unparsable_matched"] or 0)
    assert record.value["unparsable"] == 2  # the edges of the parent AB
    assert sum(p["related"] is None and p["confidence"] is None for p in record.detail["pairs"]) == 2 + unread
    assert (record.value["yes"], record.value["yes_matched"]) == (1, 0 if unread < 4 else None)
    assert sorted(record.edge_scores["yes"].child.tolist()) == [5, 6]


def test_fractions_equal_counts_by_hand(seen: Subject) -> None:
    def reply(system: str, user: str) -> str:
        b = marked(sides(user)[1])
        if b == {"C"}:
            return "unreadable"
        return f"HaveRelationship: {'Yes' if b == {'A'} else 'No'}\nConfidence: High"

    record = judged(seen, CONFIG, Sound(reply))
    for kind, name in (("edge", "yes"), ("matched", "yes_matched")):
        pairs = [p for p in record.detail["pairs"] if p["kind"] == kind and p["child"] != 5]
        assert pairs
        assert record.value[name] == pytest.approx(np.mean([p["child"] == 3 for p in pairs]), abs=1e-15)
    assert record.value["yes"] == pytest.approx(1 / 3, abs=1e-15)


def test_confidence_counts_in_the_auc(seen: Subject) -> None:
    def reply(system: str, user: str) -> str:
        a, b = map(marked, sides(user))
        sure = "High" if b <= a else "Low"
        return f"HaveRelationship: {'No' if b == {'A'} else 'Yes'}\nConfidence: {sure}"

    record = judged(seen, CONFIG, Sound(reply))
    score = {"edge": [], "matched": []}
    for p in record.detail["pairs"]:
        sure = {"High": 3, "Low": 1}[p["confidence"]]
        score[p["kind"]].append(sure if p["related"] else -sure)
    assert sorted(score["edge"]) == [-3, 3, 3, 3]
    assert sorted(score["matched"]) == [-1, 1, 1, 1]
    assert record.value["yes_matched_auc"] == all_pairs([1] * 4, score["edge"], score["matched"]) == 0.75


@pytest.mark.parametrize(("wrong", "passes"), [(0, True), (8, True), (9, False), (20, False), (40, False)])
def test_a_judge_must_know_what_is_obvious(seen: Subject, wrong: int, passes: bool) -> None:
    missed = set(list(OBVIOUS)[:wrong])

    class Weak(Sound):
        def ask(self, system: str, user: str, *, max_tokens: int) -> str:
            return "?" if user in missed else super().ask(system, user, max_tokens=max_tokens)

    judge = Weak(reader_of_marks)
    record = judged(seen, CONFIG, judge)
    assert record.value["judge_accuracy"] == pytest.approx(1 - wrong / 40)
    test = record.detail["test"]
    assert sum(t["related"] != t["truth"] for t in test) == wrong
    assert (record.value["yes"] == 1) is passes
    if not passes:  # it is not asked about features at all
        assert judge.asked == record.detail["pairs"] == []
        assert "the judge does not tell obvious pairs apart" in record.null["yes_matched_auc"]
        assert f"accuracy is {1 - wrong / 40:.2f}" in record.null["yes"]


@pytest.mark.parametrize("says", ["Yes", "No"])
def test_one_answer_to_everything_is_a_guess(seen: Subject, says: str) -> None:
    record = judged(seen, CONFIG, Fake(lambda s, u: f"HaveRelationship: {says}\nConfidence: High"))
    assert record.value["judge_accuracy"] == 0.5
    assert record.value["yes"] is None


def test_the_test_of_obvious_pairs() -> None:
    trials = obvious_trials()
    assert [t.related for t in trials] == [True, False] * 20
    assert (trials[0].general.name, trials[0].special.name) == ("days of the week", "Monday")
    assert len({t.general.name for t in trials}) == len({t.special.name for t in trials}) == 20
    for t in trials:
        assert len(t.general.passages) == len(t.special.passages) == 4
        assert all(text.count("<<") == text.count(">>") == 1 for text in t.general.passages)
        assert not set(t.general.passages) & set(t.special.passages)
    pairs = {(t.general.name, t.special.name) for t in trials}
    assert len(pairs) == 40


def test_a_judge_that_talks_nonsense(seen: Subject, tmp_path: Path) -> None:
    record = judged(seen, CONFIG, Sound(lambda s, u: "They are alike."))
    assert set(record.null.values()) == {"no reply of the judge could be parsed"}
    assert set(record.null) == {"yes", "yes_matched", "yes_matched_auc"}
    assert (record.value["asked"], record.value["unparsable"]) == (4, 4)
    record.write(tmp_path / "pair_judge.json")
    assert Record.read(tmp_path / "pair_judge.json") == record


def test_without_a_judge_the_record_says_what_to_set(seen: Subject) -> None:
    record = judged(seen, CONFIG)
    assert record.null == dict.fromkeys(("yes", "yes_matched", "yes_matched_auc", "judge_accuracy"), NO_JUDGE)
    assert set(record.value.values()) == {None, 0}
    assert record.detail["pairs"] == []


def test_nothing_to_judge(seen: Subject) -> None:
    judge = Sound(reader_of_marks)
    flat = judged(but(seen, forest=flat_forest((8,))), CONFIG, judge)
    assert flat.null["yes"] == flat.null["judge_accuracy"]
    assert flat.null["yes"] == "the forest has no edges: every feature hangs from the root"
    # No judge is opened where there is nothing to ask.
    nothing = pair_judge(lazily(seen, "judge", never), replace(CONFIG, min_fired=10**6))
    assert "no edge joins two features that fire on more than 1000000 tokens" in nothing.null["yes"]
    assert "once 16 tokens" in judged(seen, replace(CONFIG, buffer=16), judge).null["yes"]
    assert judge.asked == []


def test_where_all_children_have_one_parent_there_is_no_matched_pair(seen: Subject) -> None:
    forest = Forest(torch.tensor([-1, -1, -1, 0, 0, 0, -1, -1]), (3, 5))
    judge = Sound(reader_of_marks)
    record = judged(but(seen, forest=forest), CONFIG, judge)
    assert (record.value["asked"], record.value["unmatched"]) == (0, 3)
    assert record.null["yes"].startswith("no edge has a null parent")
    assert judge.asked == []


def test_null_parents_have_windows_to_show(seen: Subject) -> None:
    """7 never fires, so 2 is the only parent with a child beside 0; and 0 beside 2."""
    forest = Forest(torch.tensor([-1, -1, -1, 0, -1, -1, 2, 1]), (3, 5))
    record = judged(but(seen, forest=forest), CONFIG, Sound(reader_of_marks))
    found = {(p["kind"], p["parent"], p["child"]) for p in record.detail["pairs"]}
    assert {("edge", 0, 3), ("edge", 2, 6)} <= found
    assert {parent for kind, parent, child in found if kind == "matched" and child == 3} <= {1, 2}
    few = judged(but(seen, forest=forest), replace(CONFIG, min_fired=10**6), Sound(reader_of_marks))
    assert few.value["asked"] == 0


def test_the_seed_draws_edges(seen: Subject) -> None:
    def drawn(seed: int) -> list[tuple[int, int]]:
        record = judged(seen, replace(CONFIG, seed=seed, pairs=2), Sound(reader_of_marks))
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
    monkeypatch.setattr(related, "obvious_trials", lambda: obvious_trials()[:2])
    monkeypatch.setattr(pair_judge_module, "obvious_trials", lambda: obvious_trials()[:2])

    def once_more() -> Record:
        with open_judge(config.judge, smollm2, tmp_path) as judge:
            return judged(seen, config, judge)

    record = once_more()
    assert record.value["judge_accuracy"] in (0, 0.5, 1)
    assert record.value["asked"] == 0  # one general unit gives no interval, so no judge passes
    assert len((tmp_path / "judge.jsonl").read_text().splitlines()) == 2
    assert once_more() == record
