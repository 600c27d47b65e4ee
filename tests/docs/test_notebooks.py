"""The notebooks run from the first cell to the last, on less text and in fewer steps than those that are committed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[2] / "notebooks"
NOTEBOOKS = {path.stem: path for path in FOLDER.glob("*.ipynb")}
#: What stands in a notebook, and what runs in its place.
SMALL = {
    "a-first-forest": {
        "tokens=40_000,": "tokens=1_500,",
        "epochs=8,": "epochs=2,",
        "batch_size=1024": "batch_size=256",
        "MeasureOptions(tokens=8_000)": "MeasureOptions(tokens=640)",
    },
    "is-the-hierarchy-real": {
        "steps=600": "steps=40",
        "steps=500": "steps=40",
        "WINDOWS, CONTEXT = 160, 128": "WINDOWS, CONTEXT = 16, 128",
        "min_count=50": "min_count=20",
        "ProbeConfig(epochs=10)": "ProbeConfig(epochs=1)",
    },
}


def code_cells(path: Path) -> list[dict[str, Any]]:
    return [cell for cell in json.loads(path.read_text("utf-8"))["cells"] if cell["cell_type"] == "code"]


def test_every_notebook_has_a_small_variant() -> None:
    assert SMALL.keys() == NOTEBOOKS.keys()


@pytest.mark.model
@pytest.mark.parametrize("name", SMALL)
def test_a_notebook_runs(name: str, tmp_path: Path) -> None:
    source = NOTEBOOKS[name].read_text("utf-8")
    for old, new in SMALL[name].items():
        assert old in source, f"{name} does not say {old} any more"
        source = source.replace(old, new)
    (tmp_path / "small.ipynb").write_text(source, "utf-8")
    done = subprocess.run(
        [sys.executable, FOLDER / "execute.py", tmp_path / "small.ipynb"],
        env={**os.environ, "MPLCONFIGDIR": str(tmp_path), "IPYTHONDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4_000:]


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_is_committed_as_it_ran(name: str) -> None:
    cells = code_cells(NOTEBOOKS[name])
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert outputs
    assert not [output for output in outputs if output["output_type"] == "error"]
