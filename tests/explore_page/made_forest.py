"""A forest made up for the tests of the page, of any size, without a model: its arrays, labels and contexts."""

from __future__ import annotations

import base64
import math
import random
import re
from functools import cached_property
from typing import Any

import numpy as np

#: Text that would do something if a page obeyed it.
HOSTILE = "<script>alert(1)</script>\u202egnp.exe\x07"

FAMILIES = {
    "time": {
        "weekdays": "Monday Tuesday Friday Sunday",
        "months": "January March June October",
        "hours": "noon midnight dawn dusk",
    },
    "praise": {
        "incredible": "incredible amazing awesome",
        "nice": "nice lovely pleasant",
        "weird": "weird strange odd",
        "interesting": "interesting fascinating",
    },
    "places": {
        "rivers": "Rhine Danube Nile Thames",
        "capitals": "Paris Berlin Tokyo Lima",
        "streets": "street avenue lane square",
    },
    "law": {
        "courts": "court judge appeal verdict",
        "contracts": "contract clause party lease",
        "crime": "theft fraud arson assault",
    },
    "body": {
        "heart": "heart pulse artery valve",
        "bones": "bone skull rib spine",
        "illness": "fever cough flu measles",
    },
    "code": {
        "loops": "for while until loop",
        "types": "int float string bool",
        "errors": "error panic throw abort",
    },
    "food": {
        "bread": "bread loaf toast dough",
        "fruit": "apple pear plum cherry",
        "drink": "tea coffee juice beer",
    },
    "weather": {
        "rain": "rain drizzle shower storm",
        "snow": "snow sleet ice frost",
        "wind": "wind breeze gale gust",
    },
}
AROUND = (
    "it was told to everybody that the {} had been there for years and nobody would speak of it again",
    "we went to see the {} again, and then walked home along the canal before the lamps were lit",
    "in the last report the {} is mentioned only once, although the authors knew about it quite well",
    "there is, I think, a better {} than this one; ask her brother, who has seen many of them before",
    "everything about {} that you can read in this book was written down by somebody who was there\nand",
)
COLUMNS = (
    (
        "ungated",
        "Coverage without the gate",
        "share",
        False,
        "How often the parent is active where the child's own detector fires, ignoring the gate.",
    ),
    (
        "coverage",
        "Coverage",
        "share",
        True,
        "How often the parent is active where the child is.",
    ),
    (
        "lift",
        "Lift",
        "log2",
        False,
        "How much oftener the child's detector fires with its parent than anywhere, in powers of two.",
    ),
    ("p_child", "P(child | parent)", "share", False, "How often the child is active where its parent is."),
    (
        "cos_decoder",
        "Cosine of decoders",
        "cosine",
        False,
        "Cosine between the decoder rows of parent and child.",
    ),
    (
        "s_res",
        "Reconstruction score S_res",
        "cosine",
        True,
        "The smaller cosine of the child's direction with the decoder rows of parent and child.",
    ),
    ("sibling_overlap", "Overlap with siblings", "share", False, "Largest Jaccard index with a sibling."),
    (
        "tokens_alike",
        "Tokens alike",
        "number",
        False,
        "1 minus the Jensen-Shannon divergence of the distributions of tokens.",
    ),
)


def packed(values: Any, dtype: str) -> dict[str, Any]:
    """An array as the API writes it."""
    array = np.ascontiguousarray(values, dtype=np.dtype(dtype).newbyteorder("<"))
    return {"dtype": dtype, "shape": list(array.shape), "data": base64.b64encode(array.tobytes()).decode()}


class MadeArrays:
    """Arrays of a forest from a seed.

    layer_sizes: features of each layer, the roots first; shares: of features that never fire.
    """

    def __init__(self, layer_sizes: tuple[int, ...] = (48, 220, 600), dead_share: float = 0.08) -> None:
        self.sizes, self.n = layer_sizes, sum(layer_sizes)
        rng = np.random.default_rng(7)
        starts = np.cumsum([0, *layer_sizes])
        self.layer = np.repeat(np.arange(len(layer_sizes)), layer_sizes).astype(np.int32)
        self.parent = np.full(self.n, -1, np.int32)
        for layer in range(1, len(layer_sizes)):
            weight = rng.pareto(1.2, layer_sizes[layer - 1]) + 0.05
            draws = rng.choice(layer_sizes[layer - 1], layer_sizes[layer], p=weight / weight.sum())
            self.parent[starts[layer] : starts[layer + 1]] = starts[layer - 1] + draws
        names = list(FAMILIES)
        for root, name in enumerate(names):  # the first roots are families that read well
            kids = list(FAMILIES[name])
            for place in range(len(kids)):
                self.parent[starts[1] + root * 4 + place] = root
        self.density = np.exp(rng.normal(-5.2, 1.1, self.n)).clip(1e-6, 0.2).astype(np.float32)
        for feature in range(starts[1], self.n):
            self.density[feature] = self.density[self.parent[feature]] * rng.beta(1.3, 4)
        self.dead = (rng.random(self.n) < dead_share).astype(np.uint8)
        self.dead[: starts[1] + 4 * len(names)] = 0
        self.density[self.dead == 1] = 0
        self.n_tokens = 200_000
        self.fired = np.where(self.dead, 0, np.maximum(1, self.density * self.n_tokens)).astype(np.int32)
        self.max = np.where(self.dead, np.nan, rng.gamma(6, 0.8, self.n)).astype(np.float32)
        self.children: dict[int, list[int]] = {}
        for feature, parent in enumerate(self.parent.tolist()):
            if parent >= 0:
                self.children.setdefault(parent, []).append(feature)
        self.words = self._words()
        self.labels = {f: " · ".join(self.words[f][:3]) for f in range(self.n) if not self.dead[f]}
        self.labels[int(starts[-1]) - 1] = HOSTILE
        self.dead[starts[-1] - 1] = 0
        self._columns(rng)
        self.written: dict[str, dict[str, Any]] = {"annotations": {}, "ratings": {}}
        self.tally = {kind: {"yes": 0, "no": 0, "unsure": 0} for kind in ("edge", "null")}
        self.pairs: dict[str, tuple[str, int, int]] = {}
        self.unread = {3}  # families of which the model was not asked yet

    def _words(self) -> list[list[str]]:
        rng = random.Random(3)
        bank = [word for family in FAMILIES.values() for words in family.values() for word in words.split()]
        starts = np.cumsum([0, *self.sizes]).tolist()
        words = [rng.sample(bank, 4) for _ in range(self.n)]
        for root, family in enumerate(FAMILIES.values()):
            lists = [text.split() for text in family.values()]
            words[root] = [texts[0] for texts in lists]
            for place, texts in enumerate(lists):
                words[starts[1] + root * 4 + place] = texts
        return words

    def _columns(self, rng: np.random.Generator) -> None:
        self.columns: dict[str, np.ndarray] = {}
        self.places: dict[str, np.ndarray] = {}
        self.null: dict[str, np.ndarray] = {}
        quality = rng.beta(2, 2, self.n)
        for name, _, form, mechanical, _ in COLUMNS:
            noise, pure = rng.normal(0, 1, self.n), rng.normal(0, 1, 1500)
            shift = 0.0 if mechanical else 4 * (quality - 0.3)
            score = noise * 0.7 + shift
            make = {
                "share": lambda z: 1 / (1 + np.exp(2.2 - 1.3 * z)),
                "cosine": lambda z: np.tanh(0.15 + 0.25 * z),
                "log2": lambda z: 1.2 * z,
                "number": lambda z: 1 / (1 + np.exp(-z)),
            }[form]
            values = np.ones(self.n) if name == "coverage" else make(score)
            null = np.ones(1500) if name == "coverage" else make(pure)
            place = np.searchsorted(np.sort(null), values) / len(null)
            place = np.full(self.n, 0.5) if name == "coverage" else place
            undefined = (self.parent < 0) | (self.dead == 1)
            self.columns[name] = np.where(undefined, np.nan, values).astype(np.float32)
            self.places[name] = np.where(undefined, np.nan, place).astype(np.float32)
            self.null[name] = null.astype(np.float32)

    # -- parts

    def context(self, feature: int, place: int, children: bool = False) -> dict[str, Any]:
        rng = random.Random(feature * 1000 + place)
        word = self.words[feature][rng.randrange(4) % len(self.words[feature])]
        left, right = rng.choice(AROUND).split(" {}")
        if feature == self.n - 1 and place == 0:
            right = f" {HOSTILE} " + right
        tokens = [t for t in re.split(r"(?=[ \n])", left) if t] + [f" {word}"]
        at = len(tokens) - 1
        tokens += [t for t in re.split(r"(?=[ \n])", right) if t]
        peak = float(np.nan_to_num(self.max[feature], nan=1.0)) * 0.95 ** (place % 20)
        values = [0.0] * len(tokens)
        values[at] = peak
        for near in (at - 1, at + 1, at + 2):
            if 0 <= near < len(tokens) and rng.random() < 0.5:
                values[near] = peak * rng.random() * 0.8
        kids = self.children.get(feature, [])[:8]
        child = None
        if children and kids:
            child = [rng.choice([-1, *kids]) if value > 0 else -1 for value in values]
            child[at] = kids[place % len(kids)]
        return {
            "document": f"doc{place}",
            "row": feature * 100 + place,
            "value": peak,
            "tokens": tokens,
            "values": values,
            "at": at,
            "child": child,
        }

    def summary(self, feature: int) -> dict[str, Any]:
        return {"id": feature, "label": self.labels.get(feature), "tokens": self.words[feature]}

    def edge(self, child: int) -> dict[str, Any]:
        return {
            "parent": int(self.parent[child]),
            "child": child,
            "columns": [
                {
                    **about,
                    "value": number(self.columns[about["name"]][child]),
                    "place": number(self.places[about["name"]][child]),
                }
                for about in self.about
            ],
        }

    @cached_property
    def about(self) -> list[dict[str, Any]]:
        return [
            {
                "name": n,
                "title": t,
                "unit": "",
                "description": d,
                "mechanical": m,
                "forced_by": "gate" if m else None,
                "of_pair": True,
                "defined": "the child fires",
                "format": f,
                "higher_is_more": True,
            }
            for n, t, f, m, d in COLUMNS
        ]


def number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
