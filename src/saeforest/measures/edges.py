"""The weights of parent and child on each edge of the forest (docs/spec/hierarchy.md#edges).

    encoder_parent       mean of cos(e_c, d_p): the child's encoder row with the parent's decoder row. The Tree SAE
                         paper (App. H, Proposition 2) expects it to be near 0.
    encoder_parent_abs   mean of |cos(e_c, d_p)|
    encoder_child        mean of cos(e_c, d_c), to compare with
    decoder_cosine       mean of cos(d_p, d_c)
    decoder_negative     fraction of edges on which it is negative
    copies               fraction of edges on which it exceeds `copy`: the child is a copy of its parent
    features_in_copies   fraction of all features that fired and are parent or child of such an edge
    random_abs           expected |cos| of two random directions
    with_parent          fraction of the features below the first layer that have a parent, whether they fire or not; of
                         all features, in a forest without layers

Only edges of which both features fired are measured, since features that never fire keep weights without meaning.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch.nn.functional as F
from jaxtyping import Float64, Int
from torch import Tensor

from ..errors import InputError, require
from .bootstrap import FloatArray, estimate, interval_method, units_of_sae
from .columns import EDGES, Column
from .mcs import k_random
from .record import EdgeScores, Record, undefined
from .spec import Study
from .subject import Subject

# Values that are given for every edge.
_SCORES = ("encoder_parent", "encoder_parent_abs", "decoder_cosine", "copies")


@dataclass(frozen=True)
class EdgesConfig:
    """What counts as a copy.

    Raises InputError for a value out of its range.
    """

    copy: float = 0.9
    """Cosine of the decoder rows of parent and child above which the child is called a copy of its parent."""

    def __post_init__(self) -> None:
        if not -1 <= self.copy < 1:
            raise InputError(f"edges.copy = {self.copy}: expected a cosine from -1 to 1, less than 1")


def edges(subject: Subject, config: EdgesConfig) -> Record:
    """The record "edges"."""
    sae, fired = subject.sae, subject.pairs.marginals.n > 0
    parent, child = subject.forest.edges
    measured = fired[parent] & fired[child]
    parent, child = parent[measured], child[measured]
    encoder_parent = cosines(sae.encoder, sae.decoder, child, parent)
    decoder = cosines(sae.decoder, sae.decoder, child, parent)
    copies = decoder > config.copy
    columns = {
        "encoder_parent": encoder_parent,
        "encoder_parent_abs": encoder_parent.abs(),
        "encoder_child": cosines(sae.encoder, sae.decoder, child, child),
        "decoder_cosine": decoder,
        "decoder_negative": (decoder < 0).double(),
        "copies": copies.double(),
    }
    # As elsewhere, parents are resampled with all their children.
    families, family = np.unique(parent.numpy(), return_inverse=True)
    n_edges = np.bincount(family)
    totals = {name: np.bincount(family, column.numpy()) for name, column in columns.items()}

    def means(weights: FloatArray) -> dict[str, FloatArray]:
        return {name: weights @ total / (weights @ n_edges) for name, total in totals.items()}

    found = estimate(means, len(families), units_of_sae("parents", sae, families))
    in_copies = len(parent[copies].unique()) + len(child[copies].unique())
    both = np.intersect1d(parent[copies].numpy(), child[copies].numpy())
    n_fired = int(fired.sum())
    value: dict[str, float | None] = {
        **found.value,
        "features_in_copies": (in_copies - len(both)) / n_fired if len(child) else None,
        "random_abs": k_random(sae.d_in),
        "with_parent": _with_parent(subject),
    }
    for name, cosine in value.items():
        require(cosine is None or abs(cosine) <= 1 + 1e-6, "edges", f"-1 <= {name} <= 1")
    if subject.forest.edges.shape[1]:
        why = "on no edge did both parent and child fire on the measured tokens"
    else:
        why = "the forest has no edges: every feature hangs from the root"
    tokens = len(subject.rows)
    one_layer = "the SAE has one layer, so no feature could have a parent"
    fractions = ("decoder_negative", "copies", "features_in_copies", "with_parent")
    return Record(
        "edges",
        value,
        {**dict.fromkeys(value), **found.interval},
        unit="cosine",
        tokens=tokens,
        settings={
            **subject.settings,
            "config": asdict(config),
            "interval_method": f"{interval_method('parents')}; features_in_copies, random_abs, with_parent: none",
        },
        detail={
            "null": undefined(value, {**dict.fromkeys(value, why), "with_parent": one_layer}, tokens),
            "units": dict.fromkeys(fractions, "fraction"),
            "edges": {"all": subject.forest.edges.shape[1], "measured": len(child)},
            "by_layer": _by_layer(subject, child, columns),
        },
        replicates=found.replicates,
        edge_scores={name: EdgeScores(child, columns[name]) for name in _SCORES},
    )


def cosines(
    a: Tensor, b: Tensor, rows_of_a: Int[Tensor, "e"], rows_of_b: Int[Tensor, "e"]
) -> Float64[Tensor, "e"]:
    """The cosine of a row of `a` with a row of `b` for each edge, on the CPU. A row of zeros has cosine 0."""
    first = F.normalize(a.detach()[rows_of_a.to(a.device)].double())
    second = F.normalize(b.detach()[rows_of_b.to(b.device)].double())
    return (first * second).sum(1).cpu()


def _with_parent(subject: Subject) -> float | None:
    forest = subject.forest
    possible = forest.d_sae - (forest.layer_sizes[0] if forest.layered else 0)
    return forest.edges.shape[1] / possible if possible else None


def _by_layer(
    subject: Subject, child: Int[Tensor, "e"], columns: dict[str, Float64[Tensor, "e"]]
) -> list[dict[str, Any]]:
    """The means by the layer of the child; in a forest without layers, by its number of ancestors."""
    forest = subject.forest
    layer = forest.level[child]
    return [
        {"layer": i, "edges": int((layer == i).sum())}
        | {name: float(column[layer == i].mean()) for name, column in columns.items()}
        for i in layer.unique().tolist()
    ]


SPEC = Study(
    name="edges",
    needs=frozenset({"firings", "forest"}),
    transcoders=False,  # it compares encoder rows with decoder rows
    sets=("paper", "truth"),
    config=EdgesConfig,
    run=edges,
    nulls=("encoder_parent", "encoder_parent_abs", "decoder_cosine", "copies", "features_in_copies"),
    columns=(Column(EDGES, "copies", "children that copy their parent", "↓"),),
    memory=lambda size: 6 * size.decoder,  # three gathers of rows in float64
)
