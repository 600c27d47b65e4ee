"""`saeforest compare`: a report that compares the SAEs of several runs, from their records on disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..extras import needs

__all__ = ["compare"]


def compare(runs: Sequence[Path], out: Path) -> None:
    """Writes a report on some runs into `out`: see `report.write.compare`, which needs the packages of figures.

    Raises InputError as that does, and if those packages are not installed.
    """
    with needs("report", "a report"):
        from .write import compare as write
    write(runs, out)
