"""Which implementation of the kernels serves a tensor.

On a CPU those compiled by Numba, on a GPU those written in Triton, and PyTorch's own operators wherever these are
missing or don't apply. All three are modules with the same functions; `plain.py` says what each does.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from functools import cache
from types import ModuleType

import torch
from torch import Tensor

from ..errors import InputError
from . import plain

#: Set to `plain`, everything runs on PyTorch's own operators.
VARIABLE = "SAEFOREST_KERNELS"
_COMPILED = {"cpu": ("numba", ".compiled"), "cuda": ("triton", ".triton_gpu")}
_DTYPES = {"cpu": (torch.float32, torch.float64), "cuda": (torch.float32,)}


def backend(weight: Tensor) -> ModuleType:
    """The kernels for weights such as this one. Raises InputError where the variable says something unknown."""
    wanted = os.environ.get(VARIABLE, "auto")
    if wanted not in ("auto", "plain"):
        raise InputError(f"{VARIABLE}={wanted}: expected auto or plain")
    if wanted == "plain" or weight.dtype not in _DTYPES.get(weight.device.type, ()):
        return plain
    return compiled(weight.device.type)


@cache
def compiled(device: str) -> ModuleType:
    """The compiled kernels of a kind of device, or the plain ones where their compiler is not installed."""
    compiler, module = _COMPILED[device]
    if importlib.util.find_spec(compiler) is None:
        return plain
    return importlib.import_module(module, __package__)
