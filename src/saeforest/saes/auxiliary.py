"""The auxiliary loss of Gao et al.: dead features learn the residual (docs/spec/baselines.md#auxiliary-loss)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import InputError
from ..kernels import sparse_decode
from ..sparse_code import SparseCode
from .normalizer import TokenStats


@dataclass(frozen=True)
class ResidualConfig:
    """How dead features reconstruct the residual."""

    k: int = 256
    """Dead features that may act on a token."""
    detach: bool = False
    """The residual is a fixed target. The authors' code lets gradients flow into it."""
    bias: bool = True
    """b_dec is part of the residual's reconstruction, as in the authors' code."""
    rescale: bool = False
    """Bring the residual's reconstruction back to the scale of x. The authors' code does not."""

    def __post_init__(self) -> None:
        if self.k < 1:
            raise InputError(f"sae.aux.k = {self.k}: expected 1 or more")


@dataclass(frozen=True)
class AuxConfig(ResidualConfig):
    """The auxiliary loss: dead features reconstruct the residual."""

    coefficient: float = 1 / 32
    """Its weight in the loss; 0 for none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_coefficients((self.coefficient,), self.coefficient)


def check_coefficients(weights: tuple[float, ...], said: float | tuple[float, ...]) -> None:
    """Raises InputError for a negative weight of an auxiliary loss."""
    if any(weight < 0 for weight in weights):
        raise InputError(f"sae.aux.coefficient = {said}: expected 0 or more")


def auxiliary_loss(
    code: SparseCode,
    decoder: Float[Tensor, "d_sae d_in"],
    b_dec: Float[Tensor, "d_in"],
    residual: Float[Tensor, "n d_in"],
    stats: TokenStats,
    aux: ResidualConfig,
) -> Float[Tensor, ""]:
    """How badly a code of dead features reconstructs the residual, relative to the residual's spread."""
    if code.values.shape[1] == 0 and not aux.bias:
        return residual.new_zeros(())
    if aux.detach:
        residual = residual.detach()
    e_hat = sparse_decode(code.values, code.ids, decoder)
    if aux.bias:
        e_hat = e_hat + b_dec
    if aux.rescale:
        e_hat = e_hat * stats.std
    spread = (residual - residual.mean(-1, keepdim=True)).square().mean()
    # Nothing left to reconstruct: the ratio and its gradient are 0, not NaN.
    some = spread > 0
    return torch.where(some, (e_hat - residual).square().mean() / torch.where(some, spread, 1), 0)
