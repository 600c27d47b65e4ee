"""The optimizer's settings, and the numbers that follow from them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch

Precision = Literal["auto", "float32", "bfloat16"]


@dataclass(frozen=True)
class OptimConfig:
    """Adam and its schedule."""

    lr: float = 1e-4
    batch_size: int = 5120
    """Activations in a training step."""
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 6.25e-10
    warmup: float = 0.0
    """Share of the run in which the rate rises from 0."""
    decay: Literal["none", "linear", "cosine"] = "none"
    """How the rate falls to 0 after `decay_from`."""
    decay_from: float = 0.8
    """Share of the run after which the decay sets in."""
    precision: Precision = "auto"
    """Of the dense encode that selects features; weights, values and gradients are float32."""
    project_gradient: bool = True
    """Take from every decoder row's gradient its part along the row, which would only change the row's norm."""
    state: Literal["float32", "bfloat16"] = "float32"
    """Of Adam's moving averages. bfloat16 halves their memory; they are rounded at random, right on average."""


def learning_rate(config: OptimConfig, step: int, n_steps: int) -> float:
    """Of step `step` (counted from 1): linear warm-up, constant, then the decay to 0 at the end of the run."""
    done = step / n_steps
    rate = config.lr
    if done < config.warmup:
        rate *= done / config.warmup
    if config.decay != "none" and done > config.decay_from:
        part = (done - config.decay_from) / max(1 - config.decay_from, 1e-12)
        rate *= 1 - part if config.decay == "linear" else 0.5 * (1 + math.cos(math.pi * part))
    return rate


def resolve_precision(precision: Precision, device: torch.device) -> torch.dtype:
    """auto is bfloat16 where the processor multiplies it natively: elsewhere it would be slower than float32."""
    if precision == "auto":
        native = (
            torch.cuda.is_bf16_supported()
            if device.type == "cuda"
            else torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        )
        return torch.bfloat16 if native else torch.float32
    return getattr(torch, precision)
