"""Sparse products of the encoder and the decoder, the selection of features, and the step of the optimizer.

Everything an SAE does with its active features consists of three products, for rows `W [F, d]`:

    weighted_rows   out[t] = sum of values[i] W[ids[i]] over the entries i of row t       decode
    gather_dot      out[i] = x[rows[i]] . W[ids[i]]                                      encode the selected features
    scatter_outer   out[f] = sum of values[i] x[rows[i]] over the entries of feature f   weight gradients

whose gradients are again such products. `reference.py` defines them in the simplest way. `plain.py` implements all
kernels in PyTorch for any device, `compiled/` in Numba for CPUs, and `triton_gpu/` in Triton for GPUs; `backend.py`
chooses among them. `products.py` makes the products differentiable, `selection.py` selects features, and `links.py`
builds the distances between features and the sums of their children. `rows.py` and `shards.py` divide the work among
the processes of a run.
"""

from . import shards
from .backend import backend
from .links import (
    dense_link_distance,
    dense_projected_distance,
    has_children,
    link_distance,
    of_features,
    projected_distance,
    toward_parents,
)
from .low_precision import Bytes
from .products import (
    gradient_by_rows,
    jagged_decode,
    jagged_encode,
    layer_errors,
    rows_of_gradient,
    scatter_outer,
    sparse_decode,
    sparse_encode,
)
from .rows import by_rows, code_by_rows, entries_by_rows, sharing
from .selection import (
    best_children,
    choose_atoms,
    closed_best,
    closed_scores,
    kept_slots,
    kth_largest,
    take_atoms,
    top_children,
    top_positive,
)
from .types import AdamStep

__all__ = [
    "AdamStep",
    "Bytes",
    "backend",
    "best_children",
    "by_rows",
    "choose_atoms",
    "closed_best",
    "closed_scores",
    "code_by_rows",
    "dense_link_distance",
    "dense_projected_distance",
    "entries_by_rows",
    "gradient_by_rows",
    "has_children",
    "jagged_decode",
    "jagged_encode",
    "kept_slots",
    "kth_largest",
    "layer_errors",
    "link_distance",
    "of_features",
    "projected_distance",
    "rows_of_gradient",
    "scatter_outer",
    "shards",
    "sharing",
    "sparse_decode",
    "sparse_encode",
    "take_atoms",
    "top_children",
    "top_positive",
    "toward_parents",
]
