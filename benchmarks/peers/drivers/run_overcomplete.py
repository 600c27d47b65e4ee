"""overcomplete: its `train_sae` over a single batch, which is one step; mean squared error and Adam, not monitored.

Its default of monitoring every batch costs several passes over the dense codes, and prints a line; we leave it out.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..case import Case
from .absent import stand_in

stand_in("torchvision", "transforms")  # its environment has none: see environments.py

from overcomplete.sae import TopKSAE, train_sae  # noqa: E402 # pyright: ignore[reportMissingImports]


def mse(x: Tensor, x_hat: Tensor, *_: object) -> Tensor:
    return (x - x_hat).square().mean()


def prepare(case: Case) -> Callable[[Tensor], object]:
    sae = TopKSAE(case.d, nb_concepts=case.width, top_k=case.k, device=case.device)
    if case.task == "encode":
        return torch.no_grad()(sae.eval().encode)
    optimizer = torch.optim.Adam(sae.parameters(), lr=1e-4)
    return lambda x: train_sae(sae, [x], mse, optimizer, nb_epochs=1, monitoring=0, device=case.device)
