"""Exports of every system for SAEBench and sae-probes, with what we make of some activations."""

from __future__ import annotations

from pathlib import Path

import saeforest
from saeforest.interop.saebench import write_saebench
from saeforest.interop.saelens_flat import levels_of
from saeforest.saes import HSAE

from .check import Row
from .compare import BOUND, write_expected
from .systems import every_system


def write_all(folder: Path, norms: tuple[str, ...]) -> dict[str, list[Path]]:
    """An export of every system for each normalization, by the system's name; beside it what is expected of each SAE in
    it, by the name that `selected_saes` gives it."""
    names: dict[str, list[Path]] = {}
    for norm in norms:
        for name, sae in every_system(norm).items():
            out = folder / f"{name}-{norm}"
            write_saebench(sae, out)
            (one,) = (out / "saes").iterdir()
            write_expected(saeforest.load(one), out / "expected" / one.name)
            if isinstance(sae, HSAE):
                for i, level in enumerate(levels_of(sae)):
                    write_expected(level, out / "expected" / f"{one.name}_level_{i}")
            names.setdefault(name, []).append(out)
    return names


def row(where: str, found: list[list[float]], said: str = "") -> Row:
    """The largest differences of several."""
    codes, reconstructions = (max(pair[i] for pair in found) for i in (0, 1))
    return Row(where, codes, reconstructions, max(codes, reconstructions) < BOUND, said)
