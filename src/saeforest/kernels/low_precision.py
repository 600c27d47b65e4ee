"""Numbers in 16 and in 8 bits: weights and the moments of Adam (docs/spec/tree-sae.md#low-precision).

Those in 16 bits are bfloat16. Those in 8 bits are small floating-point numbers whose exponents count from one exponent
for the whole row. A first moment has a sign, 3 bits of exponent and 4 of mantissa. A second moment, which is never
negative and has the squared range, has 5 and 3. As in any such format, the numbers with exponent 0 are spaced evenly
down to 0.

Since a row is scaled by a power of two, its numbers stay on their grid when the scale changes, and one that has not
changed is not rounded again. Rounding is stochastic, hence unbiased, and needs only integers, so that every kernel
rounds alike.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor

_MASK = 0xFFFFFFFF
_MANTISSA = 23  # bits of mantissa in float32
_LARGEST = 255


class Format(NamedTuple):
    """How a number is written in 8 bits."""

    dtype: torch.dtype
    top: int
    """Largest exponent of a number; the row's exponent says what it stands for."""
    mantissa: int
    """Bits of mantissa."""
    least: int
    """Code of the smallest number that is not 0 to which one that is not 0 is rounded. 0: it may be rounded to 0."""

    @property
    def lowest(self) -> int:
        """The smallest exponent of a row, for which all its numbers are normal numbers of float32."""
        return self.top + self.mantissa


#: For first moments: down to 1/1024 of the largest number of a row.
SIGNED = Format(torch.int8, 7, 4, 0)
#: For second moments: over 33 powers of two. None of them becomes 0, because steps are divided by its root.
UNSIGNED = Format(torch.uint8, 31, 3, 1)


class Bytes(NamedTuple):
    """A matrix in 8 bits."""

    codes: Int[Tensor, "F d"]
    """int8 (`SIGNED`) or uint8 (`UNSIGNED`)."""
    exponents: Int[Tensor, "F"]
    """The exponent in float32 of the largest numbers that each row can hold, biased by 127 as there."""


def format_of(dtype: torch.dtype) -> Format:
    """The format whose codes have this data type."""
    return SIGNED if dtype == SIGNED.dtype else UNSIGNED


def widened(numbers: Bytes) -> Float[Tensor, "F d"]:
    """The numbers in float32, exactly."""
    codes, form = numbers.codes.int(), format_of(numbers.codes.dtype)
    size = codes.abs()
    exponent = size >> form.mantissa
    hidden = (exponent > 0).int()
    digits = (size & ((1 << form.mantissa) - 1)) + (hidden << form.mantissa)
    unit = numbers.exponents.int()[:, None] - form.lowest + exponent.clamp(min=1)
    return codes.sign() * digits * (unit << _MANTISSA).view(torch.float32)


def narrowed(x: Float[Tensor, "F d"], form: Format, seed: int, rows: Int[Tensor, "F"] | None = None) -> Bytes:
    """`x` in 8 bits, by stochastic rounding. The random numbers depend only on the position and `seed`.

    rows: the rows that `x` has in the matrix in which positions count. None: `x` is the whole.
    """
    signed = x.float().contiguous().view(torch.int32).long()
    bits = signed & 0x7FFFFFFF
    spare = _MANTISSA - form.mantissa
    # The largest number may be rounded up to the next one, which must still have a code.
    exponents = ((bits.amax(1) + (1 << spare) - 1) >> _MANTISSA).clamp(form.lowest, _LARGEST)
    first = exponents[:, None] - form.top + 1  # for numbers with exponent 1
    exponent = bits >> _MANTISSA
    digits = (bits & ((1 << _MANTISSA) - 1)) + ((exponent > 0).long() << _MANTISSA)
    exponent = exponent.clamp(min=1)
    shift = spare + (first - exponent).clamp(min=0)
    digits = digits >> (shift - 31).clamp(0, 31)  # so that 31 random bits are enough
    shift = shift.clamp(max=31)
    chance = hashed(x, seed, rows) & ((1 << shift) - 1)
    codes = ((digits + chance) >> shift) + ((exponent - first).clamp(min=0) << form.mantissa)
    codes = torch.where(bits > 0, codes.clamp(min=form.least), 0)
    return Bytes(torch.where(signed < 0, -codes, codes).to(form.dtype), exponents.to(torch.uint8))


def hashed(
    x: Float[Tensor, "*shape"], seed: int, rows: Int[Tensor, "a"] | None = None
) -> Int64[Tensor, "*shape"]:
    """A random number of 32 bits for every position of `x`, which depends only on the position and `seed`.

    rows: the rows that `x` has in the matrix in which positions count. None: `x` is the whole.
    """
    if rows is None:
        place = torch.arange(x.numel(), device=x.device).view(x.shape)
    else:
        place = torch.arange(x.shape[1], device=x.device) + rows[:, None] * x.shape[1]
    # The finalizer of MurmurHash3, computed in 64-bit integers.
    h = (place + seed * 0x9E3779B9) & _MASK
    h = ((h ^ (h >> 16)) * 0x85EBCA6B) & _MASK
    h = ((h ^ (h >> 13)) * 0xC2B2AE35) & _MASK
    return h ^ (h >> 16)


def rounded(
    x: Float[Tensor, "*shape"], seed: int, rows: Int[Tensor, "a"] | None = None
) -> Float[Tensor, "*shape"]:
    """`x` in bfloat16 by stochastic rounding, which is unbiased.

    With rounding to nearest, a slowly moving average would never change. The random numbers depend only on the position
    and `seed`.

    rows: the rows that `x` has in the matrix in which positions count. None: `x` is the whole.
    """
    bits = x.float().view(torch.int32).long() & _MASK
    bits = (bits + (hashed(x, seed, rows) & 0xFFFF)) & 0xFFFF0000
    # The upper half of a float32 is a bfloat16.
    half = (bits >> 16).to(torch.int32)
    return torch.where(half >= 1 << 15, half - (1 << 16), half).to(torch.int16).view(torch.bfloat16)
