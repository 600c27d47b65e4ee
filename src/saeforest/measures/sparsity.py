"""Number of active features on a token: `l0 = mean_t #{i: f_i(t) > threshold}`, in total and by layer.

`l0_nonzero` counts every value above 0, as SAEBench does (docs/spec/reconstruction.md#sparsity).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ..errors import require
from ..saes import SAE
from .bootstrap import FloatArray, interval_method
from .columns import RECONSTRUCTION, Column
from .measure import EvalBatch, Measure, WindowTable
from .record import Record, undefined
from .spec import Streaming


class Sparsity(Measure):
    """L0, in total and by layer."""

    def __init__(self, sae: SAE) -> None:
        self.config, self.at_most_k = sae.config, sae.at_most_k
        self.n_layers = len(sae.config.layer_sizes)
        self.layer = sae.forest.layer.to(sae.device)
        self.table = WindowTable()

    def update(self, batch: EvalBatch) -> None:
        active = batch.code.active(self.config.activation_threshold).double()
        by_layer = torch.zeros(len(batch), self.n_layers, dtype=torch.float64, device=active.device)
        by_layer.scatter_add_(1, self.layer[batch.code.ids], active)
        self.table.add(
            batch,
            tokens=batch.sums(torch.ones_like(by_layer[:, 0])),
            active=batch.sums(by_layer),
            nonzero=batch.sums(batch.code.active().sum(1)),
        )

    def _values(self, weights: FloatArray) -> dict[str, FloatArray]:
        tokens = weights @ self.table["tokens"]
        by_layer = weights @ self.table["active"] / tokens[:, None]
        layers = {f"l0_layer_{layer}": by_layer[:, layer] for layer in range(self.n_layers)}
        return {"l0": by_layer.sum(1), **layers, "l0_nonzero": weights @ self.table["nonzero"] / tokens}

    def record(self, settings: Mapping[str, Any]) -> Record:
        value, interval, replicates = self.table.estimate(self._values)
        tokens = int(self.table["tokens"].sum())
        if self.at_most_k:
            at_most = sum(self.config.k_per_layer) * tokens
            require(bool(self.table["active"].sum() <= at_most), "sparsity", "l0 <= the sum of k_per_layer")
        return Record(
            "sparsity",
            value,
            interval,
            unit="features per token",
            tokens=tokens,
            settings={**settings, "interval_method": interval_method(self.table.resampled)},
            detail={"null": undefined(value, {}, tokens)},
            replicates=replicates,
        )


SPEC = Streaming(
    name="sparsity",
    needs=frozenset({"text"}),
    sets=("fast", "paper", "saebench", "truth"),
    make=lambda subject, _config: Sparsity(subject.sae),
    columns=(Column(RECONSTRUCTION, "l0", "L0"),),
    version=2,
)
