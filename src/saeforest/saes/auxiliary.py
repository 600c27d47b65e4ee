"""The auxiliary loss of Gao et al.: dead features reconstruct the residual (docs/spec/baselines.md#auxiliary-loss)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..errors import InputError
from ..kernels import jagged_decode, shards, sparse_decode
from ..sparse_code import SparseCode
from .encode import PreActivations
from .normalizer import TokenStats
from .select import top_k


@dataclass(frozen=True)
class ResidualConfig:
    """How dead features reconstruct the residual."""

    k: int = 256
    """Number of dead features that may be active on a token."""
    stride: int = 1
    """Train dead features on every n-th activation of a batch only, which costs that much less. 1: on all."""
    detach: bool = False
    """Treat the residual as a fixed target. The authors' code lets gradients flow through it."""
    bias: bool = True
    """Add b_dec to the reconstruction of the residual, as the authors' code does."""
    rescale: bool = False
    """Scale the reconstruction of the residual back to the units of the activations. The authors' code does not."""

    def __post_init__(self) -> None:
        if self.k < 1:
            raise InputError(f"sae.aux.k = {self.k}: expected 1 or more")
        if self.stride < 1:
            raise InputError(f"sae.aux.stride = {self.stride}: expected 1 or more")

    @property
    def rows(self) -> slice:
        """The activations of a batch on which dead features are trained."""
        return slice(None, None, self.stride)


@dataclass(frozen=True)
class AuxConfig(ResidualConfig):
    """The auxiliary loss: dead features reconstruct the residual."""

    coefficient: float = 1 / 32
    """Weight of the auxiliary loss. 0: no auxiliary loss."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_coefficients((self.coefficient,), self.coefficient)


def check_coefficients(weights: tuple[float, ...], said: float | tuple[float, ...]) -> None:
    """Raise InputError if an auxiliary loss has a negative weight; `said` is the setting as it was given."""
    if any(weight < 0 for weight in weights):
        raise InputError(f"sae.aux.coefficient = {said}: expected 0 or more")


def select_dead(h: PreActivations, u: Float[Tensor, "n d_in"], dead: Bool[Tensor, "F"], k: int) -> SparseCode:
    """For every activation the `k` dead features of largest pre-activation."""
    features = dead.nonzero().flatten()
    if len(features) == 0:
        return SparseCode(u.new_zeros(len(u), 0), features.new_zeros(len(u), 0))
    return h.choose(u, lambda dense: top_k(dense, k), features)


def reconstructed(
    h: PreActivations,
    inputs: Sequence[Float[Tensor, "n d_in"]],
    chosen: Sequence[SparseCode],
    decoder: Float[Tensor, "d_sae d_out"],
) -> list[Float[Tensor, "n d_out"] | None]:
    """What the dead features of each layer reconstruct together, with gradients for those that are active. None for a
    layer without dead features.

    inputs: what each layer reads. chosen: its dead features that are active on each activation.
    """
    if shards.divided():
        codes = [h.exact(u, code) for u, code in zip(inputs, chosen, strict=True)]
        return [
            sparse_decode(code.values, code.ids, decoder) if code.values.shape[1] else None for code in codes
        ]
    n, layers = len(inputs[0]), len(chosen)
    # Most of the places for dead features are empty, so entries are listed; and all layers together, since every
    # product costs some time of its own.
    on = [code.values > 0 for code in chosen]
    ids = torch.cat([code.ids[some] for code, some in zip(chosen, on, strict=True)])
    rows = torch.cat([layer * n + some.nonzero()[:, 0] for layer, some in enumerate(on)])
    if len(ids) == 0:
        found = inputs[0].new_zeros(layers, n, decoder.shape[1])
    else:
        values = h.of_entries(inputs, ids, rows, few=True).relu()
        found = jagged_decode(values, ids, rows, layers * n, decoder, few=True).unflatten(0, (layers, n))
    return [found[i] if code.values.shape[1] else None for i, code in enumerate(chosen)]


def auxiliary_loss(
    e_hat: Float[Tensor, "m d_out"] | None,
    b_dec: Float[Tensor, "d_out"],
    error: Float[Tensor, "n d_out"],
    stats: TokenStats,
    aux: ResidualConfig,
) -> Float[Tensor, ""]:
    """The squared error of a reconstruction of the residual from dead features, relative to the residual's variance.

    e_hat: the reconstruction, on each of the activations `aux.rows`. None: no feature is dead.
    error: reconstruction minus target of all activations, that is minus the residual. stats: their statistics.
    """
    error = error[aux.rows]
    if e_hat is None:
        if not aux.bias:
            return error.new_zeros(())
        e_hat = torch.zeros_like(error)
    if aux.detach:
        error = error.detach()
    if aux.bias:
        e_hat = e_hat + b_dec
    missing = torch.addcmul(error, e_hat, stats.std[aux.rows]) if aux.rescale else e_hat + error
    spread = (error - error.mean(-1, keepdim=True)).square().mean()
    # If the residual is constant, the ratio and its gradient are 0 rather than NaN.
    some = spread > 0
    return torch.where(some, missing.square().mean() / torch.where(some, spread, 1), 0)
