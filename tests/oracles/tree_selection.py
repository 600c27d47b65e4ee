"""Slow, obvious float64 references for the options by which a Tree SAE selects features, as docs/spec/tree-sae.md has
them, and the best closed set by enumeration.

Shapes as in `oracles/tree.py`: n tokens, F features in L layers, -1 for the root.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .allocation import ROOT, FloatArray, IntArray
from .tree import Forward, TreeOracle, largest


def closed_scores(h: FloatArray, parent: IntArray, *, pull: bool = True) -> dict[int, float]:
    """The score of every candidate of a token, from values h [F] that are 0 where a feature is not positive enough."""
    candidates = [i for i in range(len(h)) if _alive(h, parent, i)]
    up: dict[int, float] = {}
    for i in reversed(candidates):  # children have larger numbers than their parents
        below = [up[c] for c in candidates if parent[c] == i]
        up[i] = max([h[i], (h[i] + max(below)) / 2]) if below and pull else h[i]
    scores: dict[int, float] = {}
    for i in candidates:
        scores[i] = up[i] if parent[i] == ROOT else min(up[i], scores[parent[i]])
    return scores


def _alive(h: FloatArray, parent: IntArray, i: int) -> bool:
    while i != ROOT:
        if h[i] <= 0:
            return False
        i = int(parent[i])
    return True


def best_closed_set(h: FloatArray, parent: IntArray, k: int) -> float:
    """The largest sum of h over all sets of up to k candidates that are closed under parents, by enumeration."""
    candidates = [i for i in range(len(h)) if _alive(h, parent, i)]
    best = 0.0
    for size in range(min(k, len(candidates)) + 1):
        for members in combinations(candidates, size):
            if all(parent[i] == ROOT or parent[i] in members for i in members):
                best = max(best, float(sum(h[i] for i in members)))
    return best


class SelectionOracle(TreeOracle):
    """A Tree SAE with `selection`, `budget`, `beam` and `reads` of TreeConfig, in training or with thresholds."""

    selection = "layer"
    budget = "token"
    reads = "input"
    beam = 1e9
    pull = True
    thresholds: list[float] | None = (
        None  # of the whole tree, or of each layer: used in place of the batch's budget
    )
    least: list[float]  # the smallest score that each budget of the last batch selected

    def forward(self, x: ArrayLike) -> Forward:
        base = super().forward(x)
        n = len(base.x)
        h = base.h.copy()
        if self.selection == "closed":
            code = self._closed(h)
        else:
            code = np.zeros_like(h)
            self.least = [np.inf] * self.n_layers
            left = base.u.copy()
            for layer in range(self.n_layers):
                features = self.features_of(layer)
                if self.reads == "residual":
                    for t in range(n):
                        for i in features:
                            h[t, i] = self.E[i] @ left[t]
                self._select_layer(layer, h, code)
                for t in range(n):
                    for i in features:
                        left[t] = left[t] - code[t, i] * self.D[i]
        gate = np.zeros_like(h)
        for t in range(n):
            for i in range(self.n_features):
                p = self.parent[i]
                gate[t, i] = 1.0 if p == ROOT or code[t, p] > self.options.threshold else 0.0
        xhat: list[FloatArray] = []
        for layer in range(self.n_layers):
            seen = np.zeros(self.n_features)
            seen[: self.starts[layer] + self.layer_sizes[layer]] = 1.0
            standard = (code * seen) @ self.D + self.b_dec
            xhat.append(base.std[:, None] * standard + base.mean[:, None])
        return replace(base, h=h, gate=gate, code=code, xhat=xhat)

    def read(self, forward: Forward, t: int, i: int) -> FloatArray:
        """What feature i encodes on token t."""
        u = forward.u[t].copy()
        if self.reads == "residual":
            layer = max(x for x in range(self.n_layers) if self.starts[x] <= i)
            for j in range(self.starts[layer]):
                u = u - forward.code[t, j] * self.D[j]
        return u

    def _select_layer(self, layer: int, h: FloatArray, code: FloatArray) -> None:
        n, features, k = len(h), self.features_of(layer), self.k_per_layer[layer]
        scores = np.zeros((n, len(features)))
        for t in range(n):
            for place, i in enumerate(features):
                p = self.parent[i]
                if p == ROOT or code[t, p] > self.options.threshold:
                    scores[t, place] = max(h[t, i], 0.0)
        if layer == 0 or self.budget == "token":
            for t in range(n):
                for place in largest(scores[t], k):
                    code[t, features[place]] = scores[t, place]
            return
        for flat in largest(scores.flatten(), scores.size):
            t, place = divmod(flat, len(features))
            if self.thresholds is None:
                taken = (code[:, features] > 0).sum() < k * n
            else:
                taken = scores[t, place] > self.thresholds[layer]
            if taken and scores[t, place] > 0:
                code[t, features[place]] = scores[t, place]
                self.least[layer] = min(self.least[layer], scores[t, place])

    def _closed(self, h: FloatArray) -> FloatArray:
        n, budget = len(h), sum(self.k_per_layer)
        entries: list[tuple[float, int, int, float, int]] = []
        for t in range(n):
            own = np.where(h[t] > self.options.threshold, h[t], 0.0)
            for layer in range(self.n_layers):
                features = self.features_of(layer)
                alive = np.array([own[i] if _alive(own, self.parent, i) else 0.0 for i in features])
                kept = largest(alive, int(np.ceil(self.beam * budget)))
                for place, i in enumerate(features):
                    own[i] = alive[place] if place in kept else 0.0
            for i, score in closed_scores(own, self.parent, pull=self.pull).items():
                layer = max(x for x in range(self.n_layers) if self.starts[x] <= i)
                entries.append((-score, t, layer, -own[i], i))
        code = np.zeros_like(h)
        taken = [0] * n
        self.least = [np.inf]
        for score, t, _, value, i in sorted(entries):
            if self.budget == "token":
                room = taken[t] < budget
            elif self.thresholds is None:
                room = sum(taken) < budget * n
            else:
                room = -score > self.thresholds[0]
            if room:
                taken[t] += 1
                code[t, i] = -value
                self.least = [-score]
        return code


def with_options(oracle: SelectionOracle, **options: Any) -> SelectionOracle:
    """The oracle with its options set."""
    for name, value in options.items():
        if not hasattr(SelectionOracle, name):
            raise ValueError(f"no option {name}")
        setattr(oracle, name, value)
    return oracle
