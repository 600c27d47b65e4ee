"""Feature composition: how close each decoder row lies to its nearest other row (docs/spec/hierarchy.md#composition).

    composition = mean over features i of  max over j != i of  cos(d_i, d_j)

Features that are built from one another share directions, so lower is better. Even n independent random directions do
not reach 0: their expected maximum, computed exactly here, is the floor

    E max = 1 - integral over t from -1 to 1 of P(cos <= t)^(n-1),    (1 + cos) / 2 ~ Beta((d-1)/2, (d-1)/2)

which sqrt(2 ln n / d) approximates from above. The papers average over all features, including dead ones. Those lie
near the floor and lower the average, so `alive` averages the same maxima over features that fired only.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64
from torch import Tensor

from ..errors import require
from .bootstrap import FloatArray, estimate, interval_method, units_of_sae
from .columns import FLAT, Column
from .record import Record, Replicates
from .spec import Study
from .subject import Subject

# Cosines of a block of rows with all rows are computed at once, at most this many entries.
_BLOCK_ENTRIES = 1 << 24
_FLOOR_POINTS = 1 << 15


@dataclass(frozen=True)
class CompositionConfig:
    """Settings of feature composition: none."""


def cosines_memory(d_sae: int) -> int:
    """Bytes that a block of cosines takes: a float32 and a comparison for each."""
    return 5 * min(_BLOCK_ENTRIES, d_sae**2)


@torch.no_grad()
def max_cosines(rows: Float[Tensor, "n d"]) -> Float64[Tensor, "n"]:
    """The largest cosine of each row with any other row, on the CPU. `n >= 2`; rows may have any length."""
    unit = F.normalize(rows.float())
    found: list[Tensor] = []
    for own in torch.arange(len(unit), device=unit.device).split(max(_BLOCK_ENTRIES // len(unit), 1)):
        cosines = unit[own] @ unit.T
        cosines[torch.arange(len(own), device=unit.device), own] = -torch.inf
        found.append(cosines.amax(1))
    return torch.cat(found).clamp(-1, 1).double().cpu()


def random_floor(n: int, d: int) -> float:
    """Expected largest cosine of one of `n` independent random directions in `d >= 2` dimensions with the others."""
    from scipy.stats import beta  # slow to import: not for `saeforest eval --help`

    t = np.linspace(-1, 1, _FLOOR_POINTS)
    below = beta.cdf((1 + t) / 2, (d - 1) / 2, (d - 1) / 2)
    return float(1 - np.trapezoid(below ** (n - 1), t))


def composition(subject: Subject, config: CompositionConfig) -> Record:
    """The record "composition" of the SAE's decoder.

    Values are `mean` over all features, `alive` over those that fired on the measured text, `median`, `random_floor`
    and, for an SAE with several layers, `by_layer_<l>`. All are null if the SAE, or a layer that reconstructs alone,
    has a single feature; `random_floor` is null if `d_in` is 1.
    """
    sae = subject.sae
    alive = subject.pairs.marginals.n.cpu().numpy() > 0
    groups = {"mean": np.ones(sae.d_sae), "alive": alive.astype(np.float64)}
    if len(sae.config.layer_sizes) > 1:
        layer = np.repeat(np.arange(len(sae.config.layer_sizes)), sae.config.layer_sizes)
        groups |= {f"by_layer_{i}": (layer == i).astype(np.float64) for i in np.unique(layer)}
    null: dict[str, str] = {}
    replicates: dict[str, Replicates] = {}
    if min(sae.config.layer_sizes if not sae.cumulative else (sae.d_sae,)) == 1:
        value = dict.fromkeys((*groups, "median", "random_floor"))
        null = dict.fromkeys(value, "the SAE has a single feature, and no other to compare it with")
        interval = dict.fromkeys(value)
    else:
        # Layers that each reconstruct alone are separate dictionaries: a copy in the next layer is not composition.
        parts = (sae.d_sae,) if sae.cumulative else sae.config.layer_sizes
        cosines = torch.cat([max_cosines(rows) for rows in sae.W_dec.detach().split(list(parts))]).numpy()
        require(bool(np.isfinite(cosines).all()), "composition", "a largest cosine for every feature")
        units = units_of_sae("features", sae, np.arange(sae.d_sae))
        found = estimate(lambda weights: _means(cosines, groups, weights), sae.d_sae, units)
        replicates = found.replicates
        value = {**found.value, "random_floor": random_floor(sae.d_sae, sae.d_in) if sae.d_in > 1 else None}
        interval = {**found.interval, "random_floor": None}
        if value["alive"] is None:
            null["alive"] = "no feature fired on the measured text"
        if value["random_floor"] is None:
            null["random_floor"] = "in one dimension all directions are the same or opposite"
    return Record(
        "composition",
        value,
        interval,
        unit="cosine",
        tokens=len(subject.rows),
        settings={
            **subject.settings,
            "config": asdict(config),
            "interval_method": interval_method("features, their largest cosines held fixed")
            + "; random_floor: exact for independent uniform directions, none",
        },
        detail={"null": null, "features": sae.d_sae, "alive_features": int(alive.sum())},
        replicates=replicates,
    )


def _means(cosines: FloatArray, groups: dict[str, FloatArray], weights: FloatArray) -> dict[str, FloatArray]:
    means = {name: weights @ (group * cosines) / (weights @ group) for name, group in groups.items()}
    order = np.argsort(cosines)
    # The median of a resample is the mean of its two middle values: those at which the count reaches and passes half.
    drawn = 2 * np.cumsum(weights[:, order], axis=1)
    n = drawn[:, -1:] / 2
    low, high = (drawn >= n).argmax(1), (drawn > n).argmax(1)
    return {**means, "median": (cosines[order[low]] + cosines[order[high]]) / 2}


SPEC = Study(
    name="composition",
    needs=frozenset({"firings"}),
    sets=("paper", "saebench"),
    config=CompositionConfig,
    run=composition,
    columns=(Column(FLAT, "mean", "composition", "↓"),),
    memory=lambda size: size.decoder + cosines_memory(size.d_sae),
    version=2,
)
