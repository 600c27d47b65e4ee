"""What the other side compares with: no import of saeforest."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

D, F, ROWS, CLOSE = 24, 96, 300, 1e-4
EXPECTED = "expected.pt"


def activations() -> Tensor:
    """Activations of different sizes."""
    rng = torch.Generator().manual_seed(0)
    return torch.randn(ROWS, D, generator=rng) * torch.exp(torch.randn(ROWS, 1, generator=rng)) + 0.1


@torch.no_grad()
def fill(module: torch.nn.Module, scale: float = 0.3) -> None:
    """Random values for all of a module's parameters."""
    rng = torch.Generator().manual_seed(1)
    for parameter in module.parameters():
        size = 1 / D**0.5 if parameter.dim() == 2 else scale
        parameter.copy_(size * torch.randn(parameter.shape, generator=rng))


@torch.no_grad()
def write_expected(
    folder: Path, encode: Callable[[Tensor], Tensor], decode: Callable[[Tensor], Tensor]
) -> None:
    """Write codes and reconstructions of activations whose features stay the same if they change a little."""
    x = activations()
    f = encode(x)
    rng = torch.Generator().manual_seed(2)
    sure = torch.ones(len(x), dtype=torch.bool)
    for _ in range(3):
        nudged = x * (1 + CLOSE * torch.randn(x.shape, generator=rng))
        sure &= ((encode(nudged) > 0) == (f > 0)).all(1)
    assert sure.sum() > ROWS // 3
    tensors = {"x": x[sure], "f": f[sure], "x_hat": decode(f)[sure]}
    torch.save(tensors, folder / EXPECTED)


def differences(
    folder: Path, encode: Callable[[Tensor], Tensor], decode: Callable[[Tensor], Tensor]
) -> list[float]:
    """How far codes and reconstructions are from those that lie beside an SAE, as shares of the largest entry."""
    expected: dict[str, Any] = torch.load(folder / EXPECTED, weights_only=True)
    with torch.no_grad():
        f = encode(expected["x"])
        x_hat = decode(f)
    found = []
    for got, wanted in ((f, expected["f"]), (x_hat, expected["x_hat"])):
        assert got.shape == wanted.shape
        assert wanted.any()
        found.append(float((got.double() - wanted.double()).abs().max() / wanted.double().abs().max()))
    return found
