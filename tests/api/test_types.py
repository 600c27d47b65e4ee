"""What users see of the public types: reprs, errors, and the examples of docstrings."""

from __future__ import annotations

import doctest
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

import saeforest
from api_cases import activations, error
from saeforest import Forest, RunFolder, SparseCode, TrainedRun


def test_reprs_are_short_and_tell_sizes(run: TrainedRun, tmp_path: Path, finished_run: Path) -> None:
    assert repr(run.sae) == (
        "TreeSAE(d_in=8, d_sae=16, layer_sizes=(4, 12), k_per_layer=(2, 1), tokens=1_536, device='cpu')"
    )
    assert repr(run).startswith("TrainedRun(in memory; 6 steps of 256; last batch: FVE ")
    assert repr(run.sae) in repr(run)
    assert repr(Forest(torch.tensor([-1, -1, 0, 0]), (2, 2))) == (
        "Forest(4 features, layer_sizes=(2, 2): 2 edges, 2 roots, 2 levels)"
    )
    assert (
        repr(run.sae.encode(activations(5)))
        == "SparseCode(shape=[5], slots=3, dtype=torch.float32, device='cpu')"
    )
    record = saeforest.measure(run, activations(), "sparsity")["sparsity"]
    assert repr(record).startswith("Record(sparsity, 1,000 activations)\n  l0 = ")
    undefined = replace(
        record, value={"a": None}, interval={"a": None}, detail={"null": {"a": "no reason"}}, replicates={}
    )
    assert repr(undefined) == "Record(sparsity, 1,000 activations)\n  a = undefined: no reason"
    assert repr(RunFolder(tmp_path)) == f"RunFolder('{tmp_path}': no run)"
    shown = repr(RunFolder(finished_run))
    assert shown.startswith(f"RunFolder('{finished_run}': tree of ")
    assert "site blocks." in shown
    assert "model=" in repr(saeforest.load(finished_run))
    assert "site='blocks." in repr(saeforest.load(finished_run))


def test_an_sae_says_what_it_cannot_encode_or_decode(run: TrainedRun) -> None:
    sae: Any = run.sae
    code = sae.encode(activations(4))
    assert "this SAE reads width 8" in error(lambda: sae.encode(torch.zeros(4, 3)))
    assert "this SAE reads width 8" in error(lambda: sae(torch.zeros(4, 3)))
    assert "code, stats = sae.encode_with_stats(x)" in error(lambda: sae.decode(code))
    _, stats = sae.encode_with_stats(activations(4))
    assert "layer = 2: expected 0 to 1" in error(lambda: sae.decode(code, stats, 2))
    wrong = SparseCode(torch.ones(4, 1), torch.full((4, 1), 16))
    assert "feature id 16: expected 0 to 15" in error(lambda: sae.decode(wrong, stats))
    plain = saeforest.train(
        activations(), "topk", layer_sizes=16, k_per_layer=3, steps=2, normalize_activations="none"
    )
    x = activations(4)
    assert torch.equal(plain.sae.decode(plain.sae.encode(x)), plain.sae(x))


@pytest.mark.parametrize(
    "module",
    [
        "api.train",
        "api.measure",
        "api.others",
        "sparse_code",
        "structure.forest",
        "saes.tree",
        "saes.hsae",
        "saes.topk",
        "saes.batch_topk",
        "saes.matryoshka",
        "saes.jumprelu",
        "saes.matching_pursuit",
    ],
)
def test_examples_in_docstrings_run(module: str) -> None:
    found = doctest.testmod(import_module(f"saeforest.{module}"))
    assert found.failed == 0
    assert found.attempted > 0 or module == "structure.forest"
