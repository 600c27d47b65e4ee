"""The kernels in Triton, for NVIDIA GPUs.

Most of the kernels' time is spent reading rows that are scattered over a large matrix. So each program computes one
piece of the output: it reads the rows it needs directly into registers, sums in float32 and writes once. No tensor of
shape `[n, k, d]` is stored (except in matching pursuit, whose kernels are PyTorch's), no two programs write to the same
place, and every sum has a fixed order, so results are reproducible bit for bit. Selection (`select.py`) reads the
scores once and narrows them down to a few thousand candidates for each row, which fit in the registers of one program.
The pre-activations of children are small matrix products, one tile for each program, after sorting the activations by
active parent.

The host is waited for once, in `top_children`: how many scores there are decides how much memory they need. Weights
are float32; `top_positive` takes bfloat16 too. Every matrix but the ones Adam updates may have any strides.

Without a GPU, `TRITON_INTERPRET=1` (set before the import) runs all of it in Triton's interpreter, on tensors of the
CPU: that is how `tests/kernels/test_triton.py` checks it.
"""

from ..plain import (  # fast enough
    choose_atoms,
    closed_best,
    closed_scores,
    kept_slots,
    kth_largest,
    put_back_atoms,
    take_atoms,
)
from .adam import adam, adam_rows
from .errors import layer_errors, layer_gradients
from .select import best_children, top_children, top_positive
from .sparse import gather_dot, scatter_outer, weighted_rows

__all__ = [
    "adam",
    "adam_rows",
    "best_children",
    "choose_atoms",
    "closed_best",
    "closed_scores",
    "gather_dot",
    "kept_slots",
    "kth_largest",
    "layer_errors",
    "layer_gradients",
    "put_back_atoms",
    "scatter_outer",
    "take_atoms",
    "top_children",
    "top_positive",
    "weighted_rows",
]
