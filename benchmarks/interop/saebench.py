"""SAEBench: our SAEs as objects in its environment, and its core evaluation of them on a tiny language model; and its
functions of SCR, RAVEL and unlearning beside ours, on small data."""

from __future__ import annotations

from pathlib import Path

from benchmarks.saebench.environment import RECIPES
from benchmarks.saebench.small import compare

from saeforest.interop.saebench import _NEEDED

from .check import OURS, Row, Run, tool
from .compare import BOUND
from .dense_systems import row, write_all


def check(folder: Path, run: Run) -> list[Row]:
    names = write_all(folder, ("layer_norm", "none", "constant_norm_rescale"))
    found = run("run_saebench", *(out for some in names.values() for out in some))
    objects = [
        row(
            f"our {name}, as an object",
            [pair for out in some for pair in found[str(out)]["differences"]],
            f"core evaluation ran, L0 {found[str(some[0])]['l0']:.1f}",
        )
        for name, some in names.items()
    ]
    return [*objects, *_functions(folder / "small")]


def _functions(folder: Path) -> list[Row]:
    """Their functions beside ours, a row for each of SCR, RAVEL and unlearning."""
    found = compare(folder)[1]
    rows = []
    for measure in ("SCR", "RAVEL", "unlearning"):
        mine = [one for one in found if one.what.startswith(measure)]
        largest = max(one.difference for one in mine)
        said = f"largest of {len(mine)} comparisons: {largest:.1e}"
        rows.append(
            Row(f"{measure} by its functions and by ours, small data", None, None, largest < BOUND, said)
        )
    return rows


SAEBENCH = tool("sae-bench", RECIPES["sae-bench"], check, _NEEDED, ("--no-deps", *OURS))
