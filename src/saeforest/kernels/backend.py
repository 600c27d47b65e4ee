"""The choice of kernels for a tensor.

Numba is used on a CPU, Triton on a GPU, and PyTorch's own operators if these are not installed or not applicable. All
three are modules with the same functions, which are documented in `plain.py`.
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

#: The environment variable that selects the kernels. With `plain`, all of them use PyTorch's own operators.
VARIABLE = "SAEFOREST_KERNELS"
_COMPILED = {"cpu": ("numba", ".compiled"), "cuda": ("triton", ".triton_gpu")}
_DTYPES = {"cpu": (torch.float32, torch.float64), "cuda": (torch.float32,)}


def backend(x: Tensor, weight: Tensor | None = None) -> ModuleType:
    """The module of kernels for the device and data type of `x`.

    weight: a matrix in the same data type. On a CPU it may be in bfloat16, of which PyTorch's operators make a copy in
        that of `x`, and the compiled kernels do not.

    Raises InputError if SAEFOREST_KERNELS has an unknown value.
    """
    wanted = os.environ.get(VARIABLE, "auto")
    if wanted not in ("auto", "plain"):
        raise InputError(f"{VARIABLE}={wanted}: expected auto or plain")
    device = x.device.type
    if wanted == "plain" or x.dtype not in _DTYPES.get(device, ()):
        return plain
    halved = device == "cpu" and (x.dtype, getattr(weight, "dtype", None)) == (torch.float32, torch.bfloat16)
    return compiled(device) if weight is None or weight.dtype == x.dtype or halved else plain


@cache
def compiled(device: str) -> ModuleType:
    """The compiled kernels for a type of device ("cpu" or "cuda"), or the plain ones if the compiler is missing."""
    compiler, module = _COMPILED[device]
    if importlib.util.find_spec(compiler) is None:
        return plain
    return importlib.import_module(module, __package__)


def shares_children(kernels: ModuleType) -> bool:
    """Whether the pre-activations of children are shared among ranks within the kernel, and not by rows.

    The compiled kernel multiplies all tokens of a parent with its children in tiles. In another tile the same product
    may be summed in another order, so ranks divide the parents, each with all of its tokens.
    """
    return kernels.__name__.endswith(".compiled")
