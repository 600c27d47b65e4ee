"""Dead features: those that exceed the threshold on none of the measured tokens, in total and by layer.

On few tokens the count is an upper bound, because a rare feature may not fire on them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ..saes import SAE
from .columns import RECONSTRUCTION, Column
from .measure import EvalBatch, Measure
from .record import Record, undefined
from .spec import Streaming


class Dead(Measure):
    """Number and fraction of dead features."""

    def __init__(self, sae: SAE) -> None:
        self.threshold = sae.config.activation_threshold
        self.layer_sizes = sae.config.layer_sizes
        self.fired = torch.zeros(sae.d_sae, dtype=torch.int64)
        self.tokens = 0

    def update(self, batch: EvalBatch) -> None:
        self.fired += batch.code.fired(len(self.fired), self.threshold).cpu()
        self.tokens += len(batch)

    def record(self, settings: Mapping[str, Any]) -> Record:
        dead = self.fired == 0
        groups = {"": dead}
        for layer, part in enumerate(dead.split(list(self.layer_sizes))):
            groups[f"_layer_{layer}"] = part
        value: dict[str, float | None] = {}
        for suffix, group in groups.items():
            value[f"dead{suffix}"] = int(group.sum()) if self.tokens else None
            value[f"dead_share{suffix}"] = int(group.sum()) / len(group) if self.tokens else None
        return Record(
            "dead",
            value,
            dict.fromkeys(value),
            unit="features",
            tokens=self.tokens,
            settings={**settings, "interval_method": "none: counts over all measured tokens"},
            detail={
                "null": undefined(value, {}, self.tokens),
                "units": {name: "fraction" for name in value if "share" in name},
            },
        )


SPEC = Streaming(
    name="dead",
    needs=frozenset({"text"}),
    sets=("fast", "paper", "truth"),
    make=lambda subject, _config: Dead(subject.sae),
    columns=(Column(RECONSTRUCTION, "dead_share", "dead features", "↓"),),
)
