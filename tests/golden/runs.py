"""The golden runs: their settings, the commands that make them, and the environment that fixes their bits."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent

#: The same instructions on any x86-64 processor. glibc, NumPy and OpenBLAS choose theirs when they are loaded, too.
FIXED = {
    "ATEN_CPU_CAPABILITY": "default",
    "MKL_CBWR": "COMPATIBLE",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
    "NUMBA_CPU_NAME": "x86-64",
    "NUMBA_CPU_FEATURES": "",
    "NPY_DISABLE_CPU_FEATURES": "X86_V3 X86_V4 AVX512_ICL AVX512_SPR",
    "OPENBLAS_CORETYPE": "Nehalem",
    "GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX,-AVX2,-FMA,-FMA4,-AVX512F",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "PYTHONHASHSEED": "0",
}

_OPTIM = {"lr": 3e-3, "batch_size": 64, "warmup": 0.1, "decay": "linear", "precision": "float32"}
_COMMON = {
    "site": "blocks.1.hook_resid_post",
    "epochs": 2,
    "log_every": 10,
    "checkpoint_minutes": 0,
    "lm": {"dtype": "float32", "batch_size": 8},
}
_DEAD = {"dead_after_tokens": 512}
_FLAT = {**_DEAD, "layer_sizes": [256], "k_per_layer": [6]}
_AUX = {"aux": {"k": 16}}
_TREE = {"architecture": "tree", "layer_sizes": [24, 96, 160], "k_per_layer": [4, 2, 2]}
_HSAE = {"architecture": "hsae", **_DEAD, "layer_sizes": [24, 72, 160], "k_per_layer": [4, 5, 6]}
_MATRYOSHKA = {
    "architecture": "matryoshka",
    **_DEAD,
    **_AUX,
    "layer_sizes": [32, 64, 160],
    "k_per_layer": [6],
}


#: The systems, some with two sets of options.
SAES: dict[str, dict[str, Any]] = {
    "tree": {
        **_TREE,
        "aux": {"layers": None, "k": 8},
        "allocation": {**_DEAD, "first": 15, "cap": 45, "root_reset_at": 0.8, "eligible_within_tokens": 1280},
    },
    # The paper's text where it and its authors' code differ, and other options.
    "tree_text": {
        **_TREE,
        "normalize_activations": "dataset_scale",
        "b_dec_init": "raw",
        "aux": {"layers": [0, 2], "coefficient": [0.03, 0.1], "k": 8, "detach": True, "bias": False, "rescale": True},
        "allocation": {
            **_DEAD, "first": 15, "growth": "add", "capacity": "per_instance", "eligibility": "rate",
            "eligible_within_tokens": 1280, "count": "living", "parents": "previous", "min_root_share": 0.1,
        },
    },
    # What the paper does not have: one set closed under parents, parents from data, dead features that start anew.
    "tree_earned": {
        **_TREE,
        "selection": "closed", "budget": "batch", "layer_weights": 0.1, "threshold": {"start": 10, "momentum": 0.9},
        "aux": {"layers": None, "k": 8, "detach": True, "bias": False, "rescale": True},
        "allocation": {
            **_DEAD, "rule": "data", "start": "root", "reinitialize": True, "root_reset_at": 0.5,
            "from_data": {"earned": 0.1, "shuffles": 1, "every": 10, "sample": 32, "window": 256, "min_count": 4},
        },
    },
    # Few parents of many children: with more than eight active siblings, HSAE forms their sum another way.
    "hsae": {
        "architecture": "hsae", **_DEAD, "layer_sizes": [3, 60, 200], "k_per_layer": [2, 24, 8],
        "hierarchy": {"period": 30},
    },
    "hsae_conditional": {
        "architecture": "hsae", **_DEAD, "layer_sizes": [24, 72, 160], "k_per_layer": [4, 5, 6], "perturbation": 0.2,
        "hierarchy": {"period": 30, "similarity": "conditional", "momentum": 0.95, "max_children": 4},
    },
    "expert_hsae": {
        "architecture": "expert_hsae", **_DEAD, **_AUX, "layer_sizes": [128, 512], "k_per_layer": [3, 3], "subspace": 2,
    },
    "topk": {"architecture": "topk", **_FLAT, **_AUX, "encoder_bias": True},
    "batchtopk": {"architecture": "batchtopk", **_FLAT, **_AUX},
    "matryoshka": {**_MATRYOSHKA, "prefix_weights": "mean_with_bias"},
    "matryoshka_batch": {**_MATRYOSHKA, "selection": "batch"},
    "jumprelu": {"architecture": "jumprelu", **_FLAT},
    "matching_pursuit": {
        "architecture": "matching_pursuit", **_FLAT, "decoder_bias": True, "residual_tolerance": 1.5,
    },
}  # fmt: skip

#: Which SAEs are trained in one run.
RUNS: dict[str, list[str]] = {
    "tree": ["tree"],
    "forests": ["tree_text", "tree_earned", "hsae", "hsae_conditional"],
    "experts": ["expert_hsae"],
    "flat": ["topk", "batchtopk", "matryoshka", "matryoshka_batch", "jumprelu", "matching_pursuit"],
}

_EVAL = [
    "--measures", "fast", "--tokens", "1600", "--ce-tokens", "512", "--infer-tokens", "2048", "--nulls", "no",
    "--infer.method", "coverage", "--infer.min-score", "0.5", "--infer.min-count", "2",
]  # fmt: skip


def run_of(sae: str) -> str:
    return next(run for run, saes in RUNS.items() if sae in saes)


def make_world(folder: Path, seconds: float | None = None) -> None:
    """A language model, text, and the activations of the one on the other: what all runs read. seconds: at most."""
    _python(["world.py", str(folder)], folder, FIXED, seconds)


def make_all(folder: Path) -> Path:
    """The world, which it returns, and all runs in `folder`: in one process, whose imports take as long as a run."""
    world = folder / "world"
    world.mkdir()
    commands = [command for run in RUNS for command in _commands(run, world, folder, "cpu")]
    _python(["world.py", str(world), json.dumps(commands)], folder, FIXED, None)
    return world


def make_runs(
    runs: Iterable[str],
    world: Path,
    folder: Path,
    *,
    device: str = "cpu",
    fixed: bool = True,
    seconds: float | None = None,
) -> None:
    """Trains, measures and indexes the SAEs of some runs, each in `folder/RUN`, in one process.

    fixed: with the instructions that fix all bits.
    """
    commands = [command for run in runs for command in _commands(run, world, folder, device)]
    _python(["commands.py", json.dumps(commands)], folder, FIXED if fixed else {}, seconds)


def _commands(run: str, world: Path, folder: Path, device: str) -> list[list[str]]:
    names = RUNS[run]
    if len(names) == 1:
        saes: dict[str, Any] = {"sae": SAES[names[0]], "optim": _OPTIM}
    else:
        saes = {"saes": {name: {"sae": SAES[name], "optim": _OPTIM} for name in names}}
    settings = folder / f"{run}.yaml"
    config = {
        **_COMMON,
        **saes,
        "device": device,
        "model": str(world / "model"),
        "data": str(world / "store"),
    }
    settings.write_text(json.dumps(config), encoding="utf-8")  # JSON is YAML
    out, first = str(folder / run), ["--sae", names[0]] if len(names) > 1 else []
    return [
        ["train", "--config", str(settings), "--out", out],
        ["eval", out, *_EVAL],
        ["index", out, "--tokens", "2048", *first],
    ]


def _python(arguments: list[str], folder: Path, variables: dict[str, str], seconds: float | None) -> None:
    spec = importlib.util.find_spec("saeforest")
    assert spec is not None
    assert spec.origin is not None
    environment = {**os.environ, **variables, "PYTHONPATH": str(Path(spec.origin).parents[1])}
    script, *rest = arguments
    command = [sys.executable, str(HERE / script), *rest]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=seconds
    )
    if done.returncode:
        raise RuntimeError(f"{script} {rest} ended with {done.returncode}:\n{done.stderr}")
