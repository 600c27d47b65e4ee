"""`saeforest.measure`: on activations and on the text of a run, and its mistakes."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import saeforest
from api_cases import activations, error
from saeforest import Forest, Record, RunFolder, TrainedRun
from saeforest.evaluation import SETS


def test_reconstruction_on_a_tensor_is_that_of_numpy(run: TrainedRun) -> None:
    x = activations(700, seed=1)
    record = saeforest.measure(run, x)["reconstruction"]
    with torch.no_grad():
        residual = (x - run.sae(x)).double().numpy()
    centered = x.double().numpy() - x.double().numpy().mean(0)
    assert record.value["fve"] == pytest.approx(1 - (residual**2).sum() / (centered**2).sum(), abs=1e-6)
    assert record.tokens == 700
    interval, value = record.interval["fve"], record.value["fve"]
    assert interval is not None
    assert value is not None
    assert interval[0] < value < interval[1]


def test_a_named_set_leaves_out_what_activations_alone_cannot_give(run: TrainedRun) -> None:
    found = saeforest.measure(run, activations(), "paper")
    assert "reconstruction" in found
    assert found.keys() < set(SETS["paper"])
    assert "measure 'cross_entropy': needs" in error(
        lambda: saeforest.measure(run, activations(), ["paper", "cross_entropy"])
    )


def test_measures_by_default_are_those_that_need_no_text(run: TrainedRun, flat: TrainedRun) -> None:
    x = activations(seed=1)
    assert list(saeforest.measure(run.sae, x)) == [
        "reconstruction",
        "sparsity",
        "dead",
        "coverage",
        "cooccurrence",
    ]
    assert list(saeforest.measure(flat, x)) == ["reconstruction", "sparsity", "dead"]
    forest = saeforest.infer_forest(flat.sae, x, min_count=1)
    records = saeforest.measure(flat, x, ["coverage", "hierarchy", "mcs"], forest=forest)
    assert list(records) == ["coverage", "hierarchy", "mcs"]
    assert records["coverage"].settings["forest"] == "given"
    every = saeforest.measure(
        run, x, "hierarchy,mcs,composition,geometry,reconstruction_score,hsae,cooccurrence"
    )
    assert all(isinstance(record, Record) for record in every.values())
    assert len(every) == 7


def test_a_run_is_measured_on_its_text(copy_run: Path) -> None:
    records = saeforest.measure(copy_run, measures="reconstruction,sparsity")
    assert list(records) == ["reconstruction", "sparsity"]
    assert records["reconstruction"].settings["split"] == "held_out"
    assert (copy_run / "eval" / "reconstruction.json").is_file()
    on_tensor = saeforest.measure(
        RunFolder(copy_run), torch.randn(64, saeforest.load(copy_run).d_in), "sparsity"
    )
    assert on_tensor["sparsity"].tokens == 64


@pytest.fixture
def copy_run(finished_run: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished_run, tmp_path / "copy")
    return tmp_path / "copy"


def test_a_mistake_in_measuring_is_one_line(run: TrainedRun, flat: TrainedRun) -> None:
    x: Any = activations()
    mistakes: dict[str, Callable[[], object]] = {
        "x: an SAE alone has no text": lambda: saeforest.measure(run.sae),
        "x: a run in memory has no text": lambda: saeforest.measure(run),
        "x: has shape [1000, 3]: expected activations [n, 8]": lambda: saeforest.measure(run, x[:, :3]),
        "measure 'cross_entropy': needs losses": lambda: saeforest.measure(run, x, "cross_entropy"),
        "measure 'autointerp': needs judge and text": lambda: saeforest.measure(run, x, ["autointerp"]),
        "measure 'absorption': needs first letters": lambda: saeforest.measure(run, x, ["absorption"]),
        "measure 'nope': no such measure": lambda: saeforest.measure(run, x, "nope"),
        "measure 'fve': no such measure; fve is a value of reconstruction; expected": lambda: (
            saeforest.measure(run, x, ["fve"])
        ),
        "measures: expected names of measures": lambda: saeforest.measure(run, x, 3),  # pyright: ignore[reportArgumentType]
        "measure 'coverage': needs a forest, and an SAE of architecture topk learns none": lambda: (
            saeforest.measure(flat, x, "coverage")
        ),
        "forest: expected a saeforest.Forest": lambda: saeforest.measure(flat, x, forest=3),  # pyright: ignore[reportArgumentType]
        "forest: is of 2 features, but the SAE has 16": lambda: saeforest.measure(
            flat, x, forest=Forest(torch.tensor([-1, 0]), (1, 1))
        ),
        "sae = 'b': expected one of tree": lambda: saeforest.measure(run, x, sae="b"),
        "options: expected": lambda: saeforest.measure(run, x, options=3),  # pyright: ignore[reportArgumentType]
        "source: expected an SAE, a run": lambda: saeforest.measure(3, x),  # pyright: ignore[reportArgumentType]
    }
    for line, do in mistakes.items():
        assert line in error(do)
