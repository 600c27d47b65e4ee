"""Sparse products of the encoder and the decoder, the selection of features, and the optimiser's step.

Everything an SAE does with its active features comes down to three products, for rows `W [F, d]`:

    weighted_rows   out[t] = sum of values[i] W[ids[i]] over the entries i of row t       decode
    gather_dot      out[i] = x[rows[i]] . W[ids[i]]                                      encode the selected features
    scatter_outer   out[f] = sum of values[i] x[rows[i]] over the entries of feature f   weight gradients

and each is the other's gradient. `reference.py` spells them out; `plain.py` is PyTorch for any device, `compiled/`
Numba for CPUs and `triton_gpu` Triton for GPUs; `backend.py` chooses among them, `functions.py` differentiates.
`links.py` builds the distances between features and the sums of their children from these.
"""

from .backend import backend
from .functions import (
    choose_atoms,
    jagged_decode,
    jagged_encode,
    layer_errors,
    scatter_outer,
    sparse_decode,
    sparse_encode,
    take_atoms,
    top_children,
    top_positive,
)
from .links import dense_link_distance, has_children, link_distance, of_features
from .types import AdamStep

__all__ = [
    "AdamStep",
    "backend",
    "choose_atoms",
    "dense_link_distance",
    "has_children",
    "jagged_decode",
    "jagged_encode",
    "layer_errors",
    "link_distance",
    "of_features",
    "scatter_outer",
    "sparse_decode",
    "sparse_encode",
    "take_atoms",
    "top_children",
    "top_positive",
]
