"""What the tests of the systems share."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def floats(terms: Sequence[Tensor | None]) -> list[float | None]:
    """The terms of a loss as numbers."""
    return [None if term is None else float(term) for term in terms]
