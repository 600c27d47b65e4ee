"""The language model's loss with the reconstruction in place (docs/spec/reconstruction.md#cross-entropy).

    ce_loss_score = (ablated - spliced) / (ablated - clean)
    kl_div_score = (kl_ablated - kl_spliced) / kl_ablated        kl_...: sum_v p_clean log(p_clean / p_...)

A score of 1 means that the reconstruction costs nothing, 0 that it is no better than zeros at the site. Losses are
means over all measured predictions, in nats. With `levels` the values that end in `_level_<l>` are those of the
reconstruction that ends with layer l or, if levels each reconstruct alone, of level l.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .bootstrap import FloatArray, interval_method
from .columns import RECONSTRUCTION, Column
from .measure import EvalBatch, Measure, WindowTable
from .record import Record, undefined
from .spec import Streaming
from .subject import Subject

_MEANS = ("clean", "spliced", "ablated", "kl_spliced", "kl_ablated")
_POSITIONS = (
    "losses of the next token at every kept position but the last of its window; divergences there too"
)
_SPLICED = (
    "kept positions hold the reconstruction in the model's dtype, excluded positions their own activation"
)
_ABLATED = "the whole tensor at the site is zero, excluded positions included"


@dataclass(frozen=True)
class CrossEntropyConfig:
    """Which reconstructions are put in place."""

    levels: bool = False
    """Measure each reconstruction of an SAE with several layers too: of a tree from layers 0 to l, of an HSAE from
    level l alone. Each takes one more forward pass of the language model over the tokens for cross-entropy."""


class CrossEntropy(Measure):
    """Clean, spliced and ablated losses, and the two scores; for `n_levels` reconstructions too."""

    def __init__(self, n_levels: int = 0) -> None:
        self.table = WindowTable()
        self.n_levels = n_levels

    def update(self, batch: EvalBatch) -> None:
        if batch.losses is None:
            return
        columns = dict(vars(batch.losses))
        spliced_level = batch.spliced_level
        for level in range(self.n_levels):
            assert spliced_level is not None
            found = spliced_level(level)
            columns |= {f"{name}_level_{level}": column for name, column in found._asdict().items()}
        self.table.add(batch, **columns)

    def _values(self, weights: FloatArray) -> dict[str, FloatArray]:
        ends = ["", *(f"_level_{level}" for level in range(self.n_levels))]
        names = [*_MEANS, *(f"{name}{end}" for end in ends[1:] for name in ("spliced", "kl_spliced"))]
        mean = {
            name: weights @ self.table[name] / (weights @ self.table["kl_count" if "kl" in name else "count"])
            for name in names
        }
        scores: dict[str, FloatArray] = {}
        for end in ends:
            gained = mean["ablated"] - mean[f"spliced{end}"]
            scores[f"ce_loss_score{end}"] = gained / (mean["ablated"] - mean["clean"])
            scores[f"kl_div_score{end}"] = (mean["kl_ablated"] - mean[f"kl_spliced{end}"]) / mean[
                "kl_ablated"
            ]
        return {**mean, **scores}

    def record(self, settings: Mapping[str, Any]) -> Record:
        value, interval, replicates = self.table.estimate(self._values)
        tokens = int(self.table["count"].sum())
        no_ce = "zeros at the site cost the model nothing: ablated equals clean"
        no_kl = "zeros at the site change no prediction"
        why = {name: no_kl if name.startswith("kl") else no_ce for name in value if "score" in name}
        detail: dict[str, Any] = {
            "null": undefined(value, why, tokens),
            "units": dict.fromkeys(why, "fraction"),
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
                "interval_method": interval_method(self.table.resampled),
                "losses": _POSITIONS,
                "spliced": _SPLICED,
                "ablated": _ABLATED,
            },
            detail=detail,
            replicates=replicates,
        )


def _make(subject: Subject, config: CrossEntropyConfig) -> CrossEntropy:
    return CrossEntropy(subject.sae.reconstruction.last + 1 if config.levels else 0)


SPEC = Streaming(
    name="cross_entropy",
    needs=frozenset({"text", "losses"}),
    sets=("fast", "paper", "saebench", "truth"),
    config=CrossEntropyConfig,
    make=_make,
    columns=(
        Column(RECONSTRUCTION, "ce_loss_score", "CE loss score", "↑"),
        Column(RECONSTRUCTION, "spliced", "CE in nats", "↓"),
    ),
    version=2,
)
