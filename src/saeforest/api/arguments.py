"""What arguments of the public functions are checked for, so that a mistake is one line that names the argument."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..activations.reader import all_finite
from ..errors import InputError
from ..schema import shown

Activations = Float[Tensor, "n d"] | np.ndarray


def activations(name: str, x: object, d_in: int | None = None) -> Float[Tensor, "n d"]:
    """Activations that were handed over, on the CPU. Raises InputError naming the argument where they are none."""
    if isinstance(x, np.ndarray):
        if x.dtype.kind != "f":
            raise InputError(f"{name}: array of {x.dtype}: expected floating-point activations [n, d]")
        x = torch.from_numpy(np.ascontiguousarray(x))
    if not isinstance(x, Tensor):
        raise InputError(f"{name}: expected a tensor or NumPy array [n, d], not {a(x)}")
    width = "d" if d_in is None else d_in
    if x.ndim != 2 or not x.numel() or (d_in is not None and x.shape[1] != d_in):
        raise InputError(f"{name}: has shape {list(x.shape)}: expected activations [n, {width}], a row each")
    if not x.is_floating_point():
        raise InputError(f"{name}: tensor of {x.dtype}: expected floating-point activations [n, {width}]")
    x = x.detach().cpu()
    if x.dtype == torch.float64:
        x = x.float()
    if not all_finite(x):
        row = int((~x.isfinite().all(1)).nonzero()[0])
        raise InputError(f"{name}: row {row:,} holds NaN or infinite values; leave such rows out")
    return x


def whole(name: str, value: object, least: int) -> None:
    """Raises InputError naming the argument unless it is a whole number of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InputError(f"{name} = {shown(value)}: expected a whole number, {least} or more")


def near(name: str, known: Iterable[str]) -> str:
    """A hint at the known name that is spelled most like `name`; empty if there is none."""
    found = get_close_matches(name, known, n=1)
    return f"; did you mean {found[0]}?" if found else ""


def a(value: object) -> str:
    """What kind of thing an argument is, for a message."""
    return (
        f"{type(value).__name__} {shown(value)}"
        if isinstance(value, str | int | float)
        else type(value).__name__
    )


@contextmanager
def named_as_arguments() -> Iterator[None]:
    """Within, an InputError names settings as arguments: a configuration's sae.layer_sizes is layer_sizes here."""
    try:
        yield
    except InputError as error:
        message = re.sub(r"\b(?:sae|optim|infer)\.(?=[a-z_]+)", "", str(error))
        if message == str(error):
            raise
        raise InputError(message) from None
