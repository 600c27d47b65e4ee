"""The auxiliary loss of Gao et al.: dead features reconstruct the residual (docs/spec/baselines.md#auxiliary-loss)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..errors import InputError
from ..kernels import sparse_decode
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


def auxiliary_loss(
    code: SparseCode,
    decoder: Float[Tensor, "d_sae d_in"],
    b_dec: Float[Tensor, "d_in"],
    residual: Float[Tensor, "n d_in"],
    stats: TokenStats,
    aux: ResidualConfig,
) -> Float[Tensor, ""]:
    """The squared error of a reconstruction of the residual from dead features, relative to the residual's variance.

    code: the dead features that are active on each of the activations `aux.rows`.
    residual: target minus reconstruction of all activations, `[n, d_in]`. stats: their statistics.
    """
    residual, std = residual[aux.rows], stats.std[aux.rows]
    if code.values.shape[1] == 0 and not aux.bias:
        return residual.new_zeros(())
    if aux.detach:
        residual = residual.detach()
    e_hat = sparse_decode(code.values, code.ids, decoder)
    if aux.bias:
        e_hat = e_hat + b_dec
    if aux.rescale:
        e_hat = e_hat * std
    spread = (residual - residual.mean(-1, keepdim=True)).square().mean()
    # If the residual is constant, the ratio and its gradient are 0 rather than NaN.
    some = spread > 0
    return torch.where(some, (e_hat - residual).square().mean() / torch.where(some, spread, 1), 0)
