"""How activations are brought to the units an SAE works in, and back (SPEC 5.1)."""

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
    """What normalization took from each activation, and decoding gives back: `x = std * u + mean`."""

    mean: Float[Tensor, "*n 1"]
    std: Float[Tensor, "*n 1"]


class Normalizer(ABC):
    """A way to normalize activations. What a normalizer cannot do, it cannot be built for."""

    @abstractmethod
    def apply(self, x: Float[Tensor, "*n d"]) -> tuple[Float[Tensor, "*n d"], TokenStats]:
        """`x` in the units of the SAE, and what it takes to come back."""

    @abstractmethod
    def undo(self, z: Float[Tensor, "*n d"], stats: TokenStats) -> Float[Tensor, "*n d"]:
        """`z` in the units of the activations."""


@dataclass(frozen=True)
class LayerNorm(Normalizer):
    """Every activation to mean 0 and standard deviation 1, as SAELens does."""

    exact_inverse: bool = True
    """Whether `undo` is exact. SAELens, which reads the folders of flat SAEs, leaves out the epsilon that it encodes
    with; the Tree SAE's authors do not."""

    def apply(self, x: Float[Tensor, "*n d"]) -> tuple[Float[Tensor, "*n d"], TokenStats]:
        mean = x.mean(-1, keepdim=True)
        centered = x - mean
        # Several times faster than Tensor.std; in float16 the sum would overflow.
        wide = centered.to(torch.promote_types(x.dtype, torch.float32))
        variance = wide.square().sum(-1, keepdim=True) / (x.shape[-1] - 1)
        std = variance.sqrt().to(x.dtype) + _STD_EPS
        return centered / std, TokenStats(mean, std)

    def undo(self, z: Float[Tensor, "*n d"], stats: TokenStats) -> Float[Tensor, "*n d"]:
        std = stats.std if self.exact_inverse else stats.std - _STD_EPS
        return z * std + stats.mean


@dataclass(frozen=True)
class ConstantNorm(Normalizer):
    """Every activation to the norm sqrt(d), under the name that SAELens has for it: `constant_norm_rescale`.

    An activation of zeros stays as it is; SAELens makes NaN of it.
    """

    def apply(self, x: Float[Tensor, "*n d"]) -> tuple[Float[Tensor, "*n d"], TokenStats]:
        norm = x.norm(dim=-1, keepdim=True) / x.shape[-1] ** 0.5
        norm = torch.where(norm > 0, norm, 1)
        return x / norm, TokenStats(torch.zeros_like(norm), norm)

    def undo(self, z: Float[Tensor, "*n d"], stats: TokenStats) -> Float[Tensor, "*n d"]:
        return z * stats.std


@dataclass(frozen=True)
class Scale(Normalizer):
    """Every activation times one factor. After training the factor is folded into the weights (`SAE.fold_scale`)."""

    factor: float = 1.0

    def apply(self, x: Float[Tensor, "*n d"]) -> tuple[Float[Tensor, "*n d"], TokenStats]:
        return (x if self.factor == 1 else x * self.factor), self.stats(x)

    def undo(self, z: Float[Tensor, "*n d"], stats: TokenStats) -> Float[Tensor, "*n d"]:
        return z if self.factor == 1 else z * stats.std

    def stats(self, x: Float[Tensor, "*n d"]) -> TokenStats:
        """What `undo` takes for rows like those of `x`, whose values don't matter."""
        ones = torch.ones_like(x[..., :1])
        return TokenStats(0 * ones, ones / self.factor)


def normalizer_of(how: Normalization, *, exact_inverse: bool = True) -> Normalizer:
    """The normalizer that `sae.normalize_activations` names; "none" is a factor of 1.

    Raises InputError for "dataset_scale", which stands for a number that only the activations tell.
    """
    match how:
        case "layer_norm":
            return LayerNorm(exact_inverse)
        case "constant_norm_rescale":
            return ConstantNorm()
        case _:
            return _scale(how, "normalize_activations")


def target_normalizer(how: Normalization) -> Scale:
    """The normalizer of a transcoder's target that `sae.normalize_target` names: none, or a factor.

    Raises InputError for what would take the target's own mean or norm, which are not known when it is predicted.
    """
    if how in ("layer_norm", "constant_norm_rescale"):
        raise InputError(
            f"sae.normalize_target = {how}: a target's own mean and norm are not known when it is predicted; "
            "expected dataset_scale, none or a factor"
        )
    return _scale(how, "normalize_target")


def _scale(how: Normalization, key: str) -> Scale:
    if how == "none":
        return Scale()
    if isinstance(how, str):
        raise InputError(f"sae.{key} = {how}: stands for a number that training finds; give that number")
    return Scale(float(how))
