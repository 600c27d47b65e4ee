"""A world: true features whose tree is known, and activations generated from them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ..activations import ActivationBatch
from ..errors import InputError
from ..kernels import sparse_decode
from ..seeds import seeded
from ..sparse_code import SparseCode
from ..structure.forest import Forest
from .trees import TreeSpec, sample_code


@dataclass(frozen=True, eq=False)
class Sample:
    """Activations, and the true features that generated them: `x = sum_g code_g v_g`.

    x:    `[n, d]` activations, float32.
    code: `[n, k]` the values of the true features; `code.dense(world.m)` is the matrix `[n, m]`.
    """

    x: Float[Tensor, "n d"]
    code: SparseCode

    def __len__(self) -> int:
        return len(self.x)


@dataclass(frozen=True, eq=False)
class World:
    """True features, their tree and their directions; a source of activations (`Blocks`). Immutable.

    Every block of every epoch has fresh samples, which depend only on the seed, the epoch and the block's index. The
    rows of a batch are sample numbers, unique across blocks.
    """

    name: str
    spec: TreeSpec
    """The tree, and how its features fire."""
    vectors: Float[Tensor, "m d"]
    """The direction of each true feature, float32, with unit norm unless the generator says otherwise."""
    seed: int
    """Random seed for all samples."""
    n_blocks: int = 16
    """Number of blocks in an epoch."""
    block_rows: int = 1 << 16
    """Number of samples in a block."""

    def __post_init__(self) -> None:
        if len(self.vectors) != self.spec.m:
            raise InputError(f"{len(self.vectors)} vectors for {self.spec.m} features; expected one each")
        for name in ("n_blocks", "block_rows"):
            if (value := getattr(self, name)) < 1:
                raise InputError(f"{name} = {value}: expected 1 or more")

    @property
    def forest(self) -> Forest:
        """The true forest of the features, layer by layer."""
        return self.spec.forest

    @property
    def m(self) -> int:
        """Number of true features."""
        return self.spec.m

    @property
    def d_in(self) -> int:
        """Number of dimensions of an activation."""
        return self.vectors.shape[1]

    def sample(self, n: int, generator: torch.Generator) -> Sample:
        """Draw `n` samples, which depend only on the state of the generator."""
        if n < 1:
            raise InputError(f"{n} samples: expected 1 or more")
        code = sample_code(self.spec, n, generator)
        return Sample(sparse_decode(code.values, code.ids, self.vectors), code)

    def block(self, epoch: int, index: int) -> ActivationBatch:
        """Block `index` of an epoch. Raises InputError if there is no such block."""
        return ActivationBatch(self.block_sample(epoch, index).x, self._rows(epoch, index))

    def block_sample(self, epoch: int, index: int) -> Sample:
        """The samples of a block, with the true features that generated them."""
        if not 0 <= index < self.n_blocks:
            raise InputError(f"block {index}: expected 0 to {self.n_blocks - 1}")
        return self.sample(self.block_rows, seeded(self.seed, self.name, "block", epoch, index))

    def held_out(self, n: int) -> Sample:
        """`n` samples that are in no block."""
        return self.sample(n, seeded(self.seed, self.name, "held out"))

    def _rows(self, epoch: int, index: int) -> Tensor:
        first = (epoch * self.n_blocks + index) * self.block_rows
        return torch.arange(first, first + self.block_rows)
