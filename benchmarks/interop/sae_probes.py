"""sae-probes: its probes on the codes of our SAEs, of activations that lie where it keeps those of a language model."""

from __future__ import annotations

from pathlib import Path

from benchmarks.peers.environments import Recipe

from .check import OURS, Row, Run, tool
from .dense_systems import row, write_all


def check(folder: Path, run: Run) -> list[Row]:
    names = write_all(folder, ("layer_norm",))
    found = run("run_sae_probes", *(out for some in names.values() for out in some))
    rows = []
    for name, (out,) in names.items():
        said = f"probes ran; test AUC of 4 features {found[str(out)]['auc']:.2f}"
        rows.append(row(f"our {name}, probed", found[str(out)]["differences"], said))
    return rows


SAE_PROBES = tool("sae-probes", Recipe("0.4.2"), check, OURS, ("sae-probes==0.4.2",), environment="sae-lens")
