"""The language model's loss with the reconstruction in place (docs/spec/reconstruction.md#cross-entropy).

    ce_loss_score = (ablated - spliced) / (ablated - clean)
    kl_div_score = (kl_ablated - kl_spliced) / kl_ablated        kl_...: sum_v p_clean log(p_clean / p_...)

A score of 1 means that the reconstruction costs nothing, 0 that it is no better than zeros at the site. Losses are
means over all measured predictions, in nats.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .bootstrap import FloatArray, estimate, interval_method, same_units
from .columns import RECONSTRUCTION, Column
from .measure import EvalBatch, Measure, WindowTable
from .record import Record, undefined
from .spec import Streaming

_MEANS = ("clean", "spliced", "ablated", "kl_spliced", "kl_ablated")
_POSITIONS = (
    "losses of the next token at every kept position but the last of its window; divergences there too"
)
_SPLICED = (
    "kept positions hold the reconstruction in the model's dtype, excluded positions their own activation"
)
_ABLATED = "the whole tensor at the site is zero, excluded positions included"


class CrossEntropy(Measure):
    """Clean, spliced and ablated losses, and the two scores."""

    def __init__(self) -> None:
        self.table = WindowTable()

    def update(self, batch: EvalBatch) -> None:
        if (losses := batch.losses) is not None:
            self.table.add(**vars(losses))

    def _values(self, weights: FloatArray) -> dict[str, FloatArray]:
        mean = {
            name: weights @ self.table[name] / (weights @ self.table["kl_count" if "kl" in name else "count"])
            for name in _MEANS
        }
        score = (mean["ablated"] - mean["spliced"]) / (mean["ablated"] - mean["clean"])
        kl_score = (mean["kl_ablated"] - mean["kl_spliced"]) / mean["kl_ablated"]
        return {**mean, "ce_loss_score": score, "kl_div_score": kl_score}

    def record(self, settings: Mapping[str, Any]) -> Record:
        units = same_units("windows", self.table["count"])
        value, interval, replicates = estimate(self._values, len(self.table), units)
        tokens = int(self.table["count"].sum())
        why = {"ce_loss_score": "zeros at the site cost the model nothing: ablated equals clean"}
        why["kl_div_score"] = "zeros at the site change no prediction"
        detail: dict[str, Any] = {
            "null": undefined(value, why, tokens),
            "units": {"ce_loss_score": "fraction", "kl_div_score": "fraction"},
        }
        clean, spliced = value["clean"], value["spliced"]
        if clean is not None and spliced is not None and spliced < clean:
            detail["note"] = (
                "the spliced model does better than the clean one: expected only for a poor model"
            )
        return Record(
            "cross_entropy",
            value,
            interval,
            unit="nats",
            tokens=tokens,
            settings={
                **settings,
                "interval_method": interval_method("context windows"),
                "losses": _POSITIONS,
                "spliced": _SPLICED,
                "ablated": _ABLATED,
            },
            detail=detail,
            replicates=replicates,
        )


SPEC = Streaming(
    name="cross_entropy",
    needs=frozenset({"text", "losses"}),
    sets=("fast", "paper", "saebench"),
    make=lambda _subject, _config: CrossEntropy(),
    columns=(
        Column(RECONSTRUCTION, "ce_loss_score", "CE loss score", "↑"),
        Column(RECONSTRUCTION, "spliced", "CE in nats", "↓"),
    ),
)
