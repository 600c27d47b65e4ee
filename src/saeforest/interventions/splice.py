"""The splice: replace the activation at a site by the reconstruction of its code, which may be edited first.

With x_t = x_hat(f_t) + e_t, where e_t is the reconstruction error and f'_t the edited code:

    without the error term   x_t becomes x_hat(f'_t)
    with the error term      x_t becomes x_hat(f'_t) + e_t = x_t + s_t sum_i (f'_ti - f_ti) d_i

so that with the error term, only the effect of the edit changes. s_t is the scale of input normalization.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..saes import SAE
from ..sparse_code import SparseCode

Edit = Callable[[SparseCode], SparseCode]
"""A function from the code of some activations to the code that is decoded."""


def splice(
    sae: SAE, edit: Edit | None = None, *, error: bool = False, keep: Bool[Tensor, "batch ctx"] | None = None
) -> Callable[[Tensor], Tensor]:
    """A hook for `LanguageModel.hooked` that replaces activations by `sae`'s reconstruction from their edited code.

    edit:  edit of the code; None to decode it unchanged.
    error: whether to add the reconstruction error of the unedited code.
    keep:  positions to replace; None for all.
    """

    def replace(x: Float[Tensor, "*n d"]) -> Float[Tensor, "*n d"]:
        chosen = (x if keep is None else x[keep]).to(sae.device)
        if not len(chosen):
            return x
        code, stats = sae.encode_with_stats(chosen)
        new = sae.decode(code if edit is None else edit(code), stats)
        if error:
            new = chosen + (new - sae.decode(code, stats))
        return new if keep is None else put(x, new, keep)

    return replace


def ablate(features: Sequence[int]) -> Edit:
    """An edit that sets the given features to zero."""

    def edit(code: SparseCode) -> SparseCode:
        gone = torch.isin(code.ids, torch.tensor(features, device=code.ids.device))
        return SparseCode(code.values.masked_fill(gone, 0), code.ids)

    return edit


def put(
    x: Float[Tensor, "batch ctx d"], rows: Float[Tensor, "n d"], keep: Bool[Tensor, "batch ctx"]
) -> Float[Tensor, "batch ctx d"]:
    """A copy of `x` with the positions in `keep` replaced by `rows`, in order."""
    x = x.clone()
    x[keep] = rows.to(x)
    return x
