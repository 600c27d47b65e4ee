"""An SAE of every system, with random weights, and activations whose codes no rounding can change."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from saeforest.saes import (
    SAE,
    SYSTEMS,
    BatchTopKConfig,
    ExpertHSAEConfig,
    HSAEConfig,
    JumpReLUConfig,
    MatchingPursuitConfig,
    MatryoshkaConfig,
    SAEConfig,
    TopKConfig,
    TreeConfig,
    build,
)

D_IN = 24
_CLOSE = 1e-4
_SIZES, _K = (8, 24, 64), (3, 3, 3)


def configs() -> dict[str, SAEConfig]:
    """Every system, and those of its options that change how features are chosen."""
    found: dict[str, SAEConfig] = {
        "tree": TreeConfig(_SIZES, _K),
        "tree-closed": TreeConfig(_SIZES, _K, selection="closed"),
        "tree-batch": TreeConfig(_SIZES, _K, budget="batch"),
        "tree-residual": TreeConfig(_SIZES, _K, reads="residual"),
        "hsae": HSAEConfig(_SIZES, _K),
        "expert_hsae": ExpertHSAEConfig((16, 64), (4, 4), subspace=2),
        "topk": TopKConfig((96,), (7,)),
        "topk-bias": TopKConfig((96,), (7,), encoder_bias=True),
        "batchtopk": BatchTopKConfig((96,), (7,)),
        "matryoshka": MatryoshkaConfig(_SIZES, (7,), selection="token"),
        "matryoshka-batch": MatryoshkaConfig(_SIZES, (7,), selection="batch"),
        "jumprelu": JumpReLUConfig((96,), (7,)),
        "matching_pursuit": MatchingPursuitConfig((96,), (7,)),
    }
    assert {config.architecture for config in found.values()} == set(SYSTEMS)
    return found


def every_system(normalize: float | str = "layer_norm") -> dict[str, SAE]:
    """An SAE of each of `configs`, with random weights, thresholds, biases and parents."""
    return {name: random_sae(config, normalize) for name, config in configs().items()}


@torch.no_grad()
def random_sae(config: SAEConfig, normalize: float | str, d_in: int = D_IN) -> SAE:
    """An SAE of a configuration; nothing in it has a value that a new one has."""
    given: Any = config
    sae = build(replace(given, normalize_activations=normalize), d_in, seed=5)
    rng = torch.Generator().manual_seed(11)
    for name, place in sae.tensors().items():
        match name:
            case "b_dec":
                place.copy_(0.3 * torch.randn(place.shape, generator=rng))
            case "b_enc" if sae.config.encoder_bias:
                place.copy_(0.2 * torch.randn(place.shape, generator=rng))
            case "threshold":
                # One number for all where a system has only one; in a tree with budgets, one for each layer.
                own = 0.5 * torch.rand(place.shape, generator=rng)
                place.copy_(own if config.architecture in ("jumprelu", "hsae") else torch.full_like(own, 0.4))
            case _:
                pass
    sae.metadata = {
        "model_name": "gpt2",
        "hook_name": "blocks.5.hook_resid_pre",
        "context_size": 64,
        "prepend_bos": False,
        "dataset_path": "some/text",
    }
    return sae.eval()


@torch.no_grad()
def sure_activations(sae: SAE, n: int = 300) -> Tensor:
    """Activations of different sizes whose features stay the same if all of their entries change a little.

    At least a third of `n` is left.
    """
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(n, sae.d_in, generator=rng) * torch.exp(torch.randn(n, 1, generator=rng)) + 0.1
    wanted = sae.encode(x).dense(sae.d_sae) > 0
    sure = torch.ones(n, dtype=torch.bool)
    doubled = sae.double()
    for _ in range(3):
        nudge = _CLOSE * torch.randn(x.shape, generator=rng, dtype=torch.float64)
        sure &= ((doubled.encode(x.double() * (1 + nudge)).dense(sae.d_sae) > 0) == wanted).all(1)
    sae.float()
    assert sure.sum() >= n // 3, f"{int(sure.sum())} of {n} activations are sure"
    return x[sure]
