"""The features and the bias of which the reconstruction of each layer consists."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from ..kernels import layer_errors
from ..sparse_code import SparseCode
from .normalizer import TokenStats


@dataclass(frozen=True)
class Reconstruction(ABC):
    """How each layer reconstructs. Layer l consists of the features `starts[l]` to `starts[l + 1] - 1`."""

    starts: tuple[int, ...]
    cumulative: ClassVar[bool]
    """Whether the reconstruction of a layer includes the features of all earlier layers."""

    @property
    def last(self) -> int:
        """The last layer."""
        return len(self.starts) - 2

    @abstractmethod
    def features(self, layer: int) -> tuple[int, int]:
        """The first feature in the reconstruction of `layer`, and one past the last."""

    @abstractmethod
    def bias(self, b_dec: Float[Tensor, "*L d_out"], layer: int) -> Float[Tensor, "d_out"]:
        """The bias in the reconstruction of `layer`."""


@dataclass(frozen=True)
class Prefixes(Reconstruction):
    """Layer l is reconstructed from the features of layers 0 to l. With one layer, these are all features."""

    cumulative: ClassVar[bool] = True

    def features(self, layer: int) -> tuple[int, int]:
        return 0, self.starts[layer + 1]

    def bias(self, b_dec: Float[Tensor, "*L d_out"], layer: int) -> Float[Tensor, "d_out"]:
        return b_dec

    def losses(
        self,
        code: SparseCode,
        decoder: Float[Tensor, "F d_out"],
        b_dec: Float[Tensor, "d_out"],
        target: Float[Tensor, "n d_out"],
        stats: TokenStats,
        *,
        padded: bool = True,
    ) -> tuple[Float[Tensor, "L"], list[Float[Tensor, "n d_out"]]]:
        """The squared error of each layer's reconstruction, as a fraction of the batch's variance (Eq. 7).

        Also returns the errors themselves, reconstruction minus target.

        padded: slots of value 0 are unused, so their gradient may be anything.
        """
        squared, errors = layer_errors(
            code.values, code.ids, decoder, b_dec, target, *stats, self.starts, padded=padded
        )
        return squared / (target.numel() * (target.var() + 1e-8)), errors


@dataclass(frozen=True)
class Levels(Reconstruction):
    """Every level is reconstructed from its own features alone, with its own bias if there are several levels."""

    cumulative: ClassVar[bool] = False

    def features(self, layer: int) -> tuple[int, int]:
        return self.starts[layer], self.starts[layer + 1]

    def bias(self, b_dec: Float[Tensor, "*L d_out"], layer: int) -> Float[Tensor, "d_out"]:
        return b_dec[layer] if b_dec.dim() == 2 else b_dec
