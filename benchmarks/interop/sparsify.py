"""sparsify: the SAEs it saves, read here; and ours, as it reads them."""

from __future__ import annotations

from pathlib import Path

from benchmarks.peers.environments import RECIPES

import saeforest
from saeforest.interop.sparsify import write_sparsify

from .check import Row, Run, tool
from .compare import BOUND, differences, write_expected
from .systems import every_system


def check(folder: Path, run: Run) -> list[Row]:
    theirs = folder / "theirs"
    rows = []
    for name in run("run_sparsify", "make", theirs):
        codes, reconstructions = differences(theirs / name)
        rows.append(Row(f"{name}, saved by it", codes, reconstructions, max(codes, reconstructions) < BOUND))
    written = {}
    systems = every_system("none")
    for name in ("topk", "topk-bias", "matryoshka"):
        sae, out = systems[name], folder / "ours" / name
        done = write_sparsify(sae, out)
        place = out / done.about["hookpoint"]
        write_expected(sae, place)
        again = saeforest.load(place)
        same = all(
            bool((getattr(again, weights) == getattr(sae, weights)).all())
            for weights in ("encoder", "decoder", "b_enc", "b_dec")
        )
        written[str(out)] = (name, same)
    for out, (codes, reconstructions) in run("run_sparsify", "read", *written).items():
        name, same = written[out]
        said = "weights read back with equal bits" if same else "weights differ when read back"
        ok = same and max(codes, reconstructions) < BOUND
        rows.append(Row(f"our {name}, read by it", codes, reconstructions, ok, said))
    return rows


SPARSIFY = tool("eai-sparsify", RECIPES["eai-sparsify"], check)
