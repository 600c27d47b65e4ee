"""The kernels for CPUs, compiled by Numba. `plain.py` says what each does."""

from .children import top_children
from .errors import layer_errors, layer_gradients
from .optimizer import adam
from .select import top_positive
from .sparse import gather_dot, scatter_outer, weighted_rows

__all__ = [
    "adam",
    "gather_dot",
    "layer_errors",
    "layer_gradients",
    "scatter_outer",
    "top_children",
    "top_positive",
    "weighted_rows",
]
