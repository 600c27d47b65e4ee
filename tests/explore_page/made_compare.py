"""A second forest made up for the tests of the page: the first one's features in another order, some changed."""

from __future__ import annotations

from typing import Any

import numpy as np

from explore_page.made_forest import MadeArrays, packed

OTHER, BARE = "runs/second", "runs/bare"


class MadeOther:
    """The answer of `compare`: features of `made` renumbered within their layer, a part of them without a match, and a
    part of the edges moved."""

    def __init__(self, made: MadeArrays) -> None:
        rng = np.random.default_rng(11)
        starts = np.cumsum([0, *made.sizes])
        self.made, self.n = made, made.n
        self.to = np.concatenate(
            [start + rng.permutation(size) for start, size in zip(starts, made.sizes, strict=False)]
        ).astype(np.int32)
        self.back = np.argsort(self.to).astype(np.int32)
        self.cos = np.where(
            rng.random(self.n) < 0.7, rng.uniform(0.72, 0.99, self.n), rng.uniform(0.1, 0.6, self.n)
        )
        self.parent = np.full(self.n, -1, np.int32)
        for feature, parent in enumerate(made.parent.tolist()):
            if parent >= 0:
                moved = rng.random() < 0.4
                self.parent[self.to[feature]] = (
                    rng.integers(starts[made.layer[parent]], starts[made.layer[parent] + 1])
                    if moved
                    else self.to[parent]
                )
        self.cos[:2], self.cos[48:54] = 0.95, 0.9
        for feature in range(48, 54):
            self.parent[self.to[feature]] = self.to[made.parent[feature]]

    def answer(self, name: str) -> dict[str, Any]:
        """The answer about the other one: OTHER, or BARE, which has no index."""
        made = self.made
        bare = name == BARE
        here = self._side(made.parent, self.parent, self.to, self.cos)
        there = self._side(self.parent, made.parent, self.back, self.cos[self.back])
        return {
            "other": name,
            "threshold": 0.7,
            "pairs": [],
            "matched_share": 0.7,
            "mean_cos": 0.7,
            "parents_share": 0.6,
            "null": {"matched_share": 0.0, "mean_cos": 0.2, "parents_share": 0.02},
            "here": here,
            "there": there,
            "forest": {
                "parent": packed(self.parent, "int32"),
                "layer": packed(made.layer, "int32"),
                "density": None if bare else packed(made.density[self.back], "float32"),
                "dead": None if bare else packed(made.dead[self.back], "uint8"),
                "labels": {} if bare else {str(int(self.to[f])): label for f, label in made.labels.items()},
                "indexed": not bare,
                "missing": "no index yet; make it with `saeforest index runs/bare`" if bare else None,
            },
        }

    @staticmethod
    def _side(parent: np.ndarray, other: np.ndarray, to: np.ndarray, cos: np.ndarray) -> dict[str, Any]:
        kept = (parent >= 0) & (to[parent] == other[to])
        measures = [
            {
                "threshold": least,
                "n_features": len(parent),
                "matched": float((cos >= least).mean()),
                "matched_chance": 0.002,
                "n_edges": int((parent >= 0).sum()),
                "n_both": int(((parent >= 0) & (cos >= least) & (cos[parent] >= least)).sum()),
                "kept": 0.58,
                "kept_chance": {"value": 0.02, "interval": [0.012, 0.031]},
            }
            for least in (0.5, 0.7, 0.9)
        ]
        return {
            "match": packed(to, "int32"),
            "cos": packed(cos, "float32"),
            "kept": packed(kept, "uint8"),
            "chance": packed(np.full(len(parent), 0.02), "float32"),
            "measures": measures,
        }

    def feature(self, f: int) -> dict[str, Any]:
        own = int(self.back[f])
        return {
            "id": f,
            "max": float(self.made.max[own]),
            "top": [self.made.context(own, i + 3) for i in range(6)],
        }
