"""Variance explained by the reconstruction, by four definitions (docs/spec/reconstruction.md#fve).

With r = x - x_hat, over T tokens:

    fve           1 - sum ||r||^2 / (sum ||x||^2 - T ||mean x||^2)      the standard definition
    fve_legacy    mean over tokens of 1 - ||r||^2 / ||x - mean of x over the batch||^2
    fve_tree      mean over batches of 1 - mean ||r||^2 / (mean ||x - mean of x over its coordinates||^2 + 1e-10)
    fvu_uncentred sum ||r||^2 / sum ||x||^2                             the fraction NOT explained

SAEBench 0.6.0's `explained_variance` is a mistaken formula, kept for comparison: with R and S the means over batches of
each batch's mean ||r||^2 and ||x||^2, saebench_explained_variance = 1 - R / (S - (S/d)^2), which may exceed 1. The
per-batch definitions depend on the batch size, which the record's settings state.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch.nn.functional as F

from ..errors import require
from .bootstrap import FloatArray, interval_method
from .columns import RECONSTRUCTION, Column
from .measure import EvalBatch, Measure, WindowTable
from .record import Record, undefined
from .spec import Streaming

_SMALL_NORM = 1e-4  # SAEBench replaces a smaller norm of x by 1
_TREE_EPS = 1e-10
# Variance below this fraction of the second moment is rounding error.
_NO_VARIANCE = 1e-13


class Reconstruction(Measure):
    """Variance explained by each definition, mean cosine of x and x_hat, and mean ratio of their norms."""

    def __init__(self) -> None:
        self.table = WindowTable()

    def update(self, batch: EvalBatch) -> None:
        x, x_hat = batch.x.double(), batch.x_hat.double()
        residual = (x - x_hat).square().sum(1)
        norm, norm_hat = x.norm(dim=1), x_hat.norm(dim=1)
        self.table.add(
            batch,
            tokens=batch.sums(x.new_ones(len(x))),
            residual=batch.sums(residual),
            square=batch.sums(x.square().sum(1)),
            x=batch.sums(x),
            own_variance=batch.sums((x - x.mean(1, keepdim=True)).square().sum(1)),
            legacy=batch.sums(1 - residual / (x - x.mean(0)).square().sum(1)),
            cosine=batch.sums(F.cosine_similarity(x, x_hat, dim=1)),
            norm_ratio=batch.sums(norm_hat / norm.where(norm >= _SMALL_NORM, 1)),
        )

    def _values(self, weights: FloatArray) -> dict[str, FloatArray]:
        table = self.table
        tokens, residual, square = (weights @ table[n] for n in ("tokens", "residual", "square"))
        variance = square - np.square(weights @ table["x"]).sum(1) / tokens
        variance = np.where(variance > _NO_VARIANCE * square, variance, 0)
        return {
            "fve": 1 - residual / variance,
            "fve_legacy": weights @ table["legacy"] / tokens,
            "fve_tree": self._fve_tree(weights),
            "fvu_uncentred": residual / square,
            "saebench_explained_variance": self._saebench(weights),
            "cosine": weights @ table["cosine"] / tokens,
            "norm_ratio": weights @ table["norm_ratio"] / tokens,
        }

    def _fve_tree(self, weights: FloatArray) -> FloatArray:
        return self._mean_over_batches(
            weights, lambda mean: 1 - mean("residual") / (mean("own_variance") + _TREE_EPS)
        )

    def _saebench(self, weights: FloatArray) -> FloatArray:
        residual, square = (
            self._mean_over_batches(weights, lambda mean, n=n: mean(n)) for n in ("residual", "square")
        )
        return 1 - residual / (square - np.square(square / self.table["x"].shape[-1]))

    def _mean_over_batches(
        self, weights: FloatArray, of_batch: Callable[[Callable[[str], FloatArray]], FloatArray]
    ) -> FloatArray:
        """The mean over batches of a formula of each batch's token means.

        A batch is weighted by the fraction of its windows that were drawn.
        """
        starts = self.table.batch_starts

        def by_batch(name: str) -> FloatArray:
            return np.add.reduceat(weights * self.table[name], starts, axis=1)

        tokens = by_batch("tokens")
        value = of_batch(lambda name: by_batch(name) / tokens)
        drawn = np.add.reduceat(weights, starts, axis=1) / np.diff([*starts, len(self.table)])
        drawn = np.where(tokens > 0, drawn, 0)
        return (drawn * np.where(tokens > 0, value, 0)).sum(1) / drawn.sum(1)

    def record(self, settings: Mapping[str, Any]) -> Record:
        value, interval, replicates = self.table.estimate(self._values)
        tokens = int(self.table["tokens"].sum())
        fve = value["fve"]
        require(fve is None or fve <= 1, "reconstruction", "fve <= 1")
        why = {
            "fve": "the activations have no variance: all measured tokens are equal",
            "fve_legacy": "a token equals the mean of its batch: its ratio divides by zero",
            "fvu_uncentred": "all measured activations are zero",
            "saebench_explained_variance": "all measured activations are zero",
        }
        method = interval_method(self.table.resampled) + (
            "; fve_legacy: the batches' means held fixed; fve_tree, saebench_explained_variance: batches weighted by "
            "their drawn windows"
        )
        return Record(
            "reconstruction",
            value,
            interval,
            unit="fraction",
            tokens=tokens,
            settings={**settings, "interval_method": method},
            detail={
                "null": undefined(value, why, tokens),
                "units": {"cosine": "cosine", "norm_ratio": "ratio"},
            },
            replicates=replicates,
        )


SPEC = Streaming(
    name="reconstruction",
    needs=frozenset({"text"}),
    sets=("fast", "paper", "saebench", "truth"),
    make=lambda _subject, _config: Reconstruction(),
    columns=(
        Column(RECONSTRUCTION, "fve", "FVE", "↑"),
        Column(RECONSTRUCTION, "fve_tree", "variance explained by the Tree SAE paper's formula", "↑"),
    ),
    version=2,
)
