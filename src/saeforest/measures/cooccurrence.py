"""How often siblings fire together (docs/spec/hierarchy.md#cooccurrence).

The lower it is, the better children divide their parent's meaning.

    IoU(i, j) = n_ij / (n_i + n_j - n_ij)

where n_i is the number of tokens on which feature i fires and n_ij that on which i and j both do. A family is the
children of one parent within one layer; children of the root and families of one are left out. A layer's value is the
mean over all ordered pairs of siblings in all its families, so large families weigh more. A family in which two or
more children never fired (0/0) is left out entirely. `iou` is the mean over layers 1 and up. A forest without layers,
as inferred for a flat SAE, has all its families in one group.

A pair of one live and one dead child has IoU 0 and lowers the mean; `iou_alive` is over pairs in which both fired.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int
from torch import Tensor

from ..saes import SAE
from ..sparse_code import SparseCode
from ..structure.forest import ROOT, Forest
from .bootstrap import FloatArray, estimate, interval_method, units_of_sae
from .columns import FLAT, Column
from .measure import EvalBatch, Measure, pair_slices
from .record import EdgeScores, Record, undefined
from .spec import Streaming


class SiblingPairs:
    """Counts how often each pair of siblings fires together.

    family:   the family of each feature, -1 if it has no siblings. family_layer, family_parent: of each family.
    fired:    number of tokens on which each feature fires.
    pairs:    sorted keys first * d_sae + second of the siblings that ever fired together.
    together: number of tokens on which they did.
    """

    def __init__(self, forest: Forest, threshold: float, device: torch.device) -> None:
        self.forest, self.threshold = forest, threshold
        self.family, self.family_layer, self.family_parent = _families(forest)
        self._family_of = self.family.to(device)
        self.fired = torch.zeros(forest.d_sae, dtype=torch.int64)
        self.pairs = torch.zeros(0, dtype=torch.int64)
        self.together = torch.zeros(0, dtype=torch.int64)

    def add(self, code: SparseCode) -> None:
        """Add the flat code of more tokens."""
        keys, counts = [self.pairs], [self.together]
        slices = pair_slices(code, self.threshold) if len(self.family_layer) else ()
        for on, ids in slices:
            family = torch.where(on, self._family_of[ids], -1)
            siblings = (family[:, :, None] == family[:, None, :]) & (family >= 0)[:, :, None]
            token, a, b = siblings.triu(diagonal=1).nonzero(as_tuple=True)
            first, second = ids[token, a], ids[token, b]
            key = torch.minimum(first, second) * self.forest.d_sae + torch.maximum(first, second)
            key, count = key.unique(return_counts=True)
            keys.append(key.cpu())
            counts.append(count.cpu())
        self.pairs, place = torch.cat(keys).unique(return_inverse=True)
        self.together = torch.zeros_like(self.pairs).index_add_(0, place, torch.cat(counts))
        self.fired += code.fired(self.forest.d_sae, self.threshold).cpu()

    def iou(self) -> tuple[Int[Tensor, "pairs"], Int[Tensor, "pairs"], Float64[Tensor, "pairs"]]:
        """The two siblings of each pair, and their IoU. That of all other pairs is 0, or 0/0."""
        first, second = self.pairs // self.forest.d_sae, self.pairs % self.forest.d_sae
        union = self.fired[first] + self.fired[second] - self.together
        return first, second, self.together.double() / union.double()

    def total_overlap(self) -> Float64[Tensor, "d_sae"]:
        """The sum of IoU of each feature with its siblings."""
        total = torch.zeros(self.forest.d_sae, dtype=torch.float64)
        first, second, iou = self.iou()
        return total.index_add_(0, first, iou).index_add_(0, second, iou)

    def mean_overlap(self) -> Float64[Tensor, "d_sae"]:
        """The mean IoU of each feature with those of its siblings that fire; NaN if none of them or it does not."""
        alive = (self.family >= 0) & (self.fired > 0)
        size = torch.bincount(self.family[alive], minlength=max(len(self.family_layer), 1))
        others = torch.where(alive, size[self.family.clamp(min=0)] - 1, 0)
        return self.total_overlap() / torch.where(others > 0, others.double(), torch.nan)


class Cooccurrence(Measure):
    """Mean IoU of siblings, over all layers and for each."""

    def __init__(self, sae: SAE, forest: Forest) -> None:
        self.sae, self.forest = sae, forest
        self.siblings = SiblingPairs(forest, sae.config.activation_threshold, sae.device)
        self.family = self.siblings.family.numpy()
        self.family_layer, self.family_parent = self.siblings.family_layer, self.siblings.family_parent
        self.tokens = 0

    def update(self, batch: EvalBatch) -> None:
        self.siblings.add(batch.code)
        self.tokens += len(batch)

    def record(self, settings: Mapping[str, Any]) -> Record:
        n_families = len(self.family_layer)
        n_layers = len(self.forest.layer_sizes) if self.forest.layered else 2
        iou = self._iou_by_family()
        member = self.family >= 0
        size = np.bincount(self.family[member], minlength=n_families)
        alive = np.bincount(self.family[member & (self.siblings.fired.numpy() > 0)], minlength=n_families)
        whole = size - alive < 2  # otherwise the family has a pair with IoU 0/0
        columns = {"iou": (iou * whole, size * (size - 1) * whole), "iou_alive": (iou, alive * (alive - 1))}
        # Which families belong to each layer, 1 and up.
        of_layer = (self.family_layer[:, None] == np.arange(1, n_layers)).astype(np.float64)

        def values(weights: FloatArray) -> dict[str, FloatArray]:
            found = {}
            for name, (total, pairs) in columns.items():
                n_pairs = weights @ (of_layer * pairs[:, None])
                by_layer = weights @ (of_layer * total[:, None]) / n_pairs
                # Average over the layers that have any pairs, the same layers in every resample.
                has_pairs = pairs @ of_layer > 0
                found[name] = by_layer[:, has_pairs].sum(1) / has_pairs.sum()
                found |= {f"{name}_layer_{layer + 1}": by_layer[:, layer] for layer in range(n_layers - 1)}
            return found

        units = units_of_sae("families", self.sae, self.family_parent)
        value, interval, replicates = estimate(values, n_families, units)
        why = {
            name: "no parent has two children in a layer that could be measured"
            if name in columns
            else "no family of the layer has two children that could be measured"
            for name in value
        }
        method = interval_method("families of siblings")
        return Record(
            "cooccurrence",
            value,
            interval,
            unit="fraction",
            tokens=self.tokens,
            settings={**settings, "interval_method": method, "families": "children of a parent in one layer"},
            detail={
                "null": undefined(value, why, self.tokens),
                "families": n_families,
                "families_left_out_for_0/0": int((~whole).sum()),
            },
            replicates=replicates,
            edge_scores=self._edge_scores(size, whole),
        )

    def _edge_scores(
        self, size: Int[np.ndarray, "families"], whole: Bool[np.ndarray, "families"]
    ) -> dict[str, EdgeScores]:
        """The mean IoU of each child with its siblings: with all, in families without 0/0, and with those that fire.

        size: of each family. whole: whether it has no pair with IoU 0/0.
        """
        counted = np.zeros(len(self.family), dtype=bool)
        member = self.family >= 0
        counted[member] = whole[self.family[member]]
        child = torch.from_numpy(counted.nonzero()[0])
        others = torch.from_numpy(size[self.family[counted]] - 1)
        alive = self.siblings.mean_overlap()
        defined = alive.isfinite()
        return {
            "iou": EdgeScores(child, self.siblings.total_overlap()[child] / others.double()),
            "iou_alive": EdgeScores(defined.nonzero().flatten(), alive[defined]),
        }

    def _iou_by_family(self) -> FloatArray:
        """Sum of IoU over the ordered pairs of each family; a pair that never fired together adds 0."""
        first, _, iou = self.siblings.iou()
        total = np.bincount(self.family[first.numpy()], 2 * iou.numpy(), minlength=len(self.family_layer))
        return total.astype(np.float64)  # bincount of no pairs is int64


def _families(
    forest: Forest,
) -> tuple[Int[Tensor, "d_sae"], Int[np.ndarray, "families"], Int[np.ndarray, "families"]]:
    """The family of each feature, -1 if it has no siblings or hangs from the root; layer and parent of each family."""
    # Features of layer 0 have no parent but the root, so families start at layer 1.
    layer = forest.layer if forest.layered else torch.ones_like(forest.parent)
    key = torch.where(forest.parent == ROOT, -1, layer * forest.d_sae + forest.parent)
    keys, place, size = key.unique(return_inverse=True, return_counts=True)
    real = (keys >= 0) & (size > 1)
    number = torch.where(real, real.cumsum(0) - 1, -1)
    return number[place], (keys[real] // forest.d_sae).numpy(), (keys[real] % forest.d_sae).numpy()


SPEC = Streaming(
    name="cooccurrence",
    needs=frozenset({"text", "forest"}),
    sets=("fast", "paper", "truth"),
    make=lambda subject, _config: Cooccurrence(subject.sae, subject.forest),
    nulls=("iou", "iou_alive"),
    columns=(Column(FLAT, "iou", "siblings together", "↓"),),
    version=3,
)
