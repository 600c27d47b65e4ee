"""sparsify: its `SparseCoder` and what its trainer does with it for one batch; the trainer itself wants a model.

Adam, not its default (schedule-free signum), so that all libraries do the same; torch's, since it takes the 8-bit one
only where bitsandbytes is installed. On a GPU its forward casts to bfloat16 by itself; on a CPU we ask for it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from sparsify import SparseCoder, SparseCoderConfig  # pyright: ignore[reportMissingImports]
from torch import Tensor

from ..case import Case
from ..watch import Watch

#: Its trainer has no auxiliary loss unless told; this is the weight in the paper whose loss it is.
_AUXILIARY = 1 / 32


def prepare(case: Case) -> Callable[[Tensor], object]:
    config = SparseCoderConfig(num_latents=case.width, k=case.k)
    sae = SparseCoder(case.d, config, device=case.device, dtype=torch.float32)

    def autocast() -> torch.autocast:
        return torch.autocast(case.device, torch.bfloat16, enabled=case.dtype == "bfloat16")

    if case.task == "encode":

        @torch.no_grad()
        def encode(x: Tensor) -> object:
            with autocast():
                return sae.encode(x)

        return encode

    return stepping(case, sae, torch.optim.Adam(sae.parameters()), autocast)


def stepping(
    case: Case,
    sae: SparseCoder,
    optimizer: torch.optim.Adam,
    autocast: Callable[[], torch.autocast],
    dead_after: int | None = None,
) -> Callable[[Tensor], float]:
    """What its trainer does with a batch; with the auxiliary loss of features that are dead after so many tokens."""
    torch.set_float32_matmul_precision("high")  # as its trainer does
    silent = torch.zeros(case.width, dtype=torch.long, device=case.device)
    fired = torch.zeros(case.width, dtype=torch.bool, device=case.device)
    first = True

    def step(x: Tensor) -> float:
        nonlocal first
        if first:
            sae.b_dec.data = x.mean(0)
            first = False
        sae.set_decoder_norm_to_unit_norm()
        variance = (x - x.mean(0)).pow(2).sum()
        dead = None if dead_after is None else silent > dead_after
        with autocast():
            out = sae(x, dead_mask=dead, total_variance=variance)
        fired[out.latent_indices.flatten()] = True
        loss = float(out.fvu.detach())
        (out.fvu if dead is None else out.fvu + _AUXILIARY * out.auxk_loss).backward()
        sae.remove_gradient_parallel_to_decoder_directions()
        optimizer.step()
        optimizer.zero_grad()
        silent.add_(len(x))
        silent[fired] = 0
        fired.zero_()
        return loss

    return step


def train(case: Case, watch: Watch) -> None:
    """As its trainer, with the learning rate that this gives Adam; the trainer itself wants a model."""
    sae = SparseCoder(
        case.d, SparseCoderConfig(num_latents=case.width, k=case.k), device=case.device, dtype=torch.float32
    )

    def autocast() -> torch.autocast:
        return torch.autocast(case.device, torch.bfloat16, enabled=case.dtype == "bfloat16")

    def reconstruct(x: Tensor) -> Tensor:
        with autocast():
            return sae(x).sae_out

    watch.reconstruct = reconstruct
    optimizer = torch.optim.Adam(sae.parameters(), lr=watch.lr or 2e-4 / (case.width / 2**14) ** 0.5)
    warmup = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / max(watch.warmup, 1), 1.0)
    )
    step = stepping(case, sae, optimizer, autocast, watch.dead_steps * case.batch)
    for x in watch.batches():
        step(x)
        warmup.step()
