"""What `dir(saeforest)` lists, and what importing it costs."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest

import saeforest
from api_cases import SOURCE
from saeforest.saes import TreeConfig


def test_dir_is_what_is_public() -> None:
    assert sorted(dir(saeforest)) == sorted(
        [
            "SAE",
            "Forest",
            "InputError",
            "Record",
            "RunFolder",
            "SparseCode",
            "TrainedRun",
            "__version__",
            "compare",
            "infer_forest",
            "load",
            "load_lm",
            "measure",
            "push",
            "save",
            "steer",
            "synthetic",
            "train",
        ]
    )
    for name in dir(saeforest):
        assert getattr(saeforest, name) is not None
        assert name.startswith("__") or inspect.getdoc(getattr(saeforest, name))
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = saeforest.trian  # pyright: ignore[reportAttributeAccessIssue]


def test_it_is_typed() -> None:
    assert (SOURCE / "saeforest" / "py.typed").is_file()


def test_an_input_error_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="layer_sizes"):
        TreeConfig(layer_sizes=(0,), k_per_layer=(1,))


def in_a_process(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_costs_nothing_but_what_is_asked_for() -> None:
    imported = in_a_process("import saeforest, sys; print(*(m.split('.')[0] for m in sys.modules))").split()
    assert set(imported).isdisjoint({"torch", "numpy", "pydantic", "transformers", "scipy", "rich"})


def test_training_on_a_tensor_needs_the_core_alone(tmp_path: Path) -> None:
    heavy = in_a_process(
        f"""
import sys, torch, saeforest
x = torch.randn(400, 8)
run = saeforest.train(x, "tree", layer_sizes=(4, 8), k_per_layer=(2, 1), steps=3)
saeforest.save(run.sae, {str(tmp_path / "sae")!r})
sae = saeforest.load({str(tmp_path / "sae")!r})
assert len(sae.encode(x)) == 400
saeforest.infer_forest(sae, x)
print(*(m for m in sys.modules if "." not in m))
"""
    ).split()
    # scipy is not here: numba brings it where it is installed.
    assert set(heavy).isdisjoint({"transformers", "tokenizers", "gguf", "sklearn", "matplotlib", "datasets"})
