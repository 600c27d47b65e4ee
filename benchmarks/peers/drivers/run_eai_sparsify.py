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

    torch.set_float32_matmul_precision("high")  # as its trainer does
    optimizer = torch.optim.Adam(sae.parameters())
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
        with autocast():
            out = sae(x, total_variance=variance)
        fired[out.latent_indices.flatten()] = True
        loss = float(out.fvu.detach())
        out.fvu.backward()
        sae.remove_gradient_parallel_to_decoder_directions()
        optimizer.step()
        optimizer.zero_grad()
        silent.add_(len(x))
        silent[fired] = 0
        fired.zero_()
        return loss

    return step
