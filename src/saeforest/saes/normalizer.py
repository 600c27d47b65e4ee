"""The normalization of activations to the units of an SAE, and its inverse (docs/spec/activations.md#normalization)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import InputError

Normalization = Literal["layer_norm", "constant_norm_rescale", "none", "dataset_scale"] | float
_STD_EPS = 1e-5


class TokenStats(NamedTuple):
    """The statistics of each activation with which its normalization is undone: `x = std * u + mean`."""

    mean: Float[Tensor, "*n 1"]
    std: Float[Tensor, "*n 1"]


class Normalizer(ABC):
    """A way to normalize activations."""

    @abstractmethod
    def apply(self, x: Float[Tensor, "*n d"]) -> tuple[Float[Tensor, "*n d"], TokenStats]:
        """Normalize `x`. Returns it in the units of the SAE, and the statistics for `undo`."""

    @abstractmethod
    def undo(self, z: Float[Tensor, "*n d"], stats: TokenStats) -> Float[Tensor, "*n d"]:
        """Return `z` from the units of the SAE to the units of the activations."""


@dataclass(frozen=True)
class LayerNorm(Normalizer):
    """Normalize every activation to mean 0 and standard deviation 1, as SAELens does."""

    exact_inverse: bool = True
    """Whether `undo` is exact, as it is in the Tree SAE authors' code. SAELens leaves out in decoding the epsilon that
    it adds to the standard deviation in encoding."""

    def apply(self, x: Float[Tensor, "*n d"]) -> tuple[Float[Tensor, "*n d"], TokenStats]:
        mean = x.mean(-1, keepdim=True)
        centered = x - mean
        # This is several times faster than Tensor.std. In float16 the sum would overflow.
        wide = centered.to(torch.promote_types(x.dtype, torch.float32))
        variance = wide.square().sum(-1, keepdim=True) / (x.shape[-1] - 1)
        std = variance.sqrt().to(x.dtype) + _STD_EPS
        return centered / std, TokenStats(mean, std)

    def undo(self, z: Float[Tensor, "*n d"], stats: TokenStats) -> Float[Tensor, "*n d"]:
        std = stats.std if self.exact_inverse else stats.std - _STD_EPS
        return z * std + stats.mean


@dataclass(frozen=True)
class ConstantNorm(Normalizer):
    """Scale every activation to the norm sqrt(d), as `constant_norm_rescale` does in SAELens.

    An activation of zeros stays as it is, whereas SAELens turns it into NaN.
    """

    def apply(self, x: Float[Tensor, "*n d"]) -> tuple[Float[Tensor, "*n d"], TokenStats]:
        norm = x.norm(dim=-1, keepdim=True) / x.shape[-1] ** 0.5
        norm = torch.where(norm > 0, norm, 1)
        return x / norm, TokenStats(torch.zeros_like(norm), norm)

    def undo(self, z: Float[Tensor, "*n d"], stats: TokenStats) -> Float[Tensor, "*n d"]:
        return z * stats.std


@dataclass(frozen=True)
class Scale(Normalizer):
    """Multiply all activations by one factor, which is folded into the weights after training (`SAE.fold_scale`)."""

    factor: float = 1.0

    def apply(self, x: Float[Tensor, "*n d"]) -> tuple[Float[Tensor, "*n d"], TokenStats]:
        return (x if self.factor == 1 else x * self.factor), self.stats(x)

    def undo(self, z: Float[Tensor, "*n d"], stats: TokenStats) -> Float[Tensor, "*n d"]:
        return z if self.factor == 1 else z * stats.std

    def stats(self, x: Float[Tensor, "*n d"]) -> TokenStats:
        """The statistics for `undo`, for as many rows as `x` has; its values do not matter."""
        ones = torch.ones_like(x[..., :1])
        return TokenStats(0 * ones, ones / self.factor)


def normalizer_of(how: Normalization, *, exact_inverse: bool = True) -> Normalizer:
    """The normalizer for a value of `sae.normalize_activations`; "none" is a factor of 1.

    Raises InputError for "dataset_scale", which must first be replaced by the number computed from the activations.
    """
    match how:
        case "layer_norm":
            return LayerNorm(exact_inverse)
        case "constant_norm_rescale":
            return ConstantNorm()
        case _:
            return _scale(how, "normalize_activations")


def target_normalizer(how: Normalization) -> Scale:
    """The normalizer of a transcoder's target, for a value of `sae.normalize_target`: "none", or a factor.

    Raises InputError for "dataset_scale", and for a normalization by the mean or norm of the target itself, which are
    not known when it is predicted.
    """
    if how in ("layer_norm", "constant_norm_rescale"):
        raise InputError(
            f"sae.normalize_target = {how}: the mean and norm of a target are not known when it is predicted; "
            "expected dataset_scale, none or a factor"
        )
    return _scale(how, "normalize_target")


def _scale(how: Normalization, key: str) -> Scale:
    if how == "none":
        return Scale()
    if isinstance(how, str):
        raise InputError(f"sae.{key} = {how}: expected the number that training determines; give that number")
    return Scale(float(how))
