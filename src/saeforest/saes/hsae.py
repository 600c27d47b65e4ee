"""HSAE (arXiv 2602.11881): JumpReLU SAEs of growing size, trained together, whose features are linked into a forest.

Every level reconstructs alone. A loss draws each feature to the sum of its children, at random a feature is replaced
by that sum, and from time to time every feature chooses its parent anew among the level above (SPEC 6).

Without constraint and perturbation, and with parents chosen only at the end, this is the paper's baseline:
independent SAEs of the same sizes, linked after the fact.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..errors import UserError
from ..kernels import jagged_decode
from ..seeds import seeded
from ..sparse_code import SparseCode
from ..structure.forest import ROOT
from .base import PAPER_STEPS, Event, Step, TrainingPlan
from .jumprelu import JumpReLUConfig, JumpReLUSAE, Level, of_features

_PAPER_PERIOD = 5_000 / PAPER_STEPS
# A family of more active siblings has too many pairs: their sum is formed instead.
_CROWD = 8


@dataclass(frozen=True)
class HierarchyConfig:
    """How features find their parents in the level above."""

    updates: Literal["alternate", "fixed", "after", "none"] = "alternate"
    """alternate: every `period` steps; fixed: once, at the first of them; after: once, when training has ended;
    none: never."""
    period: int | None = None
    """Steps between updates. None: 5,000 of the paper's 97,657, in proportion to the run."""
    similarity: Literal["encoder", "decoder", "coactivation", "conditional"] = "encoder"
    """By which a feature chooses: cosine of encoder or decoder rows, or the moving average of how often both fire on
    a token (coactivation), as a share of the child's own (conditional)."""
    momentum: float = 0.99
    """Of that moving average, a step."""
    unassigned: float = 0.2
    """Share of each level, least similar to any, that stays without a parent. 0: the full tree."""
    max_children: int | None = None
    """Of any feature; 2 makes a binary tree. None: no limit."""

    def __post_init__(self) -> None:
        if self.period is not None and self.period < 1:
            raise UserError(f"sae.hierarchy.period = {self.period}: expected 1 or more steps")
        if not 0 <= self.unassigned <= 1:
            raise UserError(f"sae.hierarchy.unassigned = {self.unassigned}: expected a share from 0 to 1")
        if not 0 <= self.momentum < 1:
            raise UserError(f"sae.hierarchy.momentum = {self.momentum}: expected 0 or more, and less than 1")
        if self.max_children is not None and self.max_children < 1:
            raise UserError(f"sae.hierarchy.max_children = {self.max_children}: expected 1 or more")


@dataclass(frozen=True)
class HSAEConfig(JumpReLUConfig):
    """An HSAE and its training. Sizes, L0, constraint and perturbation are the paper's by default."""

    layer_sizes: tuple[int, ...] = (2048, 4096, 8192, 16384)
    """Features of each level, growing."""
    k_per_layer: tuple[int, ...] = (50, 50, 50, 50)
    """The L0 that each level aims at."""
    constraint: float = 0.01
    """Weight of the loss that draws a feature to the sum of its children; 0 for none."""
    perturbation: float = 0.05
    """Share of features replaced by the sum of their children, in every step anew; 0 for none."""
    hierarchy: HierarchyConfig = field(default_factory=HierarchyConfig)
    architecture: Literal["hsae"] = "hsae"  # pyright: ignore[reportIncompatibleVariableOverride]

    def check_levels(self) -> None:
        sizes = self.layer_sizes
        if len(sizes) < 2 or any(b <= a for a, b in pairwise(sizes)):
            raise UserError(
                f"sae.layer_sizes {list(sizes)}: an HSAE has two levels or more, each larger than the one before"
            )
        if self.constraint < 0:
            raise UserError(f"sae.constraint = {self.constraint}: expected 0 or more")
        if not 0 <= self.perturbation <= 1:
            raise UserError(f"sae.perturbation = {self.perturbation}: expected a share from 0 to 1")


class HSAE(JumpReLUSAE):
    config_class = HSAEConfig
    title, color, marker = "HSAE", "#009E73", "s"
    flat = False

    config: HSAEConfig  # pyright: ignore[reportIncompatibleVariableOverride]
    steps: Tensor

    def __init__(self, config: HSAEConfig, d_in: int, *, seed: int = 0) -> None:
        super().__init__(config, d_in, seed=seed)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        if config.hierarchy.similarity in ("coactivation", "conditional"):
            # Of each level with the next: on which share of tokens both fire, and on which the child does.
            for level, (n, m) in enumerate(pairwise(config.layer_sizes)):
                self.register_buffer(f"together_{level}", torch.zeros(n, m))
                self.register_buffer(f"child_{level}", torch.zeros(m))

    def prepare(self, plan: TrainingPlan) -> None:
        super().prepare(plan)
        period = self.config.hierarchy.period
        self._period = plan.share(_PAPER_PERIOD) if period is None else period

    # -- the losses that link levels

    def training_step(self, x: Float[Tensor, "n d_in"]) -> Step:
        self._replaced = self._draw()
        step = super().training_step(x)
        if hasattr(self, "together_0"):
            self._average_coactivation(step.code)
        return step

    def _draw(self) -> Bool[Tensor, "d_sae_and_root"]:
        """Which features this step replaces by their children: never one without any (SPEC 6.3, #1 to #4)."""
        generator = seeded(self.seed, "perturbation", int(self.steps))
        drawn = torch.rand(self.d_sae, generator=generator) < self.config.perturbation
        replaced = torch.zeros(
            self.d_sae + 1, dtype=torch.bool, device=self.device
        )  # the last entry is the root's
        replaced[:-1] = drawn.to(self.device) & self._has_children()
        return replaced

    def _has_children(self) -> Bool[Tensor, "d_sae"]:
        return torch.bincount(self.parent[self.parent != ROOT], minlength=self.d_sae) > 0

    def reconstructions(self, levels: list[Level], n: int) -> list[Float[Tensor, "n d_in"]]:
        """Of every level; a replaced feature's children stand in for it, and learn from its level's error too."""
        replaced = self._replaced
        found = []
        for i, level in enumerate(levels):
            own = torch.where(replaced[level.ids], 0, level.values)
            u_hat = jagged_decode(own, level.ids, level.rows, n, self.decoder) + self.layer_bias(i)
            if i + 1 < len(levels) and bool(replaced.any()):
                below = levels[i + 1]
                stands_in = replaced[self.parent[below.ids]]
                rows, ids, values = below.rows[stands_in], below.ids[stands_in], below.values[stands_in]
                u_hat = u_hat + jagged_decode(values, ids, rows, n, self.decoder)
            found.append(u_hat)
        return found

    def links(self, levels: list[Level], n: int) -> Float[Tensor, ""] | None:
        """rho sum_l sum_i ||f_i - sum of i's children||^2 over features with children, f_i the vector (SPEC 6.1)."""
        if not self.config.constraint:
            return None
        distances = [self._distance(a, b) for a, b in pairwise(levels)]
        return self.config.constraint / n * torch.stack(distances).sum()

    def _distance(self, above: Level, below: Level) -> Float[Tensor, ""]:
        """Sum over tokens of the squared distances between features and the sums of their children.

        Multiplied out: squares, products of child and parent, products of siblings. Which decoder rows meet is the
        same on every token, so their products are taken once, and no vector is made for a family on a token.
        """
        parent = self.parent
        own, child = self._has_children()[above.ids], parent[below.ids] != ROOT
        squared = (self.decoder * self.decoder).sum(1)
        a, b = above.values[own], below.values[child]
        ids, rows = below.ids[child], below.rows[child]
        total = (a * a * of_features(squared, above.ids[own])).sum() + (
            b * b * of_features(squared, ids)
        ).sum()

        # Entries come by row and then by id: a child's parent is found by bisection.
        at = above.rows[own] * self.d_sae + above.ids[own]
        wanted = rows * self.d_sae + parent[ids]
        place = torch.searchsorted(at, wanted).clamp(max=max(len(at) - 1, 0))
        met = (at[place] == wanted).nonzero().flatten() if len(at) else place[:0]
        total = total - 2 * (a[place[met]] * b[met] * self._products(parent[ids[met]], ids[met])).sum()

        return total + self._siblings(b, ids, wanted)

    def _siblings(
        self, values: Float[Tensor, "m"], ids: Int[Tensor, "m"], family: Int[Tensor, "m"]
    ) -> Float[Tensor, ""]:
        """Sum over families of the products of all different siblings: pair by pair, but of crowded families whole."""
        family, order = family.sort(stable=True)
        values, ids = values[order], ids[order]
        which, count = family.unique_consecutive(return_inverse=True, return_counts=True)[1:]
        crowded = count[which] > _CROWD
        total = values.sum() * 0
        few, of = values[~crowded], ids[~crowded]
        for i, j in _pairs_within(which[~crowded]):
            total = total + 2 * (few[i] * few[j] * self._products(of[i], of[j])).sum()
        if bool(crowded.any()):
            many, of = values[crowded], ids[crowded]
            rows = which[crowded].unique_consecutive(return_inverse=True)[1]
            sums = jagged_decode(many, of, rows, int(rows[-1]) + 1, self.decoder)
            alone = many * many * of_features((self.decoder * self.decoder).sum(1), of)
            total = total + sums.square().sum() - alone.sum()
        return total

    def _products(self, i: Int[Tensor, "m"], j: Int[Tensor, "m"]) -> Float[Tensor, "m"]:
        """Of decoder rows, each different pair multiplied once."""
        pairs, which = (i * self.d_sae + j).unique(return_inverse=True)
        left, right = (F.embedding(part, self.decoder) for part in (pairs // self.d_sae, pairs % self.d_sae))
        return of_features((left * right).sum(1), which)

    # -- the forest

    @torch.no_grad()
    def after_step(self, step: int, loss: float) -> list[Event]:
        super().after_step(step, loss)
        self.steps += 1
        updates = self.config.hierarchy.updates
        due = step % self._period == 0 if updates == "alternate" else step == self._period
        return self._update(step) if due and updates in ("alternate", "fixed") else []

    @property
    def first_update(self) -> int | None:
        return self._period if self.config.hierarchy.updates in ("alternate", "fixed") else None

    @torch.no_grad()
    def finish(self) -> None:
        if self.config.hierarchy.updates == "after":
            self._update(int(self.steps))
        super().finish()

    def _update(self, step: int) -> list[Event]:
        """Every feature's parent becomes the most similar feature of the level above."""
        events = []
        hierarchy = self.config.hierarchy
        for level in range(len(self._levels) - 1):
            children = self._levels[level + 1]
            local = choose_parents(self._similarity(level), hierarchy.unassigned, hierarchy.max_children)
            new = torch.where(local == ROOT, ROOT, local + self._levels[level].start)
            old = self.parent[children].cpu()
            log = {
                "event": "hierarchy",
                "step": step,
                "layer": level + 1,
                "moved": int((old != new).sum()),
                "to_root": int((new == ROOT).sum()),
                "parents": len(new[new != ROOT].unique()),
            }
            self.parent[children] = new.to(self.parent.device)
            events.append(Event(log))
        return events

    def _similarity(self, level: int) -> Float[Tensor, "above below"]:
        """Of every feature of a level with every one of the next."""
        how = self.config.hierarchy.similarity
        if how in ("encoder", "decoder"):
            rows = F.normalize(self.encoder if how == "encoder" else self.decoder)
            return (rows[self._levels[level]] @ rows[self._levels[level + 1]].T).cpu()
        together = getattr(self, f"together_{level}")
        if how == "conditional":
            child = getattr(self, f"child_{level}")
            together = torch.where(child > 0, together / child.clamp(min=1e-30), 0)
        return together.cpu()

    @torch.no_grad()
    def _average_coactivation(self, code: SparseCode) -> None:
        kept = self.config.hierarchy.momentum
        active = code.dense(self.d_sae) > 0
        for level in range(len(self._levels) - 1):
            above = active[:, self._levels[level]].to(self.encoder.dtype)
            below = active[:, self._levels[level + 1]].to(self.encoder.dtype)
            new = (1 - kept) / len(active)
            getattr(self, f"together_{level}").mul_(kept).add_(above.T @ below, alpha=new)
            getattr(self, f"child_{level}").mul_(kept).add_(below.sum(0), alpha=new)


def _pairs_within(family: Int[Tensor, "m"]) -> Iterator[tuple[Int[Tensor, "p"], Int[Tensor, "p"]]]:
    """All pairs of places with the same family, which are side by side: neighbours first, then the next but one, ..."""
    first = torch.arange(len(family), device=family.device)
    for step in range(1, len(family)):
        first = first[first + step < len(family)]
        first = first[family[first] == family[first + step]]
        if len(first) == 0:
            return
        yield first, first + step


def choose_parents(
    similarity: Float[Tensor, "above below"], unassigned: float, max_children: int | None = None
) -> Int[Tensor, "below"]:
    """For every child its most similar parent, -1 for the `unassigned` share that is least similar to any.

    With `max_children`, pairs are taken by descending similarity as long as the parent has room. Ties go to the lower
    child, then to the lower parent (SPEC 6.1; 6.3, #11).
    """
    if max_children is None:
        best, parent = similarity.max(0)
    else:
        best, parent = _with_room(similarity, max_children)
    least = best.argsort(stable=True)[: math.floor(unassigned * len(best))]
    parent[least] = ROOT
    return parent


def _with_room(
    similarity: Float[Tensor, "above below"], max_children: int
) -> tuple[Float[Tensor, "below"], Int[Tensor, "below"]]:
    """Pairs by descending similarity, as long as the parent has room.

    Found by proposals: every child without a parent asks the most similar one that might still take it, and a parent
    keeps the most similar `max_children` of those who asked. Both sides rank by one similarity, so it ends the same.
    """
    n_above, n_below = similarity.shape
    parent = torch.full((n_below,), ROOT)
    refused = torch.zeros(n_above, n_below, dtype=torch.bool)
    asking = torch.arange(n_below)
    while len(asking):
        open_to = similarity[:, asking].masked_fill(refused[:, asking], -math.inf)
        best, wanted = open_to.max(0)
        asking, wanted = asking[best > -math.inf], wanted[best > -math.inf]
        parent[asking] = wanted
        placed = (parent != ROOT).nonzero().flatten()
        # By parent, then by descending similarity, then by child: the first of each parent stay.
        placed = placed[similarity[parent[placed], placed].argsort(descending=True, stable=True)]
        placed = placed[parent[placed].argsort(stable=True)]
        of = parent[placed]
        rank = torch.arange(len(placed)) - torch.searchsorted(of, of)
        asking = placed[rank >= max_children]
        refused[parent[asking], asking] = True
        parent[asking] = ROOT
    alone = parent == ROOT
    best = similarity[parent.clamp(min=0), torch.arange(n_below)]
    return torch.where(alone, -math.inf, best), parent
