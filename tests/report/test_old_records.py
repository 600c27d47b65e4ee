"""Records of older versions, without nulls and replicates, are still shown: those of the committed comparison."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from saeforest.measures import Record
from saeforest.report import compare
from saeforest.run_folder import RunFolder

RESULTS = Path(__file__).parents[2] / "docs" / "results" / "comparison"
RUNS = {"runs/compare": "systems.yaml", "runs/matching-pursuit": "matching-pursuit.yaml"}


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """The runs of the committed report, with what it says of their records."""
    saes = json.loads((RESULTS / "report.json").read_text(encoding="utf-8"))["saes"]
    folders = {run: tmp_path / run for run in RUNS}
    for run, folder in folders.items():
        folder.mkdir(parents=True)
        shutil.copy(RESULTS / RUNS[run], folder / "config.yaml")
    for sae in saes.values():
        run = RunFolder(folders[sae["run"]])
        name = sae["name"] or next(iter(run.config().members()))
        for measure, values in sae["measures"].items():
            if measure in ("dead_training", "geometry"):  # their figures need details, which the report lacks
                continue
            first = next(iter(values.values()))
            record = Record(
                measure,
                {key: found["value"] for key, found in values.items()},
                {key: found["interval"] and tuple(found["interval"]) for key, found in values.items()},
                first["unit"],
                first["tokens"],
                {"interval_method": "95% percentile bootstrap"},
                {"null": {key: found["null"] for key, found in values.items() if found["value"] is None}},
            )
            place = run.record(name, measure)
            place.parent.mkdir(parents=True, exist_ok=True)
            record.write(place)
    return list(folders.values())


@pytest.mark.usefixtures("undrawn")
def test_what_has_no_null_says_so(runs: list[Path], tmp_path: Path) -> None:
    compare(runs, tmp_path / "out")
    text = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    row = next(line for line in text.splitlines() if "compare/tree-2layer |" in line and "0.9446" in line)
    assert "0.9446 (0.9032 to 0.9790)<br>null not measured <sup>" in row
    assert "null not measured: hierarchy was measured without its nulls" in text
    assert "Null not measured: compare/tree-2layer (tree)" in text.replace("&#95;", "_")
    claims = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))["claims"]
    of_gate = [claim for claim in claims if claim["null"] and claim["findings"]]
    assert of_gate
    assert "holds" not in {claim["verdict"] for claim in of_gate}  # what a gate alone gives is not decided
    assert "**not decided: needs a control**" in text
