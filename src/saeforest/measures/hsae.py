"""How well each level of a forest agrees with the next (HSAE paper; docs/spec/hierarchy.md#levels).

For a level l, where children are the features of level l+1 whose parent lies in level l:

    hamming              number of features of level l, per token, that differ from the OR of their children
    hamming_per_feature  hamming / number of features of level l
    hamming_per_active   hamming / number of features of level l that are active on a token
    p_parent_child       mean over pairs of n_pc / n_c
    p_child_parent       mean over pairs of n_pc / n_p
    p_..._without_copies the same over pairs whose decoder rows have a cosine of at most 0.9
    fve_level_l          fraction of variance explained by the reconstruction that ends with level l

The paper does not say which features the Hamming distance counts. Here it counts all of a level, and one without
children is predicted to be silent; `hamming_with_children` counts only features with children. In a forest without
layers, as inferred for a flat SAE, a feature's level is its depth, and levels have no reconstruction of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int
from torch import Tensor

from ..saes import SAE
from ..structure.forest import ROOT, Forest
from .bootstrap import Estimate, FloatArray, Formula, estimate, interval_method, units_of_sae
from .columns import LEVELS, Column
from .edges import EdgesConfig, cosines
from .measure import EvalBatch, Measure, WindowTable
from .record import EdgeScores, Record, undefined
from .spec import Streaming

_HAMMINGS = ("hamming", "hamming_with_children")
_ACTIVE = "active_above"
_DISTANCES = (*_HAMMINGS, "hamming_per_feature", "hamming_per_active")


class HSAELinks(Measure):
    """Hamming distances and conditional probabilities between levels, and each level's explained variance."""

    def __init__(self, sae: SAE, forest: Forest) -> None:
        self.sae, self.forest = sae, forest
        self.threshold = sae.config.activation_threshold
        level = forest.level
        self.n_levels = int(level.max()) + 1
        self.n_parts = self.n_levels if forest.layered else 0
        self.level, self.layer = level, level.to(sae.device)
        linked = forest.parent != ROOT
        linked &= level[forest.parent.clamp(min=0)] == level - 1
        # Only edges between neighboring levels count: a feature whose parent lies elsewhere has none here.
        self.parent = torch.where(linked, forest.parent, ROOT).to(sae.device)
        self.has_children = torch.zeros(forest.d_sae, dtype=torch.bool, device=sae.device)
        self.has_children[self.parent[self.parent != ROOT]] = True
        self.fired = torch.zeros(forest.d_sae, dtype=torch.int64)
        self.with_parent = torch.zeros(forest.d_sae, dtype=torch.int64)
        self.copies = self._copies()
        self.table = WindowTable()

    def _copies(self) -> Bool[Tensor, "d_sae"]:
        """Which features are copies of their parents: such pairs agree whatever the forest."""
        copies = torch.zeros(self.forest.d_sae, dtype=torch.bool)
        child = (self.parent != ROOT).nonzero().flatten().cpu()
        decoder = self.sae.decoder
        copies[child] = cosines(decoder, decoder, child, self.parent.cpu()[child]) > EdgesConfig.copy
        return copies

    def update(self, batch: EvalBatch) -> None:
        d_sae = self.forest.d_sae
        both = batch.code.ids[batch.code.with_parent(self.parent, self.threshold)]
        self.with_parent += torch.bincount(both, minlength=d_sae).cpu()
        self.fired += batch.code.fired(d_sae, self.threshold).cpu()
        distances = self._distances(batch)
        columns = {name: batch.sums(d) for name, d in zip((*_HAMMINGS, _ACTIVE), distances, strict=True)}
        x = batch.x.double()
        residual = [self._residual(batch, level) for level in range(self.n_parts)]
        self.table.add(
            batch,
            tokens=batch.sums(x.new_ones(len(x))),
            square=batch.sums(x.square().sum(1)),
            x=batch.sums(x),
            residual=batch.sums(torch.stack(residual, dim=1) if residual else x[:, :0]),
            **columns,
        )

    @torch.no_grad()
    def _residual(self, batch: EvalBatch, level: int) -> Float64[Tensor, "n"]:
        x_hat = self.sae.decode(batch.code, self.sae.normalize(batch.x)[1], level)
        return (batch.x - x_hat).double().square().sum(1)

    def _distances(self, batch: EvalBatch) -> list[Float64[Tensor, "n pairs"]]:
        """For every row and pair of levels: the Hamming distance over all features, that over features with children,
        and the number of active features of the level above."""
        rows, slot = batch.code.active(self.threshold).nonzero(as_tuple=True)
        ids = batch.code.ids[rows, slot]
        child = self.parent[ids] != ROOT
        d_sae = self.forest.d_sae
        predicted = (rows[child] * d_sae + self.parent[ids[child]]).unique()
        above = self.layer[ids] < self.n_levels - 1
        active = rows[above] * d_sae + ids[above]
        parental = active[self.has_children[active % d_sae]]
        n = len(batch)
        agreed = self._count(active[torch.isin(active, predicted)], n)
        silent = self._count(predicted, n) - 2 * agreed
        return [*(self._count(actual, n) + silent for actual in (active, parental)), self._count(active, n)]

    def _count(self, keys: Int[Tensor, "m"], n: int) -> Float64[Tensor, "n pairs"]:
        """Number of (row, feature) keys in each row and level."""
        pairs = max(self.n_levels - 1, 1)
        cell = keys // self.forest.d_sae * pairs + self.layer[keys % self.forest.d_sae]
        return torch.bincount(cell, minlength=n * pairs).view(n, pairs).double()

    def _by_window(self, weights: FloatArray) -> dict[str, FloatArray]:
        table = self.table
        tokens = weights @ table["tokens"]
        variance = weights @ table["square"] - np.square(weights @ table["x"]).sum(1) / tokens
        found: dict[str, FloatArray] = {}
        for name in _HAMMINGS:
            distance = weights @ table[name] / tokens[:, None]
            found[name] = distance.mean(1)
            found |= {f"{name}_{level}": distance[:, level] for level in range(self.n_levels - 1)}
        distance, active = (weights @ table[name] for name in (_HAMMINGS[0], _ACTIVE))
        size = torch.bincount(self.level).numpy()[: distance.shape[1]]
        found["hamming_per_feature"] = (distance / tokens[:, None] / size).mean(1)
        found["hamming_per_active"] = (distance / active).mean(1)
        fve = 1 - weights @ table["residual"] / variance[:, None]
        return found | {f"fve_level_{level}": fve[:, level] for level in range(self.n_parts)}

    def _by_parent(self) -> tuple[Estimate, dict[str, int], dict[str, EdgeScores]]:
        """The shares of pairs: their means, how many pairs had to be skipped, and the shares themselves."""
        child = (self.parent != ROOT).nonzero().flatten().cpu()
        parent = self.parent.cpu()[child]
        families, family = np.unique(parent.numpy(), return_inverse=True)
        level = self.level[parent].numpy()
        together = self.with_parent[child].double().numpy()
        fired = {
            "p_parent_child": self.fired[child].double().numpy(),
            "p_child_parent": self.fired[parent].double().numpy(),
        }
        skipped = {name: int((n == 0).sum()) for name, n in fired.items()}
        own = ~self.copies[child].numpy()
        shares = {name: (together, n, np.ones_like(own)) for name, n in fired.items()}
        shares |= {f"{name}_without_copies": (together, n, own) for name, n in fired.items()}
        units = units_of_sae("parents", self.sae, families)
        every, scores = Estimate({}, {}, {}), {}
        for name, (both, of, counts) in shares.items():
            scored = counts & (of > 0)
            scores[name] = EdgeScores(
                child[torch.from_numpy(scored)], torch.from_numpy(both[scored] / of[scored])
            )
            levels = [("", level >= 0), *((f"_{i}", level == i) for i in range(self.n_levels - 1))]
            for suffix, within in levels:
                counted = within & counts & (of > 0)
                share = both[counted] / of[counted]
                total, pairs = (
                    np.bincount(family[counted], weights, minlength=len(families)).astype(np.float64)
                    for weights in (share, np.ones_like(share))
                )
                found = estimate(_ratio(name + suffix, total, pairs), len(families), units)
                every = every.joined(found)
        return every, skipped, scores

    def record(self, settings: Mapping[str, Any]) -> Record:
        tokens = int(self.table["tokens"].sum())
        value, interval, replicates = self.table.estimate(self._by_window)
        if self.n_levels == 1:
            value |= dict.fromkeys(_DISTANCES)
            interval |= dict.fromkeys(_DISTANCES)
        by_parent, skipped, scores = self._by_parent()
        shares = by_parent.value
        value, interval, replicates = Estimate(value, interval, replicates).joined(by_parent)
        why = dict.fromkeys(shares, "no edge joins two neighboring levels on the measured tokens")
        why |= dict.fromkeys(_DISTANCES, "the forest has one level")
        method = f"{interval_method(self.table.resampled)}; p_...: over parents"
        return Record(
            "hsae",
            value,
            interval,
            unit="features per token",
            tokens=tokens,
            settings={**settings, "interval_method": method},
            detail={
                "null": undefined(value, why, tokens),
                "units": {
                    n: "fraction" for n in value if not n.startswith("hamming") or n.startswith("hamming_per")
                },
                "pairs": int((self.parent != ROOT).sum()),
                "copies": int(self.copies.sum()),
                "pairs_skipped": skipped,
            },
            replicates={n: drawn for n, drawn in replicates.items() if value[n] is not None},
            edge_scores=scores,
        )


def _ratio(name: str, total: FloatArray, pairs: FloatArray) -> Formula:
    def formula(weights: FloatArray) -> dict[str, FloatArray]:
        return {name: weights @ total / (weights @ pairs)}

    return formula


SPEC = Streaming(
    name="hsae",
    needs=frozenset({"text", "forest"}),
    transcoders=False,  # it compares reconstructions with input activations
    sets=("paper", "truth"),
    nulls=(
        "hamming",
        "hamming_per_active",
        "p_parent_child",
        "p_child_parent",
        "p_parent_child_without_copies",
        "p_child_parent_without_copies",
    ),
    make=lambda subject, _config: HSAELinks(subject.sae, subject.forest),
    columns=(
        Column(LEVELS, "hamming", "Hamming distance", "↓"),
        Column(LEVELS, "hamming_per_active", "Hamming distance per active feature", "↓"),
        Column(LEVELS, "p_parent_child", "P(parent | child)", "↑"),
        Column(LEVELS, "p_child_parent", "P(child | parent)", "↑"),
        Column(LEVELS, "p_parent_child_without_copies", "P(parent | child) without copies", "↑"),
        Column(LEVELS, "p_child_parent_without_copies", "P(child | parent) without copies", "↑"),
    ),
    version=3,
)
