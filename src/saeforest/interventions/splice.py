"""The splice: replace the activation at a site by the reconstruction of its code, which may be edited first.

With x_t = x_hat(f_t) + e_t, where e_t is the reconstruction error and f'_t the edited code:

    without the error term   x_t becomes x_hat(f'_t)
    with the error term      x_t becomes x_hat(f'_t) + e_t = x_t + s_t sum_i (f'_ti - f_ti) d_i

so that with the error term, only the effect of the edit changes. s_t is the scale of input normalization.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from ..errors import InputError
from ..saes import SAE
from ..saes.normalizer import TokenStats
from ..sparse_code import SparseCode
from .edits import CodeEdit

Keep = Bool[Tensor, "batch ctx"] | Callable[[Tensor], Tensor] | None
"""Positions to replace: a mask, a function that gives it for the activations of a forward pass, or None for all."""


class _Codes(NamedTuple):
    """What was read in a forward pass."""

    keep: Tensor | None
    old: SparseCode
    new: SparseCode
    stats: TokenStats


@dataclass(eq=False)
class Splice:
    """The hooks of a splice: `read` at the site that the SAE reads and `write` at the one that it reconstructs.

    For an SAE that reconstructs its input these are one site, where the object itself is the hook. See `splice`.
    """

    sae: SAE
    edit: CodeEdit | None = None
    error: bool = False
    keep: Keep = None
    _codes: _Codes | None = None

    def __call__(self, x: Float[Tensor, "*n d"]) -> Float[Tensor, "*n d"]:
        self.read(x)
        return self.write(x)

    def read(self, x: Float[Tensor, "*n d_in"]) -> None:
        """Encode the activations of a forward pass, and edit their code."""
        keep = self.keep(x) if callable(self.keep) else self.keep
        chosen = (x if keep is None else x[keep]).to(self.sae.device)
        if not len(chosen):
            self._codes = None
            return
        old, stats = self.sae.encode_with_stats(chosen)
        self._codes = _Codes(keep, old, old if self.edit is None else self.edit(old), stats)

    def write(self, y: Float[Tensor, "*n d_out"]) -> Float[Tensor, "*n d_out"]:
        """Replace the activations of the same pass."""
        codes, self._codes = self._codes, None
        if codes is None:
            return y
        keep, old, new, stats = codes
        if self.error:
            chosen = (y if keep is None else y[keep]).to(self.sae.device)
            rows = chosen + self.sae.decode_change(change(old, new), stats)
        else:
            rows = self.sae.decode(new, stats)
        return rows if keep is None else put(y, rows, keep)


def splice(sae: SAE, edit: CodeEdit | None = None, *, error: bool = False, keep: Keep = None) -> Splice:
    """A hook for `LanguageModel.hooked` that replaces activations by `sae`'s reconstruction from their edited code.

    edit:  an `Edit`, or any function from code to code; None to decode the code unchanged.
    error: whether to add the reconstruction error of the unedited code. An edit that changes nothing then changes no
        activation at all.
    keep:  positions to replace; None for all.

    For a transcoder, which writes to another site than it reads, use the methods `read` and `write` of the result.
    """
    return Splice(sae, edit, error, keep)


def change(old: SparseCode, new: SparseCode) -> SparseCode:
    """The difference of an edited code and the code before.

    Raises InputError if the edit moved features to other slots.
    """
    k = old.ids.shape[-1]
    if not bool((new.ids[..., :k] == old.ids).all()):
        raise InputError(
            "an edit gave a slot another feature; expected it to append slots for further features"
        )
    return new.replace(values=new.values - F.pad(old.values, (0, new.values.shape[-1] - k)))


def put(
    x: Float[Tensor, "batch ctx d"], rows: Float[Tensor, "n d"], keep: Bool[Tensor, "batch ctx"]
) -> Float[Tensor, "batch ctx d"]:
    """A copy of `x` with the positions in `keep` replaced by `rows`, in order."""
    x = x.clone()
    x[keep] = rows.to(x)
    return x
