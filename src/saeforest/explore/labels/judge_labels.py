"""Labels by a judge. A child is labeled by contrast: what sets it apart among the tokens on which its parent fires."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from ...errors import InputError
from ...judges import Judge, Question, ask_all, prompt
from ...judges.related import obvious_trials, take_test
from ...structure.forest import ROOT, Forest
from ..queries.contexts import Context, Contexts
from ..queries.explorer import Explorer
from .annotations import Annotations, Judged

#: A judge may give labels if it is right about this fraction of obvious pairs (as in the measure `pair_judge`).
LEAST_ACCURACY = 0.8
_PASSAGES, _REPLY_TOKENS, _WORDS, _AROUND = 10, 24, 12, 16
# Tokens are marked where the activation is at least this fraction of the feature's maximum.
_MARKED = 0.25


class JudgedLabels(NamedTuple):
    """How many features a judge labeled, how many of its replies could not be used, and its accuracy in the test."""

    labeled: int
    unusable: int
    accuracy: float


def judge_labels(
    explorer: Explorer,
    contexts: Contexts,
    judge: Judge,
    features: Sequence[int],
    annotations: Annotations,
) -> JudgedLabels:
    """Have a judge label features, and keep the labels in the annotations.

    A judge that fails the test of obvious pairs gives no labels: they would look like knowledge.

    Raises InputError if the judge fails the test, cannot be reached, or there is no such feature.
    """
    for feature in features:
        if not 0 <= feature < explorer.forest.d_sae:
            raise InputError(f"feature {feature}: expected 0 to {explorer.forest.d_sae - 1}")
    pairs = zip(take_test(judge), obvious_trials(), strict=True)
    right = [answer is not None and answer.related == trial.related for answer, trial in pairs]
    accuracy = sum(right) / len(right)
    if accuracy < LEAST_ACCURACY:
        raise InputError(
            f"judge {judge.name}: tells obvious pairs of concepts apart with an accuracy of {accuracy:.2f}, and only a "
            f"judge with {LEAST_ACCURACY} or more gives labels; choose another judge.model"
        )
    asked = [(f, q) for f in features if (q := label_question(contexts, explorer.forest, f)) is not None]
    replies = ask_all(judge, [question for _, question in asked], "label")
    labels = [(feature, parse_label(reply)) for (feature, _), reply in zip(asked, replies, strict=True)]
    kept = [(feature, label) for feature, label in labels if label is not None]
    for feature, label in kept:
        annotations.set_judged(Judged(feature, label, judge.name[:200]))
    return JudgedLabels(len(kept), len(labels) - len(kept), accuracy)


def label_question(contexts: Contexts, forest: Forest, feature: int) -> Question | None:
    """What a judge is asked about a feature; None if it never fired.

    Where its parent has contexts in which it is silent, the question is what sets it apart from those.
    """
    own = contexts.top(feature, children=False, most=_PASSAGES)
    if not own:
        return None
    parent = int(forest.parent[feature])
    others = [] if parent == ROOT else _without(contexts, parent, feature)
    if not others:
        return Question(prompt("label"), _listed(own), _REPLY_TOKENS)
    user = f"The child is active:\n{_listed(own)}\n\nOnly the parent is active:\n{_listed(others)}"
    return Question(prompt("label_child"), user, _REPLY_TOKENS)


def _without(contexts: Contexts, parent: int, child: int) -> list[Context]:
    """Contexts of a parent on whose token the child is not the one that fires: the hardest passages to tell apart."""
    found = (*contexts.top(parent), *contexts.samples(parent))
    distinct = {
        context.row: context for context in found if context.child and context.child[context.at] != child
    }
    return list(distinct.values())[:_PASSAGES]


def _listed(contexts: Sequence[Context]) -> str:
    return "\n".join(f"{i}. {marked(context)}" for i, context in enumerate(contexts, 1))


def marked(context: Context) -> str:
    """The text of a context around its token, with the tokens on which the feature is active between << and >>."""
    start, end = max(context.at - _AROUND, 0), context.at + _AROUND
    least = _MARKED * max(context.values)
    parts: list[str] = []
    open_mark = False
    for i in range(start, min(end, len(context.tokens))):
        active = context.values[i] > 0 and context.values[i] >= least
        text = context.tokens[i]
        if active and not open_mark:
            blank = len(text) - len(text.lstrip(" "))
            parts.append(text[:blank] + "<<" + text[blank:])
        else:
            parts.append((">>" if open_mark and not active else "") + text)
        open_mark = active
    return "".join(parts) + (">>" if open_mark else "")


def parse_label(reply: str) -> str | None:
    """The label in a reply: its first line, without quotes and a full stop; None if that is not a short name."""
    lines = reply.strip().splitlines()
    label = re.sub(r"^(label|name)\s*:\s*", "", lines[0].strip(), flags=re.IGNORECASE) if lines else ""
    label = label.strip(" \"'`*.").strip()
    return label if label and len(label.split()) <= _WORDS and "<<" not in label else None


def features_to_label(explorer: Explorer, n: int, annotations: Annotations) -> list[int]:
    """Up to `n` features without a label by a person or a judge: families worth seeing first, then the most frequent
    features."""
    done = annotations.judged().keys() | {f for f, note in annotations.notes().items() if note.label}
    families = [f for family in explorer.telling().shown for f in (family.parent, *family.children)]
    frequent = explorer.index.n_fired.argsort(descending=True, stable=True).tolist()
    fired = explorer.index.n_fired.tolist()
    order = dict.fromkeys((*families, *frequent))
    return [f for f in order if f not in done and fired[f] > 0][:n]
