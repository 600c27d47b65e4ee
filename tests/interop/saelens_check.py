"""Reads SAE folders with SAELens and compares what it makes of them with what was expected.

    PYTHON_WITH_SAE_LENS tests/interop/saelens_check.py FOLDER [--tolerance 1e-5]

FOLDER is, or holds at any depth, SAE folders: cfg.json, sae_weights.safetensors and, for this script,
expected.safetensors with `x [n, d_in]`, its dense codes `f [n, d_sae]` and reconstructions `x_hat [n, d_in]`.
Leave out of x what lies within rounding (1e-5) of a threshold or of the k-th place: no two libraries agree there.
Prints a line for each, and exits with 1 if any is not read or differs. It needs sae-lens (6.54.12) and what that
brings along, nothing of saeforest, which is why it is no test of the suite.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

CFG, EXPECTED = "cfg.json", "expected.safetensors"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tolerance", type=float, default=1e-5, help="of |got - want| / (1 + |want|)")
    args = parser.parse_args()
    folders = sorted(path.parent for path in args.folder.rglob(CFG))
    if not folders:
        print(f"{args.folder}: no SAE folder (with a {CFG}) in it")
        return 1
    failed = 0
    for folder in folders:
        try:
            ok, line = check(folder, args.tolerance)
        except Exception as error:  # whatever SAELens raises is the finding; the other folders still count
            ok, line = False, f"{type(error).__name__}: {' '.join(str(error).split())}"
        failed += not ok
        print(f"{'ok  ' if ok else 'FAIL'} {folder.relative_to(args.folder.parent)}: {line}", flush=True)
    print(f"{len(folders) - failed} of {len(folders)} as expected")
    return int(failed > 0)


@torch.no_grad()
def check(folder: Path, tolerance: float) -> tuple[bool, str]:
    """Whether SAELens reads the folder as expected, and what to say of it."""
    from sae_lens import SAE  # pyright: ignore[reportMissingImports]

    cfg = json.loads((folder / CFG).read_text())
    expected = load_file(folder / EXPECTED)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a warning on loading is a finding too
        sae = SAE.load_from_disk(folder)
    f = sae.encode(expected["x"])
    x_hat = sae.decode(f)  # right after encode: SAELens keeps the token statistics of the latest one
    errors = {"f": distance(f, expected["f"]), "x_hat": distance(x_hat, expected["x_hat"])}
    moved = int(((f > 0) != (expected["f"] > 0)).sum())
    lost = [key for key in cfg.get("metadata", {}) if key not in sae.cfg.metadata]
    # A comparison of empty codes would show nothing.
    ok = all(e <= tolerance for e in errors.values()) and bool(expected["f"].any()) and not moved and not lost
    said = [
        f"{type(sae).__name__}",
        f"L0 {float((expected['f'] > 0).float().sum(1).mean()):.2f}",
        *(f"{name} differs by {error:.1e}" for name, error in errors.items()),
    ]
    if moved:
        said.append(f"{moved} features on one side only")
    if lost:
        said.append(f"metadata lost: {', '.join(lost)}")
    return ok, ", ".join(said)


def distance(got: Any, want: Tensor) -> float:
    """The largest difference, relative to values above 1; infinite where shapes differ or NaN comes in."""
    if got.shape != want.shape:
        return float("inf")
    apart = (got.double() - want.double()).abs() / (1 + want.double().abs())
    return float(apart.nan_to_num(nan=float("inf")).max())


if __name__ == "__main__":
    sys.exit(main())
