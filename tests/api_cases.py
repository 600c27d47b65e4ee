"""What the tests of the public functions share: activations, small settings, and the one line of an error."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import saeforest
from saeforest import InputError

SOURCE = Path(saeforest.__file__).parents[1]
D, N = 8, 1_000
SMALL: dict[str, Any] = {"layer_sizes": (4, 12), "k_per_layer": (2, 1), "steps": 6, "log_every": 2}


def activations(n: int = N, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, D, generator=torch.Generator().manual_seed(seed))


def error(do: Callable[[], object]) -> str:
    """The one line of an InputError."""
    with pytest.raises(InputError) as info:
        do()
    message = str(info.value)
    assert "\n" not in message
    assert "--" not in message
    assert "Traceback" not in message
    return message
