"""The three sparse products by PyTorch's embedding bag, which reads each active row once and stores no `[n, k, d]`.

On two CPU cores (n = 2048, d = 576, F = 6144, k = 32) they take 3, 9 and 3 ms, against 52 to 80 ms by gathering.
Each sums in a fixed order, so on a CPU results repeat bit for bit.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

_SUM = 0  # embedding bag's code for mode="sum"


def weighted_rows(
    values: Float[Tensor, "n k"], ids: Int[Tensor, "n k"], weight: Float[Tensor, "F d"]
) -> Float[Tensor, "n d"]:
    return F.embedding_bag(ids, weight, per_sample_weights=values, mode="sum")


def gather_dot(
    x: Float[Tensor, "n d"], ids: Int[Tensor, "n k"], weight: Float[Tensor, "F d"]
) -> Float[Tensor, "n k"]:
    n, k = ids.shape
    bags = torch.arange(n, device=ids.device)
    # The gradient of a bag's sum with respect to its weights is exactly this product.
    out = torch.ops.aten._embedding_bag_per_sample_weights_backward(
        x.contiguous(), weight, ids.flatten(), bags * k, bags.repeat_interleave(k), _SUM
    )
    return out.view(n, k)


def scatter_outer(
    values: Float[Tensor, "n k"], ids: Int[Tensor, "n k"], x: Float[Tensor, "n d"], n_rows: int
) -> Float[Tensor, "F d"]:
    k = ids.shape[1]
    sorted_ids, order = ids.flatten().sort(stable=True)
    first = torch.searchsorted(sorted_ids, torch.arange(n_rows, device=ids.device))
    return F.embedding_bag(order // k, x, first, per_sample_weights=values.flatten()[order], mode="sum")
