"""What the machine is and what it can do, measured."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from saeforest.optim import resolve_precision

#: Sides of square matrices, and bytes to copy, large enough that a repeat takes long beside the clock.
_SIDE, _SIDE_CUDA = 2048, 8192
_COPIED, _COPIED_CUDA = 1 << 28, 1 << 30
_REPEATS = 7


@dataclass(frozen=True)
class Machine:
    device: str
    name: str
    """Of the processor or the GPU that runs the cases."""
    threads: int
    flops_per_s: dict[str, float]
    """Of a matrix product, by each type that the hardware multiplies; the best of several."""
    bytes_per_s: float
    """Read and written by a copy; the best of several."""

    def describe(self) -> dict[str, Any]:
        return {
            "device": self.device,
            "cpu": cpu_name(),
            "gpu": torch.cuda.get_device_name() if self.device != "cpu" else None,
            "cores": os.cpu_count(),
            "threads": self.threads,
            "memory_gb": round(_meminfo("MemTotal") / 1e9, 1),
            "torch": torch.__version__,
            "python": platform.python_version(),
            "matmul_gflops_per_s": {t: round(rate / 1e9, 1) for t, rate in self.flops_per_s.items()},
            "copy_gb_per_s": round(self.bytes_per_s / 1e9, 2),
        }


def measured(device: str) -> Machine:
    side, copied = (_SIDE, _COPIED) if device == "cpu" else (_SIDE_CUDA, _COPIED_CUDA)
    rates: dict[str, float] = {}
    # Where products in bfloat16 are emulated, a single one can take minutes, and nothing is compared in it.
    for dtype in ("float32", "bfloat16") if native_bf16(device) else ("float32",):
        a, b = (torch.randn(side, side, device=device).to(getattr(torch, dtype)) for _ in range(2))
        rates[dtype] = 2 * side**3 / _best(device, lambda a=a, b=b: a @ b)
    source = torch.zeros(copied, dtype=torch.uint8, device=device)
    target = torch.ones_like(source)
    moved = 2 * copied / _best(device, lambda: target.copy_(source))
    name = cpu_name() if device == "cpu" else torch.cuda.get_device_name()
    return Machine(device, name, torch.get_num_threads(), rates, moved)


def _best(device: str, work: Callable[[], object]) -> float:
    seconds: list[float] = []
    for _ in range(_REPEATS):
        start = time.perf_counter()
        work()
        if device != "cpu":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


def native_bf16(device: str) -> bool:
    """Whether products in bfloat16 are the hardware's own. Elsewhere they are slower than those in float32."""
    return resolve_precision("auto", torch.device(device)) == torch.bfloat16


def free_bytes(device: str) -> int:
    """Memory that workers can have."""
    return _meminfo("MemAvailable") if device == "cpu" else torch.cuda.mem_get_info()[0]


def _meminfo(key: str) -> int:
    try:
        with open("/proc/meminfo", encoding="utf-8") as file:
            found = [int(line.split()[1]) for line in file if line.startswith(f"{key}:")]
    except OSError:
        found = []
    # Elsewhere than on Linux all of the memory must do.
    return found[0] * 1024 if found else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
