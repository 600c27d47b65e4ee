"""HSAE (arXiv 2602.11881): JumpReLU SAEs of growing size, trained together, whose features are linked into a forest.

Every level reconstructs the input on its own. A loss pulls each feature toward the sum of its children, features are
randomly replaced by that sum, and at intervals every feature chooses its parent again from the level above
(docs/spec/hsae.md).

Without constraint and perturbation, and with parents chosen only at the end, this is the paper's baseline:
independent SAEs of the same sizes, linked after training.
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
from ..kernels import has_children, jagged_decode, link_distance, projected_distance, toward_parents
from ..seeds import seeded
from ..sparse_code import SparseCode
from ..structure.forest import ROOT
from .levels import Level, LevelsConfig, LevelsSAE, LevelsTraining, Links, decoded
from .parents import choose_parents
from .training import PAPER_STEPS, Event, Setup, Step

_PAPER_PERIOD = 5_000 / PAPER_STEPS


@dataclass(frozen=True)
class ParentsConfig:
    """How features choose their parents in the level above."""

    updates: Literal["alternate", "fixed", "after", "none"] = "alternate"
    """When parents are chosen. alternate: every `period` steps; fixed: once, after the first `period` steps; after:
    once, at the end of training; none: never."""
    period: int | None = None
    """Number of steps between updates. None: 5% of the run (5,000 of the paper's 97,657 steps)."""
    similarity: Literal["encoder", "decoder", "coactivation", "conditional"] = "encoder"
    """Similarity by which a feature chooses its parent. encoder or decoder: cosine of their rows; coactivation: how
    often both fire on a token; conditional: that, divided by how often the child fires."""
    momentum: float = 0.99
    """Decay rate per step of the moving averages for coactivation and conditional."""
    unassigned: float = 0.2
    """Fraction of each level, the features least similar to any parent, that stays without one. 0: the full tree."""
    max_children: int | None = None
    """Largest number of children of a feature; 2 makes a binary tree. None: no limit."""
    max_cosine: float | None = None
    """Largest cosine of a feature's decoder row with its parent's; with a larger one it would be a copy. None: no
    limit, as in the paper."""

    def __post_init__(self) -> None:
        if self.period is not None and self.period < 1:
            raise InputError(f"sae.hierarchy.period = {self.period}: expected 1 or more steps")
        if not 0 <= self.unassigned <= 1:
            raise InputError(f"sae.hierarchy.unassigned = {self.unassigned}: expected a fraction from 0 to 1")
        if not 0 <= self.momentum < 1:
            raise InputError(f"sae.hierarchy.momentum = {self.momentum}: expected 0 or more, and less than 1")
        if self.max_children is not None and self.max_children < 1:
            raise InputError(f"sae.hierarchy.max_children = {self.max_children}: expected 1 or more")
        if self.max_cosine is not None and not -1 <= self.max_cosine <= 1:
            raise InputError(f"sae.hierarchy.max_cosine = {self.max_cosine}: expected a cosine, -1 to 1")


@dataclass(frozen=True)
class HSAEConfig(LevelsConfig):
    """An HSAE and its training. Sizes, L0, constraint and perturbation are the paper's by default."""

    layer_sizes: tuple[int, ...] = (2048, 4096, 8192, 16384)
    """Number of features in each level; each level is larger than the previous one."""
    k_per_layer: tuple[int, ...] = (50, 50, 50, 50)
    """Target L0 of each level: the mean number of active features per token that training aims at."""
    constraint: float = 0.01
    """Weight of the loss that pulls a feature toward the sum of its children. 0: no such loss."""
    perturbation: float = 0.05
    """Probability that a feature with children is replaced by their sum, drawn again in every step. 0: never."""
    compare: Literal["vector", "projected"] = "vector"
    """What constraint and perturbation take from the children. vector: all that they write, as in the paper; projected:
    only their part along the parent's decoder row, so that a child may have a direction of its own."""
    hierarchy: ParentsConfig = field(default_factory=ParentsConfig)
    architecture: Literal["hsae"] = "hsae"

    def __post_init__(self) -> None:
        super().__post_init__()
        sizes = self.layer_sizes
        if len(sizes) < 2 or any(b <= a for a, b in pairwise(sizes)):
            raise InputError(
                f"sae.layer_sizes {list(sizes)}: expected two or more levels, each larger than the previous one"
            )
        if self.constraint < 0:
            raise InputError(f"sae.constraint = {self.constraint}: expected 0 or more")
        if not 0 <= self.perturbation <= 1:
            raise InputError(f"sae.perturbation = {self.perturbation}: expected a probability from 0 to 1")


class HSAE(LevelsSAE):
    """An HSAE: JumpReLU SAEs of growing size, the levels, whose features are linked into a forest.

    Every level encodes and reconstructs alone; `sae(x)` is the reconstruction of the last, `decode(code, stats,
    layer)` of any. A feature fires where its pre-activation exceeds its own threshold, whatever its parent does.
    Training draws a feature to the sum of its children, at random replaces it by that sum, and renews the links from
    time to time.

    Shapes: activations `[..., d_in]`; `encoder` and `decoder` `[d_sae, d_in]`, level after level; `b_dec` `[levels,
    d_in]`; `threshold` `[d_sae]`; a code has as many slots as the fullest activation of the batch needs.

    Source: arXiv 2602.11881.

    Example:
        >>> import torch
        >>> from saeforest.saes import HSAE, HSAEConfig
        >>> sae = HSAE(HSAEConfig((4, 12), (2, 2), normalize_activations="none"), d_in=8)
        >>> sae(torch.randn(5, 8)).shape
        torch.Size([5, 8])
        >>> sae.n_levels
        2
    """

    config_class = HSAEConfig
    title, color, marker = "HSAE", "#009E73", "s"

    config: HSAEConfig


class Hierarchy(Links):
    """The links between levels: perturbation, the constraint loss, and the forest."""

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
        """The reconstruction of every level, with the children of each replaced feature in its place.

        Those children also get gradients from the error of their parent's level.
        """
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
                if self._config.compare == "projected":
                    values, ids = values * toward_parents(ids, sae.parent, sae.decoder), sae.parent[ids]
                u_hat = u_hat + jagged_decode(values, ids, rows, n, sae.decoder)
            found.append(u_hat)
        return found

    def draw(self, sae: LevelsSAE, done: int) -> Bool[Tensor, "d_sae_and_root"]:
        """Which features the step after `done` replaces by their children (docs/spec/hsae.md#perturbation).

        Features without children are never replaced. The last entry is the root's, and always False.
        """
        generator = seeded(self._seed, "perturbation", done)
        drawn = torch.rand(sae.d_sae, generator=generator) < self._config.perturbation
        replaced = torch.zeros(sae.d_sae + 1, dtype=torch.bool, device=sae.device)
        replaced[:-1] = drawn.to(sae.device) & has_children(sae.parent)
        return replaced

    def loss(self, sae: LevelsSAE, levels: list[Level], n: int) -> Float[Tensor, ""] | None:
        """The constraint loss, rho sum_l sum_i ||f_i d_i - sum_(children c of i) f_c d_c||^2, as a mean over tokens.

        With `compare` projected, it is rho sum_l sum_i (f_i - sum_(children c of i) f_c d_c . d_i)^2. The sum runs over
        features i with children (docs/spec/hsae.md#constraint). None if `constraint` is 0.
        """
        if not self._config.constraint:
            return None
        distance = projected_distance if self._config.compare == "projected" else link_distance
        distances = [distance(a, b, sae.parent, sae.decoder) for a, b in pairwise(levels)]
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
        """Set every feature's parent to the most similar feature of the level above."""
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
        """The similarity of every feature of level `i` to every feature of level `i + 1`; -inf for forbidden pairs."""
        hierarchy = self._config.hierarchy
        if self.averages is not None:
            similarity = self.averages.similarity(i, conditional=hierarchy.similarity == "conditional")
        else:
            similarity = _cosines(sae, sae.encoder if hierarchy.similarity == "encoder" else sae.decoder, i)
        if hierarchy.max_cosine is None:
            return similarity
        return similarity.masked_fill(_cosines(sae, sae.decoder, i) > hierarchy.max_cosine, -torch.inf)


def _cosines(sae: LevelsSAE, weight: Float[Tensor, "d_sae d_in"], i: int) -> Float[Tensor, "above below"]:
    rows = F.normalize(weight)
    return (rows[sae.level(i)] @ rows[sae.level(i + 1)].T).cpu()


class Coactivation(nn.Module):
    """Moving averages of how often features of neighboring levels fire: both of a pair, and the child of a pair, each
    as a fraction of tokens."""

    def __init__(self, sae: HSAE, momentum: float) -> None:
        super().__init__()
        self._starts, self._momentum = sae.starts, momentum
        about = {"dtype": sae.encoder.dtype, "device": sae.device}
        for i, (n, m) in enumerate(pairwise(sae.config.layer_sizes)):
            self.register_buffer(f"together_{i}", torch.zeros(n, m, **about))
            self.register_buffer(f"child_{i}", torch.zeros(m, **about))

    def of(self, i: int) -> tuple[Float[Tensor, "above below"], Float[Tensor, "below"]]:
        """The averages for pairs of level `i` and level `i + 1`, and for level `i + 1` alone."""
        return self.get_buffer(f"together_{i}"), self.get_buffer(f"child_{i}")

    def add(self, code: SparseCode) -> None:
        """Update the averages from the code of a batch."""
        active = code.dense(self._starts[-1]) > 0
        levels = [active[:, a:b] for a, b in pairwise(self._starts)]
        new = (1 - self._momentum) / len(active)
        for i, (above, below) in enumerate(pairwise(levels)):
            together, child = self.of(i)
            above, below = above.to(together.dtype), below.to(together.dtype)
            together.mul_(self._momentum).add_(above.T @ below, alpha=new)
            child.mul_(self._momentum).add_(below.sum(0), alpha=new)

    def similarity(self, i: int, *, conditional: bool) -> Float[Tensor, "above below"]:
        """The averages for pairs of level `i` and level `i + 1`; `conditional` divides them by the child's."""
        together, child = self.of(i)
        if conditional:
            together = torch.where(child > 0, together / child.clamp(min=1e-30), 0)
        return together.cpu()


class HSAETraining(LevelsTraining):
    """The training of an HSAE."""

    def __init__(self, sae: HSAE, setup: Setup) -> None:
        super().__init__(sae, sae.config, Hierarchy(sae, setup), setup)
