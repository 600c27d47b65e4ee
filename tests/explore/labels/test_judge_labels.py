"""Labels by a judge: what it is asked, which replies are used, and that a judge that fails the test gives none."""

from __future__ import annotations

import pytest
from transformers import PreTrainedTokenizerFast

from explore_cases import World
from saeforest.errors import InputError
from saeforest.explore import Explorer
from saeforest.explore.api import Api
from saeforest.explore.labels.annotations import Annotations
from saeforest.explore.labels.judge_labels import (
    features_to_label,
    judge_labels,
    label_question,
    marked,
    parse_label,
)
from saeforest.explore.queries.contexts import Context
from saeforest.judges.related import obvious_trials, related_question
from saeforest.saes import TreeSAE


class Knowing:
    """A judge that knows the obvious pairs, and labels everything with a word."""

    name, workers = "knowing", 1

    def __init__(self, *, right: bool = True) -> None:
        self._answers = {
            related_question(t.general.passages, t.special.passages).user: t.related == right
            for t in obvious_trials()
        }
        self.asked: list[str] = []

    def ask(self, system: str, user: str, *, max_tokens: int) -> str:
        if user in self._answers:
            return f"HaveRelationship: {'Yes' if self._answers[user] else 'No'}\nConfidence: High"
        self.asked.append(user)
        return '"Things that matter."\nbecause' if len(self.asked) % 2 else "a " * 40


@pytest.fixture(scope="module")
def api(tokenizer: PreTrainedTokenizerFast) -> Api:
    world = World(TreeSAE, documents=7)
    return Api(Explorer(world.index, world.sae.forest, tokenizer), Annotations(None), sae=world.sae)


def test_a_judge_labels_what_has_no_label(api: Api) -> None:
    judge, contexts = Knowing(), api.features.contexts
    api.annotations.set_note(3, label="mine")
    features = features_to_label(api.explorer, 6, api.annotations)
    assert len(features) == 6
    assert 3 not in features
    found = judge_labels(api.explorer, contexts, judge, features, api.annotations)
    assert found == (3, 3, 1.0)
    assert len(judge.asked) == 6
    judged = features[0]
    assert (api.labels.of(judged), api.labels.source(judged)) == ("Things that matter", "judge")
    assert (api.labels.of(3), api.labels.source(3)) == ("mine", "hand")
    api.annotations.set_note(judged, label="mine too")
    assert api.labels.source(judged) == "hand"
    assert judged not in features_to_label(api.explorer, 30, api.annotations)


def test_a_judge_that_fails_the_test_labels_nothing(api: Api) -> None:
    judge = Knowing(right=False)
    with pytest.raises(InputError, match=r"accuracy of 0.00, and only a judge with 0.8"):
        judge_labels(api.explorer, api.features.contexts, judge, [3], Annotations(None))
    assert judge.asked == []
    with pytest.raises(InputError, match="feature 30: expected 0 to 29"):
        judge_labels(api.explorer, api.features.contexts, judge, [30], Annotations(None))


def test_a_root_is_asked_about_alone_and_a_silent_feature_never(api: Api) -> None:
    forest, contexts = api.explorer.forest, api.features.contexts
    question = label_question(contexts, forest, forest.roots[0])
    assert question is not None
    assert "Only the parent" not in question.user
    assert "<<" in question.user
    silent = int((api.explorer.index.n_fired == 0).nonzero()[0])
    assert label_question(contexts, forest, silent) is None


def test_marks_stand_around_active_tokens() -> None:
    context = Context("d", 0, 2.0, ("see", " the", " cat", "fish", " run"), (0.0, 0.1, 2.0, 1.0, 0.0), 2)
    assert marked(context) == "see the <<catfish>> run"
    assert marked(Context("d", 0, 2.0, ("a", "b"), (1.0, 2.0), 1)) == "<<ab>>"


@pytest.mark.parametrize(
    ("reply", "label"),
    [
        ("names of rivers", "names of rivers"),
        ('  "Names of rivers."  ', "Names of rivers"),
        ("Label: names of rivers\nThey share", "names of rivers"),
        ("", None),
        ("...", None),
        ("word " * 20, None),
        ("the <<marked>> token", None),
    ],
)
def test_replies(reply: str, label: str | None) -> None:
    assert parse_label(reply) == label
