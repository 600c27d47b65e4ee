"""The Triton kernels: they compute what the plain ones do, and they compile for GPUs where there is none."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed", allow_module_level=True)

ROOT = Path(__file__).parents[2]


def run(*args: str, **variables: str) -> None:
    """Runs Python by itself: Triton decides on its import whether to compile or to interpret."""
    done = subprocess.run(
        [sys.executable, *args],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | variables,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_they_compute_what_the_plain_ones_do() -> None:
    # Without the fixtures of other tests, which import more than the kernels do.
    cases = (
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        "--noconftest",
        "-p",
        "typecheck",
        "tests/triton_cases.py",
    )
    tests = {"PYTHONPATH": os.pathsep.join(["tests", *sys.path])}
    if torch.cuda.is_available():
        run(*cases, **tests)
    else:
        run(*cases, **tests, TRITON_INTERPRET="1")


@pytest.mark.skipif(torch.cuda.is_available(), reason="the test above has compiled them")
def test_they_compile(tmp_path: Path) -> None:
    """The interpreter takes much that the compiler does not."""
    run(__file__, TRITON_INTERPRET="0", TRITON_CACHE_DIR=str(tmp_path))


class Hopper:
    """All that Triton asks a driver in order to compile."""

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)


def compile_all() -> None:
    """Compiles each kernel down to machine code as its wrapper would start it, and starts none."""
    from triton.runtime import driver, jit

    start, kernels = jit.JITFunction.run, set()

    def only_compile(self: Any, *args: Any, **options: Any) -> None:
        kernel = start(self, *args, **(options | {"warmup": True}))
        assert kernel is not None
        assert kernel.asm["cubin"]
        kernels.add(self.__name__)

    driver.set_active(Hopper())  # pyright: ignore[reportArgumentType]
    jit.JITFunction.run = only_compile

    from saeforest.kernels import AdamStep, triton_gpu

    n, d, m = 4, 192, 600
    w, x, values = torch.randn(12, d), torch.randn(n, d), torch.randn(m)
    ids, rows = torch.arange(m) % 2, torch.arange(m) % n
    triton_gpu.weighted_rows(values, ids, torch.tensor([0, m]), w)
    triton_gpu.gather_dot(x, rows, ids, w)
    triton_gpu.scatter_outer(values, rows, ids, x, 12)
    for dtype in (torch.float32, torch.bfloat16):
        triton_gpu.top_positive(torch.randn(2, 20000).to(dtype), 9)
        active, first, children = torch.tensor([[0, -1]] * n), torch.tensor([0, 5]), torch.arange(5)
        triton_gpu.top_children(x, w, active, first, children, 3, dtype)
        for unit_rows in (False, True):
            step = AdamStep(0.1, 0.9, 0.999, 1e-8, 1, unit_rows=unit_rows, project=unit_rows)
            triton_gpu.adam(w, w.clone(), torch.zeros_like(w, dtype=dtype), torch.zeros_like(w), step)
            m, v, last = torch.zeros_like(w, dtype=dtype), torch.zeros_like(w), torch.zeros(12).long()
            triton_gpu.adam_rows(w, torch.arange(n), w[:n].clone(), m, v, last, step)
            triton_gpu.adam(w, w.clone(), m, v, step._replace(shard=(1, 2)))
    code, ids, starts = torch.rand(n, 7), torch.randint(0, 12, (n, 7)), (0, 3, 5, 12)
    column = torch.ones(n, 1)
    errors, _ = triton_gpu.layer_errors(code, ids, starts, w, w[0], x, column, column)
    triton_gpu.layer_gradients(
        errors, torch.ones(3), [None, x, None], column, code, ids, starts, w, padded=False
    )
    assert len(kernels) == 9, kernels


if __name__ == "__main__":
    compile_all()
