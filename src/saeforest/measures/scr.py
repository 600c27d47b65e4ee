"""Spurious correlation removal (SCR): can features free a probe from what it picked up by accident
(docs/spec/probing.md#scr)?

Texts have two labels, such as a profession (a or a') and a gender (b or b'). On the pooled activations of training
texts, three linear probes are trained:

    w_label     a against a', both genders in equal parts
    w_second    b against b', both professions in equal parts
    w_both      a with b against a' with b', so that it cannot know which of the two it is asked for

and each is asked on test texts in which the labels are independent. Direction 1 removes the second label:

    effect_i  = |(mean effective(f)_i over b - over b') * (d_i . w_second)|      on the texts of w_second
    S_n       = the n features with the largest effect
    before    = accuracy of w_both for the first label
    after     = the same with S_n ablated
    best      = accuracy of w_label
    scr_n     = (after - before) / (best - before)        0 where best - before < 0.001

Direction 2 exchanges the labels. The value of a pair of labels is that of the direction in which `before` is lower, as
in SAEBench. Ablation is that of `tpp`. `scr_random_n` has in place of each feature another that is active about as
often. `scr_subtree_n` ablates with each feature all that is below it in the forest, and `scr_subtree_shuffled_n` all
that would be if parents were shuffled.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from ..errors import InputError
from ..structure.forest import Forest
from ..text.labeled import LabeledText
from ..text.two_labels import BIOGRAPHIES, both, doubly_labeled
from .bootstrap import FloatArray, estimate, interval_method, same_units
from .columns import INTERPRETABILITY, Column
from .matched import alike
from .pooled import MIN_TEXTS, BoolArray, IntArray, LabeledTextConfig, apart, mean_difference
from .pooled_probes import PooledProbeConfig, fit_probes
from .record import Record, undefined
from .spec import Study
from .subject import Subject
from .subtrees import why_none, with_all_below, with_shuffled
from .tpp import ablated

_LABEL, _SECOND, _BOTH = range(3)
# For each direction: the probe whose features are ablated, and the one that knows best.
_DIRECTIONS = {"label": (_SECOND, _LABEL), "second": (_LABEL, _SECOND)}
_LEAST_GAP = 0.001
_MOST_PAIRS = 4
# The labels of SAEBench.
_SECONDS = (("male", "female"), ("1", "5"))
_PAIRS = (
    ("professor", "nurse"),
    ("architect", "journalist"),
    ("surgeon", "psychologist"),
    ("attorney", "teacher"),
    ("Books", "CDs_and_Vinyl"),
    ("Software", "Electronics"),
    ("Pet_Supplies", "Office_Products"),
    ("Industrial_and_Scientific", "Toys_and_Games"),
)
_SHOWN = 20
# What is ablated, as in the names of values: the features of largest effect or, in their place, others.
_KINDS = ("", "random_", "subtree_", "subtree_shuffled_")
# Differences of two kinds.
_OVER = {"over_random_": _KINDS[:2], "subtree_over_shuffled_": _KINDS[2:]}


@dataclass(frozen=True)
class TwoLabelTextConfig(LabeledTextConfig):
    """Which texts with two labels are read. A class is a pair of labels: "nurse & female"."""

    source: str = BIOGRAPHIES
    """Texts with two labels: built-in:biographies (made up, with a profession and a gender), a .jsonl or .csv file with
    text, label and second_label, or a Hub data set (LabHC/bias_in_bios, canrager/amazon_reviews_mcauley_1and5)."""
    pairs: tuple[str, ...] = ()
    """Pairs of first labels, as in professor:nurse. By default, those of SAEBench where the source has them, else the
    most frequent labels in twos, four pairs at most."""
    second: str = ""
    """The two second labels, as in male:female. By default, the two that are most frequent."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.classes:
            raise InputError("texts.classes: expected none, as pairs and second name the classes")
        for name, values in (("pairs", self.pairs), ("second", (self.second,) if self.second else ())):
            for value in values:
                parts = [part.strip() for part in value.split(":")]
                if len(parts) != 2 or not all(parts) or parts[0] == parts[1]:
                    raise InputError(
                        f"texts.{name} = {value!r}: expected two different labels, as in professor:nurse"
                    )
        labels = [label for pair in self.pairs for label in _two(pair)]
        if len(set(labels)) < len(labels):
            raise InputError(f"texts.pairs = {list(self.pairs)}: expected each label in one pair only")

    def read(self) -> list[LabeledText]:
        """The texts of the source, labeled with both labels, four classes for each pair in the order of `balanced`.

        Raises InputError if the source can't be read, or has too few texts of a class.
        """
        found = doubly_labeled(self.source)
        count = Counter((text.label, second) for text, second in found)
        seconds = _two(self.second) if self.second else _usual_seconds(count)
        pairs = [_two(pair) for pair in self.pairs] or _usual_pairs(count, seconds)
        wanted = [(label, second) for pair in pairs for label in pair for second in seconds]
        for label, second in wanted:
            if (n := count[label, second]) < MIN_TEXTS:
                raise InputError(
                    f"texts with two labels '{self.source}': {n} texts have the labels '{label}' and '{second}'; "
                    f"expected {MIN_TEXTS} or more"
                )
        if not wanted:
            raise InputError(
                f"texts with two labels '{self.source}': expected two labels with {MIN_TEXTS} or more texts of each "
                f"second label, of which the most frequent are {', '.join(seconds)}"
            )
        place = {classes: i for i, classes in enumerate(wanted)}
        mine = [
            (place[text.label, second], text, second)
            for text, second in found
            if (text.label, second) in place
        ]
        mine.sort(key=lambda one: one[0])
        return [text._replace(label=both(text.label, second)) for _, text, second in mine]

    def usual(self, texts: list[LabeledText]) -> tuple[str, ...]:
        """All classes, in the order in which `read` gives them."""
        return tuple(dict.fromkeys(text.label for text in texts))


def _two(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(":"))


def _usual_seconds(count: Counter[tuple[str, str]]) -> tuple[str, ...]:
    """SAEBench's second labels where the texts have them, else the two most frequent."""
    seconds: Counter[str] = Counter()
    for (_, second), n in count.items():
        seconds[second] += n
    known = (pair for pair in _SECONDS if set(pair) <= seconds.keys())
    return next(known, tuple(sorted(seconds, key=lambda second: (-seconds[second], second))[:2]))


def _usual_pairs(count: Counter[tuple[str, str]], seconds: tuple[str, ...]) -> list[tuple[str, ...]]:
    """SAEBench's pairs of labels as far as there are enough texts, else the most frequent labels in twos."""
    total: Counter[str] = Counter()
    for (label, second), n in count.items():
        total[label] += n if second in seconds else 0
    enough = [
        label
        for label in sorted(total, key=lambda label: (-total[label], label))
        if len(seconds) == 2 and all(count[label, second] >= MIN_TEXTS for second in seconds)
    ]
    known = [pair for pair in _PAIRS if set(pair) <= set(enough)]
    return known or list(zip(enough[::2], enough[1::2], strict=False))[:_MOST_PAIRS]


@dataclass(frozen=True)
class ScrConfig(PooledProbeConfig):
    """Which texts are classified, how many features are ablated, and how the probes are trained."""

    texts: TwoLabelTextConfig = field(default_factory=TwoLabelTextConfig)
    """Which texts are read."""
    n: tuple[int, ...] = (2, 5, 10, 20, 50, 100, 500)
    """Numbers of features to ablate."""
    epochs: int = field(default=60, kw_only=True)
    """Number of passes over the training texts."""
    random_draws: int = 5
    """Number of random sets of features, and of forests with shuffled parents, over which baselines are averaged."""

    def __post_init__(self) -> None:
        if not self.n or min(self.n) < 1 or len(set(self.n)) < len(self.n):
            raise InputError(f"scr.n = {list(self.n)}: expected different numbers of 1 or more")
        if self.random_draws < 1:
            raise InputError(f"scr.random_draws = {self.random_draws}: expected 1 or more")
        self.check("scr")


def scr_score(before: FloatArray, after: FloatArray, best: FloatArray) -> FloatArray:
    """The share of the gap between the accuracies `before` and `best` that `after` closes; 0 where there is no gap."""
    gap = np.asarray(best - before, dtype=np.float64)
    small = gap < _LEAST_GAP
    return np.where(small, 0.0, (after - before) / np.where(small, 1.0, gap))


def effects(difference: FloatArray, along: FloatArray) -> FloatArray:
    """Each feature's effect `[F]`: the size of its mean difference times d_i . w."""
    return np.abs(difference * along)


def balanced(quadrants: IntArray) -> tuple[IntArray, BoolArray]:
    """The texts of the three probes, `[3, 4h]`, and which belong to the first class, `[4h]`.

    quadrants: `[4, n]` texts of a with b, a with b', a' with b, a' with b'. Of each, the first half (h) is in the first
    two probes; the last, which is not balanced, has all of the first and of the last quadrant.
    """
    n = quadrants.shape[1]
    h = max(n // 2, 1)
    ab, ac, bb, bc = quadrants[:, :h]
    every = np.arange(2 * h) % n
    rows = np.stack(
        [
            np.concatenate([ab, ac, bb, bc]),
            np.concatenate([ab, bb, ac, bc]),
            np.concatenate([quadrants[0, every], quadrants[3, every]]),
        ]
    )
    return rows, np.arange(4 * h) < 2 * h


class _Pair(NamedTuple):
    """What a pair of labels contributes: which test texts are its own, and where each probe is right."""

    mine: FloatArray
    """`[n]` 1 for its test texts"""
    before: dict[str, FloatArray]
    """`[n]` where w_both is right, by direction"""
    best: dict[str, FloatArray]
    after: dict[tuple[str, str, int], FloatArray]
    """by direction, kind of features (one of `_KINDS`) and their number"""
    reported: str


def scr(subject: Subject, config: ScrConfig) -> Record:
    """The record "scr".

    `scr_<n>` is the mean over pairs of labels, `scr_label_<n>` and `scr_second_<n>` that of each direction (the label
    which the probe should tell), `scr_random_<n>` the value with random features, `scr_over_random_<n>` the difference.
    `scr_subtree_<n>`, `scr_subtree_shuffled_<n>` and `scr_subtree_over_shuffled_<n>` are the same of subtrees.
    `accuracy_before` and `accuracy_best` are means over pairs in the reported direction. `detail["pairs"]` has the
    accuracies of each pair and the features with the largest effects (at most 20).

    If each layer of the SAE reconstructs alone (HSAE), only features of the last layer can be ablated.
    Raises InputError if the texts cannot be used.
    """
    texts, _ = subject.labeled
    usable = subject.sae.in_reconstruction.cpu().numpy()
    few = f"only {int(usable.sum())} features take part in the reconstruction"
    forest, no_subtrees = subject.forest, why_none(subject.forest, usable)
    forests = [] if no_subtrees else with_shuffled(forest, _fired(subject), config.random_draws)
    measured = _KINDS if forests else _KINDS[:2]
    sizes = [n for n in config.n if n <= usable.sum()]
    pairs: list[_Pair] = []
    entries: list[dict[str, Any]] = []
    for first in range(0, len(texts.classes), 4):
        pair, entry = _measured(subject, config, first, sizes, usable, forests)
        pairs.append(pair)
        entries.append(entry)
    members = np.stack([pair.mine for pair in pairs])

    def formula(weights: FloatArray) -> dict[str, FloatArray]:
        def mean(values: list[FloatArray]) -> FloatArray:
            return np.mean(values, axis=0)

        def accuracy(pair: _Pair, right: FloatArray) -> FloatArray:
            return weights @ right / (weights @ pair.mine)

        def score(pair: _Pair, direction: str, kind: str, n: int) -> FloatArray:
            right = pair.before[direction], pair.after[direction, kind, n], pair.best[direction]
            return scr_score(*(accuracy(pair, one) for one in right))

        found = {
            "accuracy_before": mean([accuracy(p, p.before[p.reported]) for p in pairs]),
            "accuracy_best": mean([accuracy(p, p.best[p.reported]) for p in pairs]),
        }
        for n in sizes:
            for kind in measured:
                found[f"scr_{kind}{n}"] = mean([score(p, p.reported, kind, n) for p in pairs])
            for direction in _DIRECTIONS:
                found[f"scr_{direction}_{n}"] = mean([score(p, direction, "", n) for p in pairs])
            for name, (one, other) in _OVER.items():
                if other in measured:
                    found[f"scr_{name}{n}"] = found[f"scr_{one}{n}"] - found[f"scr_{other}{n}"]
        return found

    units = same_units("test texts", members)
    found = estimate(formula, members.shape[1], units)
    kinds = (*(f"{d}_" for d in _DIRECTIONS), *_KINDS, *_OVER)
    why = {f"scr_{kind}{n}": few for n in config.n if n not in sizes for kind in kinds}
    if no_subtrees:
        of_subtrees = [kind for kind in kinds if kind.startswith("subtree_")]
        why = {f"scr_{kind}{n}": no_subtrees for n in config.n for kind in of_subtrees} | why
    value = {name: found.value.get(name) for name in [*found.value, *why]}
    return Record(
        "scr",
        value,
        {name: found.interval.get(name) for name in value},
        unit="fraction of the gap",
        tokens=int(texts.count.sum()),
        settings={
            **subject.settings,
            **texts.settings,
            "config": asdict(config),
            "code": "times the scale of its token, in the units of the activations",
            "ablation": "features to zero, the error of the reconstruction kept",
            "random": f"features that are active in about as many training texts, mean of {config.random_draws} draws",
            "shuffled": "parents exchanged among edges of one layer of children and one of parents, whose parents are "
            f"active in about as many training texts, mean of {config.random_draws} forests",
            "interval_method": interval_method("test texts") + "; probes, features and directions held fixed",
        },
        detail={
            "null": undefined(value, why, len(texts.x)),
            "units": {"accuracy_before": "accuracy", "accuracy_best": "accuracy"},
            "pairs": entries,
        },
        replicates=found.replicates,
    )


def _fired(subject: Subject) -> Int64[Tensor, "d_sae"]:
    """In how many training texts each feature is active."""
    texts, code = subject.labeled
    return torch.from_numpy(
        np.asarray((code.effective[texts.train.ravel()] > 0).sum(0)).ravel().astype(np.int64)
    )


def _measured(
    subject: Subject,
    config: ScrConfig,
    first: int,
    sizes: list[int],
    usable: BoolArray,
    forests: Sequence[Forest],
) -> tuple[_Pair, dict[str, Any]]:
    """A pair of labels, whose quadrants are the four classes from `first`, and its entry in the detail.

    forests: the forest, and those with shuffled parents; none if it has no subtrees.
    """
    texts, code = subject.labeled
    effective = code.effective
    train, test = texts.train[first : first + 4], texts.test[first : first + 4]
    fit, check = apart(train, config.validation) if config.select_on == "validation" else (train, test)
    # With few texts the first epochs make no mistake on an easy label, long before its probe is trained.
    by_loss = config.select_on == "validation"
    probes = fit_probes(
        texts.pooled, *balanced(fit), *balanced(check), config, config.texts.seed, by_loss=by_loss
    )
    logits = probes.logits(texts.pooled)
    decoder = subject.sae.W_dec.detach().double().cpu().numpy()
    along = decoder @ probes.weight.T
    place = np.full(len(texts.count), -1)
    place[texts.test.ravel()] = np.arange(texts.test.size)
    rows = test.ravel()
    q = np.arange(4).repeat(test.shape[1])
    answer = {"label": q < 2, "second": q % 2 == 0}

    def spread(right: FloatArray) -> FloatArray:
        out = np.zeros(texts.test.size)
        out[place[rows]] = right
        return out

    before = {d: ((logits[rows, _BOTH] > 0) == answer[d]).astype(np.float64) for d in _DIRECTIONS}
    best = {
        d: ((logits[rows, knows] > 0) == answer[d]).astype(np.float64)
        for d, (_, knows) in _DIRECTIONS.items()
    }
    fired = np.asarray((effective[train.ravel()] > 0).sum(0), dtype=np.float64).ravel()
    after: dict[tuple[str, str, int], FloatArray] = {}
    entry: dict[str, Any] = {"classes": list(texts.classes[first : first + 4])}
    train_rows, train_own = balanced(train)

    def still_right(direction: str, features: IntArray) -> FloatArray:
        lost = effective[rows][:, features] @ along[features, _BOTH]
        return ((logits[rows, _BOTH] - lost > 0) == answer[direction]).astype(np.float64)

    for direction, (removed, _) in _DIRECTIONS.items():
        difference = mean_difference(effective[train_rows[removed]], train_own)
        effect = effects(difference, np.where(usable, along[:, removed], 0))
        ranked = ablated(effect, len(effect))
        rng = np.random.default_rng((config.texts.seed, first))
        random = [
            alike(ranked[: max(sizes, default=0)], fired, usable, rng) for _ in range(config.random_draws)
        ]
        below: dict[int, int] = {}
        for n in sizes:
            after[direction, "", n] = spread(still_right(direction, ranked[:n]))
            drawn = [still_right(direction, features[:n]) for features in random]
            after[direction, "random_", n] = spread(np.mean(drawn, axis=0))
            if forests:
                whole = [_subtrees(forest, ranked[:n], usable) for forest in forests]
                below[n] = len(whole[0]) - len(ranked[:n])
                own, *shuffled = (still_right(direction, features) for features in whole)
                after[direction, "subtree_", n] = spread(own)
                after[direction, "subtree_shuffled_", n] = spread(np.mean(shuffled, axis=0))
        entry[direction] = {
            "before": float(before[direction].mean()),
            "best": float(best[direction].mean()),
            **{
                f"after_{kind}".rstrip("_"): {
                    str(n): float(after[direction, kind, n].sum() / len(rows)) for n in sizes
                }
                for kind in (_KINDS if forests else _KINDS[:2])
            },
            "below": {str(n): number for n, number in below.items()},
            "features": ranked[:_SHOWN].tolist(),
            "effects": effect[ranked[:_SHOWN]].tolist(),
        }
    lower = "second" if entry["second"]["before"] < entry["label"]["before"] else "label"
    entry["reported"] = lower
    mine = spread(np.ones(len(rows)))
    pair = _Pair(
        mine, {d: spread(b) for d, b in before.items()}, {d: spread(b) for d, b in best.items()}, after, lower
    )
    return pair, entry


def _subtrees(forest: Forest, features: IntArray, usable: BoolArray) -> IntArray:
    """Some features and all that are below them in a forest, without those that take no part in the reconstruction."""
    chosen = np.zeros(len(usable), dtype=bool)
    chosen[features] = True
    return np.flatnonzero(with_all_below(forest, chosen) & usable)


SPEC = Study(
    name="scr",
    needs=frozenset({"labeled_texts", "forest"}),
    transcoders=False,  # it compares decoder rows with input activations
    config=ScrConfig,
    readings={
        "saebench_0.6": ScrConfig(
            texts=TwoLabelTextConfig(train=32_000, test=8_000), select_on="test", epochs=20
        )
    },
    run=scr,
    columns=(Column(INTERPRETABILITY, "scr_20", "SCR, 20 features", "↑"),),
    version=2,
)
