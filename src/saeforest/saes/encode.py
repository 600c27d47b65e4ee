"""Pre-activations: dense ones, by which features are selected, and exact ones of the features that were selected."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from ..kernels import code_by_rows, jagged_encode, of_features, shards, sparse_encode
from ..sparse_code import SparseCode, concat_rows

# Rows are independent, so dense pre-activations are computed for slices of rows with about this many entries: few
# enough to stay in a CPU's cache, many enough to keep a GPU busy. With fewer rows than _LEAST_ROWS, the weights would
# be read too often.
DENSE_ENTRIES = 1 << 23
_DENSE_ENTRIES_GPU = 1 << 28
_LEAST_ROWS = 256


@dataclass(frozen=True)
class PreActivations:
    """The pre-activations `h = encoder u + bias` of all features, for activations `u` with `center` subtracted."""

    encoder: Float[Tensor, "rows d_in"]
    """The rows of all features; where ranks divide them, those of this rank."""
    bias: Float[Tensor, "F"] | None
    center: Float[Tensor, "d_in"] | None
    """The vector that was subtracted from `u`. It gets its gradient here. None if nothing was subtracted."""
    precision: torch.dtype
    """Data type in which features are selected. The values of selected features have the data type of the weights."""

    @torch.no_grad()
    def choose(
        self,
        u: Float[Tensor, "n d_in"],
        rule: Callable[[Float[Tensor, "m F"]], SparseCode],
        features: Int[Tensor, "F"] | None = None,
    ) -> SparseCode:
        """Select features by dense pre-activations, without gradients.

        rule: selects features from dense pre-activations; it is called for slices of rows.
        features: ids of the features to choose from; by default all.
        """
        if shards.divided():
            return self._choose_of_all(u, rule, features)
        encoder, bias = self._rows(features)
        entries = _DENSE_ENTRIES_GPU if u.is_cuda else DENSE_ENTRIES
        rows = max(entries // len(encoder), _LEAST_ROWS)
        code = code_by_rows(
            lambda own: concat_rows([rule(_products(part, encoder, bias)) for part in u[own].split(rows)]),
            len(u),
        )
        if features is None:
            return code
        return SparseCode(code.values, torch.where(code.values > 0, features[code.ids], 0))

    def _choose_of_all(
        self,
        u: Float[Tensor, "n d_in"],
        rule: Callable[[Float[Tensor, "m F"]], SparseCode],
        features: Int[Tensor, "F"] | None,
    ) -> SparseCode:
        """`choose` where each rank has the rows of its own features: the best of what each has found."""
        if features is None:
            features = shards.feature(torch.arange(len(self.encoder), device=u.device))
        own = features[shards.mine(features)]
        encoder = self.encoder[shards.place(own)].to(self.precision)
        bias = None if self.bias is None else self.bias[own].to(self.precision)

        def best(rows: slice) -> SparseCode:
            some = u[rows]
            code = SparseCode(some.new_zeros(len(some), 0, dtype=self.precision), own.new_zeros(len(some), 0))
            if len(own):
                parts = some.split(max(DENSE_ENTRIES // len(own), _LEAST_ROWS))
                code = concat_rows([rule(_products(part, encoder, bias)) for part in parts])
                code = SparseCode(code.values, own[code.ids])
            return shards.best_of_all(code, rule)

        return code_by_rows(best, len(u))

    def dense(self, u: Float[Tensor, "n d_in"], features: Int[Tensor, "F"]) -> Float[Tensor, "n F"]:
        """The pre-activations of `features` on all of `u` at once, in `precision`."""
        return _products(u, *self._rows(features))

    def _rows(
        self, features: Int[Tensor, "F"] | None
    ) -> tuple[Float[Tensor, "F d_in"], Float[Tensor, "F"] | None]:
        """Encoder rows and biases of `features`, or of all, in `precision`."""
        encoder, bias = self.encoder, self.bias
        if features is not None:
            encoder = encoder[features]
            bias = None if bias is None else bias[features]
        return encoder.to(self.precision), None if bias is None else bias.to(self.precision)

    def exact(self, u: Float[Tensor, "n d_in"], chosen: SparseCode, *, known: bool = False) -> SparseCode:
        """The selected features with values in full precision, and with gradients to encoder, bias, center and `u`.

        known: the values of `chosen` are exact already, and only need gradients.
        """
        values = chosen.values if known else None
        h = sparse_encode(u, chosen.ids, self.encoder, center=self.center, known=values)
        if self.bias is not None:
            h = h + F.embedding(chosen.ids, self.bias[:, None]).squeeze(-1)
        return SparseCode(torch.where(chosen.values > 0, h.relu(), 0), chosen.ids)

    def of_entries(
        self,
        inputs: Sequence[Float[Tensor, "n d_in"]],
        ids: Int[Tensor, "m"],
        rows: Int[Tensor, "m"],
        *,
        few: bool = False,
    ) -> Float[Tensor, "m"]:
        """The pre-activations of single features in full precision, and with gradients to encoder, bias and center.

        rows: the rows of all `inputs`, one after the other, in ascending order.
        few: few rows of the encoder have a gradient.
        """
        same = all(u is inputs[0] for u in inputs)
        u = (inputs[0] if same else torch.cat(list(inputs))).detach()
        repeats = len(inputs) if same else 1
        h = jagged_encode(u, ids, rows, self.encoder, self.center, repeats=repeats, few=few)
        return h if self.bias is None else h + of_features(self.bias, ids)


def _products(
    u: Float[Tensor, "n d_in"], encoder: Float[Tensor, "F d_in"], bias: Float[Tensor, "F"] | None
) -> Float[Tensor, "n F"]:
    u = u.to(encoder.dtype)
    return u @ encoder.T if bias is None else torch.addmm(bias, u, encoder.T)
