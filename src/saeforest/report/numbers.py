"""Numbers as text."""

from __future__ import annotations

from .load import Value

DASH = "–"


def number(value: float | None) -> str:
    """A number with about four digits, and the same number of decimals as others of its size."""
    if value is None:
        return DASH
    size = abs(value)
    if isinstance(value, int) or size >= 1000:
        return f"{value:,.0f}"
    if 0 < size < 1e-4:
        return f"{value:.1e}"
    return f"{value:.{4 if size < 1 else 3 if size < 10 else 2 if size < 100 else 1}f}"


def interval(value: Value) -> str:
    """The interval of a value as text; empty if there is none."""
    return "" if value.interval is None else f"{number(value.interval[0])} to {number(value.interval[1])}"
