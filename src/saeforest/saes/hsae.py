"""HSAE (arXiv 2602.11881): JumpReLU SAEs of growing size, trained together, whose features are linked into a forest.

Every level reconstructs alone. A loss draws each feature to the sum of its children, at random a feature is replaced
by that sum, and from time to time every feature chooses its parent anew among the level above (docs/spec/hsae.md).

Without constraint and perturbation, and with parents chosen only at the end, this is the paper's baseline:
independent SAEs of the same sizes, linked after the fact.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ..errors import InputError
from ..kernels import has_children, jagged_decode, link_distance
from ..seeds import seeded
from ..sparse_code import SparseCode
from ..structure.forest import ROOT
from .levels import Level, LevelsConfig, LevelsSAE, LevelsTraining, Links, decoded
from .parents import choose_parents
from .training import PAPER_STEPS, Event, Setup, Step

_PAPER_PERIOD = 5_000 / PAPER_STEPS


@dataclass(frozen=True)
class HierarchyConfig:
    """How features find their parents in the level above."""

    updates: Literal["alternate", "fixed", "after", "none"] = "alternate"
    """alternate: every `period` steps; fixed: once, at the first of them; after: once, when training has ended;
    none: never."""
    period: int | None = None
    """Steps between updates. None: 5,000 of the paper's 97,657, in proportion to the run."""
    similarity: Literal["encoder", "decoder", "coactivation", "conditional"] = "encoder"
    """How a feature compares parents: cosine of encoder or decoder rows, or the moving average of how often both fire
    on a token (coactivation), as a share of the child's own (conditional)."""
    momentum: float = 0.99
    """Share of that moving average that is kept in a step."""
    unassigned: float = 0.2
    """Share of each level, least similar to any, that stays without a parent. 0: the full tree."""
    max_children: int | None = None
    """Most children of any feature; 2 makes a binary tree. None: no limit."""

    def __post_init__(self) -> None:
        if self.period is not None and self.period < 1:
            raise InputError(f"sae.hierarchy.period = {self.period}: expected 1 or more steps")
        if not 0 <= self.unassigned <= 1:
            raise InputError(f"sae.hierarchy.unassigned = {self.unassigned}: expected a share from 0 to 1")
        if not 0 <= self.momentum < 1:
            raise InputError(f"sae.hierarchy.momentum = {self.momentum}: expected 0 or more, and less than 1")
        if self.max_children is not None and self.max_children < 1:
            raise InputError(f"sae.hierarchy.max_children = {self.max_children}: expected 1 or more")


@dataclass(frozen=True)
class HSAEConfig(LevelsConfig):
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
    architecture: Literal["hsae"] = "hsae"

    def __post_init__(self) -> None:
        super().__post_init__()
        sizes = self.layer_sizes
        if len(sizes) < 2 or any(b <= a for a, b in pairwise(sizes)):
            raise InputError(
                f"sae.layer_sizes {list(sizes)}: an HSAE has two levels or more, each larger than the one before"
            )
        if self.constraint < 0:
            raise InputError(f"sae.constraint = {self.constraint}: expected 0 or more")
        if not 0 <= self.perturbation <= 1:
            raise InputError(f"sae.perturbation = {self.perturbation}: expected a share from 0 to 1")


class HSAE(LevelsSAE):
    config_class = HSAEConfig
    title, color, marker = "HSAE", "#009E73", "s"

    config: HSAEConfig


class Hierarchy(Links):
    """The losses that link levels, and the forest that they follow."""

    def __init__(self, sae: HSAE, setup: Setup) -> None:
        super().__init__()
        config = sae.config
        self._config, self._seed = config, setup.seed
        hierarchy = config.hierarchy
        self.period = setup.run.share(_PAPER_PERIOD) if hierarchy.period is None else hierarchy.period
        self.first_update = self.period if hierarchy.updates in ("alternate", "fixed") else None
        self.averages = None
        if hierarchy.similarity in ("coactivation", "conditional"):
            self.averages = Coactivation(sae, hierarchy.momentum)

    def reconstructions(
        self, sae: LevelsSAE, levels: list[Level], n: int, done: int
    ) -> list[Float[Tensor, "n d_in"]]:
        """A replaced feature's children stand in for it, and learn from its level's error too."""
        replaced = self.draw(sae, done)
        some = bool(replaced.any())
        found = []
        for i, level in enumerate(levels):
            own = level._replace(values=torch.where(replaced[level.ids], 0, level.values))
            u_hat = decoded(sae, own, i, n)
            if i + 1 < len(levels) and some:
                below = levels[i + 1]
                stands_in = replaced[sae.parent[below.ids]]
                rows, ids, values = below.rows[stands_in], below.ids[stands_in], below.values[stands_in]
                u_hat = u_hat + jagged_decode(values, ids, rows, n, sae.decoder)
            found.append(u_hat)
        return found

    def draw(self, sae: LevelsSAE, done: int) -> Bool[Tensor, "d_sae_and_root"]:
        """Which features the step after `done` replaces by their children (docs/spec/hsae.md#perturbation).

        A feature without children never is. The last entry is the root's.
        """
        generator = seeded(self._seed, "perturbation", done)
        drawn = torch.rand(sae.d_sae, generator=generator) < self._config.perturbation
        replaced = torch.zeros(sae.d_sae + 1, dtype=torch.bool, device=sae.device)
        replaced[:-1] = drawn.to(sae.device) & has_children(sae.parent)
        return replaced

    def loss(self, sae: LevelsSAE, levels: list[Level], n: int) -> Float[Tensor, ""] | None:
        """rho sum_l sum_i ||f_i - sum of i's children||^2, f_i being vectors (docs/spec/hsae.md#constraint)."""
        if not self._config.constraint:
            return None
        distances = [link_distance(a, b, sae.parent, sae.decoder) for a, b in pairwise(levels)]
        return self._config.constraint / n * torch.stack(distances).sum()

    # -- the forest

    def follow(self, sae: LevelsSAE, step: Step, number: int) -> list[Event]:
        if self.averages is not None:
            self.averages.add(step.code)
        updates = self._config.hierarchy.updates
        due = number % self.period == 0 if updates == "alternate" else number == self.period
        return self.update(sae, number) if due and updates in ("alternate", "fixed") else []

    def conclude(self, sae: LevelsSAE, number: int) -> None:
        if self._config.hierarchy.updates == "after":
            self.update(sae, number)

    def update(self, sae: LevelsSAE, number: int) -> list[Event]:
        """Every feature's parent becomes the most similar feature of the level above."""
        hierarchy = self._config.hierarchy
        events = []
        for i in range(sae.n_levels - 1):
            above, below = sae.level(i), sae.level(i + 1)
            local = choose_parents(self._similarity(sae, i), hierarchy.unassigned, hierarchy.max_children)
            new = torch.where(local == ROOT, ROOT, local + above.start)
            old = sae.parent[below].cpu()
            log = {
                "event": "hierarchy",
                "step": number,
                "layer": i + 1,
                "moved": int((old != new).sum()),
                "to_root": int((new == ROOT).sum()),
                "parents": len(new[new != ROOT].unique()),
            }
            sae.parent[below] = new.to(sae.device)
            events.append(Event(log))
        return events

    def _similarity(self, sae: LevelsSAE, i: int) -> Float[Tensor, "above below"]:
        """The similarity of every feature of a level with every one of the next."""
        if self.averages is not None:
            return self.averages.similarity(i, conditional=self._config.hierarchy.similarity == "conditional")
        rows = F.normalize(sae.encoder if self._config.hierarchy.similarity == "encoder" else sae.decoder)
        return (rows[sae.level(i)] @ rows[sae.level(i + 1)].T).cpu()


class Coactivation(nn.Module):
    """For each level with the next, moving averages of the share of tokens on which both features fire, and on which
    the child does."""

    def __init__(self, sae: HSAE, momentum: float) -> None:
        super().__init__()
        self._starts, self._momentum = sae.starts, momentum
        about = {"dtype": sae.encoder.dtype, "device": sae.device}
        for i, (n, m) in enumerate(pairwise(sae.config.layer_sizes)):
            self.register_buffer(f"together_{i}", torch.zeros(n, m, **about))
            self.register_buffer(f"child_{i}", torch.zeros(m, **about))

    def of(self, i: int) -> tuple[Float[Tensor, "above below"], Float[Tensor, "below"]]:
        """The averages of level `i` with the next, and of that one alone."""
        return self.get_buffer(f"together_{i}"), self.get_buffer(f"child_{i}")

    def add(self, code: SparseCode) -> None:
        active = code.dense(self._starts[-1]) > 0
        levels = [active[:, a:b] for a, b in pairwise(self._starts)]
        new = (1 - self._momentum) / len(active)
        for i, (above, below) in enumerate(pairwise(levels)):
            together, child = self.of(i)
            above, below = above.to(together.dtype), below.to(together.dtype)
            together.mul_(self._momentum).add_(above.T @ below, alpha=new)
            child.mul_(self._momentum).add_(below.sum(0), alpha=new)

    def similarity(self, i: int, *, conditional: bool) -> Float[Tensor, "above below"]:
        together, child = self.of(i)
        if conditional:
            together = torch.where(child > 0, together / child.clamp(min=1e-30), 0)
        return together.cpu()


class HSAETraining(LevelsTraining):
    def __init__(self, sae: HSAE, setup: Setup) -> None:
        super().__init__(sae, sae.config, Hierarchy(sae, setup), setup)
