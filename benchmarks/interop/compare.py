"""Comparing what two libraries make of the same activations."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

import saeforest
from saeforest.saes import SAE

from .systems import sure_activations

EXPECTED = "expected.pt"
#: Differences up to this are of rounding in float32.
BOUND = 1e-5


@torch.no_grad()
def write_expected(sae: SAE, folder: Path) -> None:
    """Write activations with an SAE's dense codes and reconstructions, for the other side to compare with."""
    x = sure_activations(sae)
    code, stats = sae.encode_with_stats(x)
    tensors = {"x": x, "f": code.dense(sae.d_sae), "x_hat": sae.decode(code, stats)}
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(tensors, folder / EXPECTED)


@torch.no_grad()
def differences(folder: Path) -> tuple[float, float]:
    """How far our codes and reconstructions of the SAE in a folder are from those that lie beside it."""
    expected = torch.load(folder / EXPECTED, weights_only=True)
    sae = saeforest.load(folder)
    code, stats = sae.encode_with_stats(expected["x"])
    return share(code.dense(sae.d_sae), expected["f"]), share(sae.decode(code, stats), expected["x_hat"])


def share(found: Tensor, wanted: Tensor) -> float:
    """The largest difference, as a share of the largest entry."""
    assert found.shape == wanted.shape
    assert wanted.any()
    return float((found.double() - wanted.double()).abs().max() / wanted.double().abs().max())
