"""overcomplete: its `train_sae` over a single batch, which is one step; mean squared error and Adam, not monitored.

Its default of monitoring every batch costs several passes over the dense codes, and prints a line; we leave it out.
A whole run is one `train_sae` with its auxiliary loss of TopK SAEs.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..case import Case
from ..watch import Watch
from .absent import stand_in

stand_in("torchvision", "transforms")  # its environment has none: see environments.py

from overcomplete.sae import TopKSAE, train_sae  # noqa: E402 # pyright: ignore[reportMissingImports]
from overcomplete.sae.losses import top_k_auxiliary_loss  # noqa: E402 # pyright: ignore[reportMissingImports]

#: It has no default; this is the one in its README.
_LR = 5e-4


def mse(x: Tensor, x_hat: Tensor, *_: object) -> Tensor:
    return (x - x_hat).square().mean()


def prepare(case: Case) -> Callable[[Tensor], object]:
    sae = TopKSAE(case.d, nb_concepts=case.width, top_k=case.k, device=case.device)
    if case.task == "encode":
        return torch.no_grad()(sae.eval().encode)
    optimizer = torch.optim.Adam(sae.parameters(), lr=1e-4)
    return lambda x: train_sae(sae, [x], mse, optimizer, nb_epochs=1, monitoring=0, device=case.device)


def train(case: Case, watch: Watch) -> None:
    """Its `train_sae` over all batches once."""
    sae = TopKSAE(case.d, nb_concepts=case.width, top_k=case.k, device=case.device)

    def reconstruct(x: Tensor) -> Tensor:
        sae.eval()
        found = sae(x)[2]
        sae.train()
        return found

    watch.reconstruct = reconstruct
    optimizer = torch.optim.Adam(sae.parameters(), lr=watch.lr or _LR)
    warmup = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / max(watch.warmup, 1), 1.0)
    )
    batches = watch.batches()
    train_sae(
        sae, batches, top_k_auxiliary_loss, optimizer, warmup, nb_epochs=1, monitoring=0, device=case.device
    )
