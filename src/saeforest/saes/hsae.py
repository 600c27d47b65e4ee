"""HSAE (arXiv 2602.11881): JumpReLU SAEs of growing size, trained together, whose features are linked into a forest.

Every level reconstructs the input on its own. A loss pulls each feature toward the sum of its children, features are
randomly replaced by that sum, and at intervals every feature chooses its parent again from the level above
(docs/spec/hsae.md).

Without constraint and perturbation, and with parents chosen only at the end, this is the paper's baseline:
independent SAEs of the same sizes, linked after training.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ..kernels import (
    has_children,
    jagged_decode,
    link_distance,
    projected_distance,
    shards,
    toward_parents,
)
from ..seeds import seeded
from ..sparse_code import SparseCode
from ..structure.forest import ROOT
from .hsae_config import HSAEConfig
from .levels import Level, LevelsSAE, LevelsTraining, Links, decoded
from .parents import choose_parents
from .training import PAPER_STEPS, Event, Setup, Step

_PAPER_PERIOD = 5_000 / PAPER_STEPS


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
        if self._config.compare == "projected":
            distances = [projected_distance(a, b, sae.parent, sae.decoder) for a, b in pairwise(levels)]
            return self._config.constraint / n * torch.stack(distances).sum()

        def distance(values: Sequence[Tensor], decoder: Float[Tensor, "d_sae c"]) -> Float[Tensor, ""]:
            ours = [level._replace(values=own) for level, own in zip(levels, values, strict=True)]
            return torch.stack([link_distance(a, b, sae.parent, decoder) for a, b in pairwise(ours)]).sum()

        # The distances are sums over the dimensions of the decoder rows, also where these lie on several ranks.
        values = [level.values for level in levels]
        return self._config.constraint / n * shards.by_columns(distance, values, sae.decoder, sae.d_sae)

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
    levels = sae.level(i), sae.level(i + 1)
    above, below = (F.normalize(shards.rows_of(weight, level)) for level in levels)
    return (above @ below.T).cpu()


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
