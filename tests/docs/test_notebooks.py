"""The notebooks run from the first cell to the last, on less text and in fewer steps than those that are committed."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib
import nbformat
import pytest

matplotlib.use("agg")
import matplotlib.pyplot as plt

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
    return code_cells_of(path.read_text("utf-8"))


def code_cells_of(notebook: str) -> list[dict[str, Any]]:
    return [cell for cell in json.loads(notebook)["cells"] if cell["cell_type"] == "code"]


def test_every_notebook_has_a_small_variant() -> None:
    assert SMALL.keys() == NOTEBOOKS.keys()


def run(code: str, namespace: dict[str, Any]) -> Any:
    """Runs a cell, and returns the expression in its last line, if there is one, as the notebook would show it."""
    cell = ast.parse(code)
    last = cell.body.pop() if isinstance(cell.body[-1], ast.Expr) else None
    exec(compile(cell, "cell", "exec"), namespace)
    if not isinstance(last, ast.Expr):
        return None
    found = eval(compile(ast.Expression(last.value), "cell", "eval"), namespace)
    return found._repr_html_() if hasattr(found, "_repr_html_") else repr(found)


@pytest.mark.model
@pytest.mark.usefixtures("embedded_in_memory")
@pytest.mark.parametrize("name", SMALL)
def test_a_notebook_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process, which has imported everything and holds the model."""
    source = NOTEBOOKS[name].read_text("utf-8")
    for old, new in SMALL[name].items():
        assert old in source, f"{name} does not say {old} any more"
        source = source.replace(old, new)
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"__name__": "__main__"}
    shown = [run("".join(cell["source"]), namespace) for cell in code_cells_of(source)]
    plt.close("all")
    assert any(shown)


def test_what_a_notebook_puts_out_is_kept_without_its_progress(tmp_path: Path) -> None:
    code = "import sys, os\nprint('said', os.getcwd())\nprint('progress', file=sys.stderr)\n{'a': 1}"
    path = tmp_path / "tiny.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)]), path)
    done = subprocess.run(
        [sys.executable, FOLDER / "execute.py", path],
        env={**os.environ, "IPYTHONDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4_000:]
    (cell,) = code_cells(path)
    said, value = cell["outputs"]
    assert "".join(said["text"]).startswith("said ")
    assert str(tmp_path) not in "".join(said["text"])
    assert value["data"] == {"text/plain": ["{'a': 1}"]}
    assert cell["execution_count"] == 1


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_is_committed_as_it_ran(name: str) -> None:
    cells = code_cells(NOTEBOOKS[name])
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert outputs
    assert not [output for output in outputs if output["output_type"] == "error"]
