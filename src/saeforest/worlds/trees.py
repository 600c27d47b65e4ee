"""Sampling from a known tree: which features fire, and how strongly (docs/spec/synthetic.md#sampling).

A feature can fire only if its parent fires. Samples are drawn level by level, for all samples at once and only for the
children of parents that fired, so the cost depends on the number of firings, not on the number of features.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..errors import InputError
from ..sparse_code import SparseCode, from_entries
from ..structure.forest import ROOT, Forest

Siblings = Literal["independent", "choice", "contest"]
"""How siblings fire given their parent. independent: each independently. choice: one or none of them, with the given
probabilities. contest: each competes independently, and one of those that would fire, drawn uniformly, does."""

# Samples are drawn in slices, so that no array of candidates at the top of the trees exceeds this many entries.
_CANDIDATES = 1 << 22
# Ten times 0.1 in float32 is a little more than 1.
_ROUNDING = 1e-6


@dataclass(frozen=True, eq=False)
class TreeSpec:
    """The firing statistics of `m` features in a forest. Immutable.

    p:      `[m]` probability that a feature fires (in a contest: competes) given that its parent fires.
    mean:   `[m]` mean of its activation before taking the absolute value: `|N(mean, std)|`.
    std:    `[m]` standard deviation of its activation; 0 for a constant one.
    roots:  how the features without a parent fire.
    children: how siblings fire.
    scale_by_parent: whether an activation is multiplied by the parent's activation divided by the parent's mean.
    factor: `[m, rank]` factor of a Gaussian copula that correlates features: a feature fires if
            `factor_i . a + sqrt(1 - |factor_i|^2) b_i` exceeds the `1 - p_i` quantile, with `a`, `b` standard
            normal and `a` shared by all features of a sample. None for no correlation.
    second: `[m]` a second parent of each feature, in a layer before its own; -1 for none. A feature is drawn under its
            parent in the forest. Where it fires, its second parent fires too, and everything above that. None if no
            feature has a second parent.

    Raises InputError if the probabilities or second parents are invalid.
    """

    forest: Forest
    p: Float[Tensor, "m"]
    mean: Float[Tensor, "m"]
    std: Float[Tensor, "m"]
    roots: Siblings = "independent"
    children: Siblings = "choice"
    scale_by_parent: bool = False
    factor: Float[Tensor, "m rank"] | None = None
    second: Int[Tensor, "m"] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "p", self.p.double())
        if len(self.p) != self.m:
            raise InputError(f"{len(self.p)} probabilities for {self.m} features; expected one each")
        if not bool(((self.p >= 0) & (self.p <= 1)).all()):
            bad = int(((self.p < 0) | (self.p > 1)).nonzero()[0])
            raise InputError(f"probability {float(self.p[bad]):g} of feature {bad}: expected 0 to 1")
        if bool((self.std < 0).any()):
            raise InputError(
                f"standard deviation {float(self.std.min()):g} of an activation: expected 0 or more"
            )
        self._check_choices()
        self._check_factor()
        self._check_second()

    def _check_choices(self) -> None:
        # Entry m is the root's.
        above = torch.where(self.forest.parent == ROOT, self.m, self.forest.parent)
        total = torch.zeros(self.m + 1, dtype=torch.float64).index_add_(0, above, self.p)
        chosen = torch.full((self.m + 1,), self.children == "choice")
        chosen[self.m] = self.roots == "choice"
        over = (chosen & (total > 1 + _ROUNDING)).nonzero().flatten().tolist()
        if over:
            family = "the root" if over[0] == self.m else f"feature {over[0]}"
            raise InputError(
                f"the mutually exclusive children of {family} have probabilities that add up to "
                f"{float(total[over[0]]):g}; expected at most 1"
            )

    def _check_factor(self) -> None:
        if self.factor is None:
            return
        if "choice" in (self.roots, self.children):
            raise InputError("correlated features need siblings 'independent' or 'contest', not 'choice'")
        if float(self.factor.square().sum(1).max()) >= 1:
            raise InputError(
                "correlation factors: expected rows with a norm below 1; reduce the scale or the rank"
            )

    def _check_second(self) -> None:
        if self.second is None:
            return
        if len(self.second) != self.m:
            raise InputError(f"{len(self.second)} second parents for {self.m} features; expected one each")
        if self.scale_by_parent:
            raise InputError("second parents: expected activations that do not scale with those of parents")
        layer, has = self.forest.layer, self.second != ROOT
        given = self.second.clamp(0, self.m - 1)
        wrong = (given != self.second) | (layer[given] >= layer) | (given == self.forest.parent)
        wrong |= self.forest.parent == ROOT
        if bool((has & wrong).any()):
            i = int((has & wrong).nonzero()[0])
            raise InputError(
                f"second parent {int(self.second[i])} of feature {i}: expected -1 (none) or a feature of a layer "
                f"before layer {int(layer[i])} that is not its parent; a root has none"
            )

    @property
    def m(self) -> int:
        """Number of features."""
        return self.forest.d_sae

    @property
    def parents(self) -> tuple[Int[Tensor, "m"], ...]:
        """The parent of each feature in the forest and, if any feature has one, the second parents."""
        return (self.forest.parent,) if self.second is None else (self.forest.parent, self.second)

    @cached_property
    def edges(self) -> Int[Tensor, "2 n_edges"]:
        """All true (parent, child) pairs, without those of the root: by parents, then by second parents."""
        found = []
        for parent in self.parents:
            child = (parent != ROOT).nonzero().flatten()
            found.append(torch.stack([parent[child], child]))
        return torch.cat(found, 1)

    @cached_property
    def top(self) -> Int[Tensor, "roots"]:
        """The features without a parent."""
        return torch.tensor(self.forest.roots)

    @cached_property
    def table(self) -> Int[Tensor, "m most"]:
        """The children of each feature, in ascending order, padded with `m`, a child that never fires."""
        parent, child = self.forest.edges
        order = parent.argsort(stable=True)
        parent, child = parent[order], child[order]
        n = self.forest.n_children
        slot = torch.arange(len(child)) - (n.cumsum(0) - n)[parent]
        table = torch.full((self.m, max(int(n.max()), 1)), self.m)
        table[parent, slot] = child
        return table

    @cached_property
    def padded_p(self) -> Float[Tensor, "m_plus_1"]:
        """The probabilities, with a last entry of 0 for the child that never fires."""
        return torch.cat([self.p, self.p.new_zeros(1)])

    @cached_property
    def copula(self) -> _Copula | None:
        """The copula that correlates features; None if they are independent."""
        if self.factor is None:
            return None
        factor = torch.cat([self.factor, self.factor.new_zeros(1, self.factor.shape[1])])
        threshold = torch.special.ndtri(1 - self.padded_p).float()
        return _Copula(factor, (1 - factor.square().sum(1)).sqrt(), threshold)


class _Copula(NamedTuple):
    """The Gaussian copula of a `TreeSpec`; the last of the `m + 1` entries is that of the child that never fires."""

    factor: Float[Tensor, "m_plus_1 rank"]
    own: Float[Tensor, "m_plus_1"]
    threshold: Float[Tensor, "m_plus_1"]


class _Fired(NamedTuple):
    rows: Int[Tensor, "f"]
    ids: Int[Tensor, "f"]
    values: Float[Tensor, "f"]


def sample_code(spec: TreeSpec, n: int, generator: torch.Generator) -> SparseCode:
    """Sample the activations of true features on `n` samples: a code `[n, k]`, with ids ascending in each row.

    k is the largest number of features that fire on a sample.
    """
    rows = max(_CANDIDATES // max(len(spec.top), 1), 1)
    parts = []
    for start in range(0, n, rows):
        part = _sample_slice(spec, min(rows, n - start), generator)
        parts.append(part._replace(rows=part.rows + start))
    return _as_code(_concatenated(parts), n, spec.m)


def _concatenated(parts: list[_Fired]) -> _Fired:
    return _Fired(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))


def _as_code(fired: _Fired, n: int, m: int) -> SparseCode:
    order = (fired.rows * m + fired.ids).argsort()
    return from_entries(fired.rows[order], fired.ids[order], fired.values[order], n)


def _sample_slice(spec: TreeSpec, n: int, generator: torch.Generator) -> _Fired:
    copula = spec.copula
    shared = None if copula is None else torch.randn(n, copula.factor.shape[1], generator=generator)
    levels = [_top_level(spec, n, shared, generator)]
    while len(levels[-1].rows):
        levels.append(_next_level(spec, levels[-1], shared, generator))
    fired = _concatenated(levels)
    return fired if spec.second is None else _closed(spec, spec.second, fired, generator)


def _closed(spec: TreeSpec, second: Int[Tensor, "m"], fired: _Fired, generator: torch.Generator) -> _Fired:
    """Add the second parents of what fires, and whatever is above them, until nothing is missing."""
    parts, new = [fired], fired
    while len(new.rows):
        have = torch.cat([part.rows * spec.m + part.ids for part in parts])
        above = torch.cat([new.rows * spec.m + parent[new.ids] for parent in (spec.forest.parent, second)])
        above = above[
            torch.cat([parent[new.ids] != ROOT for parent in (spec.forest.parent, second)])
        ].unique()
        missing = above[~torch.isin(above, have, assume_unique=True)]
        rows, ids = missing // spec.m, missing % spec.m
        new = _Fired(rows, ids, _magnitudes(spec, ids, generator))
        parts.append(new)
    return _concatenated(parts)


def _top_level(spec: TreeSpec, n: int, shared: Tensor | None, generator: torch.Generator) -> _Fired:
    ids = spec.top[None]
    common = None if shared is None or spec.copula is None else shared @ spec.copula.factor[spec.top].T
    rows, slot = _fires(spec, spec.roots, ids, n, common, generator).nonzero(as_tuple=True)
    found = spec.top[slot]
    return _Fired(rows, found, _magnitudes(spec, found, generator))


def _next_level(spec: TreeSpec, above: _Fired, shared: Tensor | None, generator: torch.Generator) -> _Fired:
    """Sample which children fire of the parents that fired."""
    above = _Fired(*(tensor[spec.forest.n_children[above.ids] > 0] for tensor in above))
    ids = spec.table[above.ids]
    common = None
    if shared is not None and spec.copula is not None:
        common = torch.einsum("fr,fcr->fc", shared[above.rows], spec.copula.factor[ids])
    family, slot = _fires(spec, spec.children, ids, len(ids), common, generator).nonzero(as_tuple=True)
    found = ids[family, slot]
    values = _magnitudes(spec, found, generator)
    if spec.scale_by_parent:
        values *= above.values[family] / spec.mean[above.ids[family]]
    return _Fired(above.rows[family], found, values)


def _magnitudes(spec: TreeSpec, ids: Int[Tensor, "f"], generator: torch.Generator) -> Float[Tensor, "f"]:
    return (spec.mean[ids] + spec.std[ids] * torch.randn(len(ids), generator=generator)).abs()


def _fires(
    spec: TreeSpec,
    rule: Siblings,
    ids: Int[Tensor, "#n c"],
    n: int,
    common: Float[Tensor, "n c"] | None,
    generator: torch.Generator,
) -> Bool[Tensor, "n c"]:
    """Which of the siblings `ids` fire in each of `n` families whose parent fires. One row stands for all families."""
    if rule == "choice":
        return _chosen(spec.padded_p[ids], n, generator)
    shape = (n, ids.shape[1])
    if common is None or spec.copula is None:
        fires = torch.rand(shape, generator=generator) < spec.padded_p[ids].float()
    else:
        own = torch.randn(shape, generator=generator) * spec.copula.own[ids]
        fires = own + common > spec.copula.threshold[ids]
    return _winners(fires, generator) if rule == "contest" else fires


def _chosen(p: Float[Tensor, "#n c"], n: int, generator: torch.Generator) -> Bool[Tensor, "n c"]:
    """Choose one entry of each row or none, with the given probabilities."""
    upto = p.cumsum(1)
    # If the probabilities add up to 1, rounding must not make it possible that none is chosen.
    upto[upto > 1 - _ROUNDING] = 1.0
    u = torch.rand(n, 1, dtype=torch.float64, generator=generator)
    return torch.arange(p.shape[1]) == (u >= upto).sum(1, keepdim=True)


def _winners(fires: Bool[Tensor, "n c"], generator: torch.Generator) -> Bool[Tensor, "n c"]:
    """Choose one of those that would fire in each row, uniformly."""
    score = torch.rand(fires.shape, generator=generator).masked_fill_(~fires, -1.0)
    first = torch.arange(fires.shape[1]) == score.argmax(1, keepdim=True)
    return fires & first
