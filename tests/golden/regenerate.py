"""Writes the golden values anew: `python -m tests.golden.regenerate`, in the repository's folder."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from .runs import HERE, RUNS, make_all
from .values import values_of


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        world = make_all(Path(name))
        for run, saes in RUNS.items():
            for sae in saes:
                values = json.dumps(values_of(Path(name) / run, sae, world), indent=1)
                (HERE / f"{sae}.json").write_text(values + "\n", encoding="utf-8")
                print(f"tests/golden/{sae}.json")


if __name__ == "__main__":
    main()
