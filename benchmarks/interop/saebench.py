"""SAEBench: our SAEs as objects in its environment, and its core evaluation of them on a tiny language model."""

from __future__ import annotations

from pathlib import Path

from benchmarks.saebench.environment import RECIPES

from saeforest.interop.saebench import _NEEDED

from .check import OURS, Row, Run, tool
from .dense_systems import row, write_all


def check(folder: Path, run: Run) -> list[Row]:
    names = write_all(folder, ("layer_norm", "none", "constant_norm_rescale"))
    found = run("run_saebench", *(out for some in names.values() for out in some))
    return [
        row(
            f"our {name}, as an object",
            [pair for out in some for pair in found[str(out)]["differences"]],
            f"core evaluation ran, L0 {found[str(some[0])]['l0']:.1f}",
        )
        for name, some in names.items()
    ]


SAEBENCH = tool("sae-bench", RECIPES["sae-bench"], check, _NEEDED, ("--no-deps", *OURS))
