"""The settings of the optimizer, and what is computed from them: the learning rate and the data type."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch

Precision = Literal["auto", "float32", "bfloat16"]


@dataclass(frozen=True)
class OptimConfig:
    """The Adam optimizer and its learning-rate schedule."""

    lr: float = 1e-4
    """Learning rate of Adam."""
    batch_size: int = 5120
    """Number of activations in a training step."""
    beta1: float = 0.9
    """Decay rate of Adam's moving average of the gradient."""
    beta2: float = 0.999
    """Decay rate of Adam's moving average of the squared gradient."""
    eps: float = 6.25e-10
    """Number that Adam adds to the denominator of its step."""
    warmup: float = 0.0
    """Fraction of the run in which the learning rate rises linearly from 0."""
    decay: Literal["none", "linear", "cosine"] = "none"
    """How the learning rate falls to 0 after decay_from."""
    decay_from: float = 0.8
    """Fraction of the run after which the decay begins."""
    precision: Precision = "auto"
    """Data type of the dense pre-activations by which features are selected; weights, values and gradients are always
    float32. auto: bfloat16 if the hardware multiplies it natively."""
    project_gradient: bool = True
    """Remove from the gradient of every decoder row its component along the row, which would only change its norm."""
    state: Literal["float32", "bfloat16", "int8"] = "float32"
    """Data type of Adam's moving averages. bfloat16 halves their memory, int8 quarters it; stochastic rounding keeps
    them unbiased. On a GPU, int8 has no kernel of its own: PyTorch's operators take the steps."""
    weights: Literal["float32", "bfloat16"] = "float32"
    """Data type of the encoder and decoder during training, for the architectures topk and tree. bfloat16 halves their
    memory; stochastic rounding keeps their steps unbiased. The trained SAE is float32 in either case. On a GPU,
    bfloat16 has no kernels of its own: PyTorch's operators are used."""
    rows: Literal["all", "active"] = "all"
    """Rows of the encoder and decoder that a step updates. all: every one, as Adam does; active: those that have a
    gradient, because their feature fired or the auxiliary loss trains it. The others rest, and make up for that when
    they next have one. Time and memory then grow with active features, not with all."""


def learning_rate(config: OptimConfig, step: int, n_steps: int) -> float:
    """The learning rate of step `step`, counted from 1.

    It rises linearly, stays constant, then decays to 0 at the end of the run.
    """
    done = step / n_steps
    rate = config.lr
    if done < config.warmup:
        rate *= done / config.warmup
    if config.decay != "none" and done > config.decay_from:
        part = (done - config.decay_from) / max(1 - config.decay_from, 1e-12)
        rate *= 1 - part if config.decay == "linear" else 0.5 * (1 + math.cos(math.pi * part))
    return rate


def resolve_precision(precision: Precision, device: torch.device) -> torch.dtype:
    """The data type for a setting on a device.

    auto is bfloat16 if the hardware multiplies it natively; elsewhere bfloat16 would be slower than float32.
    """
    if precision == "auto":
        native = (
            torch.cuda.is_bf16_supported()
            if device.type == "cuda"
            else torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        )
        return torch.bfloat16 if native else torch.float32
    return getattr(torch, precision)
