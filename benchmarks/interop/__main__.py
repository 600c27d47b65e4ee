"""Checks with other tools, each in an environment of its own, what they make of our files and we of theirs.

.venv/bin/python -m benchmarks.interop [TOOL ...] --out FOLDER

Writes FOLDER/interop.json and FOLDER/interop.md. Environments are made in .venv-peers, once; that needs the network.
Exits with 1 if anything is not as expected.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks.peers.environments import EnvironmentFailure

from .check import Row, Tool, runner, table
from .delphi import DELPHI
from .dictionary_learning import DICTIONARY_LEARNING
from .neuronpedia import NEURONPEDIA
from .sae_probes import SAE_PROBES
from .saebench import SAEBENCH
from .saelens import SAELENS
from .sparsify import SPARSIFY

TOOLS = {
    tool.name: tool
    for tool in (SAELENS, SAEBENCH, SAE_PROBES, DELPHI, NEURONPEDIA, SPARSIFY, DICTIONARY_LEARNING)
}


def main(arguments: Sequence[str] | None = None) -> int:
    p = argparse.ArgumentParser(
        prog="python -m benchmarks.interop", description=(__doc__ or "").splitlines()[0]
    )
    p.add_argument("tools", nargs="*", metavar="TOOL", help=f"default: all of {', '.join(TOOLS)}")
    p.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="for files and results")
    options = p.parse_args(arguments)
    if unknown := set(options.tools) - TOOLS.keys():
        p.error(f"{', '.join(unknown)}: expected some of {', '.join(TOOLS)}")
    found: list[tuple[Tool, Row]] = []
    for name in options.tools or TOOLS:
        folder = options.out / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        try:
            rows = TOOLS[name].check(folder, runner(TOOLS[name], print))
        except EnvironmentFailure as failure:
            print(f"error: {failure}", file=sys.stderr)
            rows = [Row("", None, None, ok=False, said="did not run")]
        found += [(TOOLS[name], row) for row in rows]
        print(table((TOOLS[name], row) for row in rows), flush=True)
    results = [{"tool": tool.name, "version": tool.version, **asdict(row)} for tool, row in found]
    (options.out / "interop.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    (options.out / "interop.md").write_text(table(found), encoding="utf-8")
    return int(not all(row.ok for _, row in found))


if __name__ == "__main__":
    sys.exit(main())
