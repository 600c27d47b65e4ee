"""Loads SAEs that SAELens wrote (`saelens_make.py`) and compares what they make of activations with SAELens' own.

    .venv/bin/python tests/interop/saelens_read.py FOLDER [--tolerance 1e-5]

Prints a line for each, and exits with 1 if any is not read or differs.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

import saeforest
from saeforest import InputError

EXPECTED = "expected.safetensors"
_LEAST_ROWS = 100


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tolerance", type=float, default=1e-5, help="of the largest value of an activation")
    args = parser.parse_args()
    folders = sorted(path.parent for path in args.folder.rglob(EXPECTED))
    if not folders:
        print(f"{args.folder}: no folder with an {EXPECTED} in it")
        return 1
    failed = 0
    for folder in folders:
        try:
            ok, line = check(folder, args.tolerance)
        except InputError as error:
            ok, line = False, f"InputError: {error}"
        failed += not ok
        print(f"{'ok  ' if ok else 'FAIL'} {folder.relative_to(args.folder.parent)}: {line}", flush=True)
    print(f"{len(folders) - failed} of {len(folders)} as in SAELens")
    return int(failed > 0)


@torch.no_grad()
def check(folder: Path, tolerance: float) -> tuple[bool, str]:
    """Whether the SAE of a folder makes of the activations what SAELens does, and what to say of it."""
    expected = load_file(folder / EXPECTED)
    x, f, x_hat = expected["x"], expected["f"], expected["x_hat"]
    sae = saeforest.load(folder)
    found = sae.encode(x).dense(sae.d_sae)
    errors = {"f": distance(found, f, x), "x_hat": distance(sae(x), x_hat, x)}
    moved = int(((found > 0) != (f > 0)).sum())
    ok = all(error <= tolerance for error in errors.values()) and not moved and len(x) >= _LEAST_ROWS
    said = [
        f"{type(sae).__name__}, {len(x)} activations, L0 {float((f > 0).float().sum(1).mean()):.2f}",
        *(f"{name} differs by {error:.1e}" for name, error in errors.items()),
    ]
    if moved:
        said.append(f"{moved} features on one side only")
    return ok, ", ".join(said)


def distance(got: Tensor, want: Tensor, x: Tensor) -> float:
    """The largest difference, as a share of the largest value of each activation, which rounding grows with."""
    if got.shape != want.shape:
        return float("inf")
    size = 1 + x.abs().amax(1, keepdim=True).double()
    return float(((got.double() - want.double()).abs() / size).nan_to_num(nan=float("inf")).max())


if __name__ == "__main__":
    sys.exit(main())
