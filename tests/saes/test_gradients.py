"""`sae(x)` and `sae.encode(x)` are differentiable: against finite differences in float64, for every system.

Which features act is fixed, so the points lie away from where that changes: on either side of each, by far more than
the step of the differences, the same features act.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import gradcheck
from torch.func import functional_call

from sae_cases import small
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

D, N = 6, 2
ONE: dict[str, Any] = {"layer_sizes": (14,), "k_per_layer": (3,)}
CONFIGS: dict[str, SAEConfig] = {
    **{f"{name}, small": small(name, normalize_activations=1.3) for name in SYSTEMS},
    "tree": TreeConfig((4, 5, 5), (2, 2, 2)),
    "tree, a factor": TreeConfig((4, 5, 5), (2, 2, 2), normalize_activations=0.7),
    "tree, closed": TreeConfig((4, 5, 5), (2, 2, 2), selection="closed"),
    "tree, closed by batch": TreeConfig((4, 5, 5), (2, 2, 2), selection="closed", budget="batch"),
    "tree, layers by batch": TreeConfig((4, 5, 5), (2, 2, 2), budget="batch"),
    "tree, residual": TreeConfig((4, 5, 5), (2, 2, 2), reads="residual"),
    "tree, residual by batch": TreeConfig((4, 5, 5), (2, 2, 2), reads="residual", budget="batch"),
    "hsae": HSAEConfig((4, 10), (2, 3), normalize_activations=0.7),
    "hsae, layer norm": HSAEConfig((4, 10), (2, 3), normalize_activations="layer_norm"),
    "expert hsae": ExpertHSAEConfig((4, 12), (2, 2), subspace=2),
    "expert hsae, a factor": ExpertHSAEConfig((4, 12), (2, 2), subspace=3, normalize_activations=0.7),
    "topk": TopKConfig(**ONE, encoder_bias=True),
    "topk, raw": TopKConfig(**ONE, normalize_activations="none"),
    "batchtopk": BatchTopKConfig(**ONE, encoder_bias=True),
    "matryoshka": MatryoshkaConfig((4, 10), (3,)),
    "matryoshka by batch": MatryoshkaConfig((4, 10), (3,), selection="batch"),
    "jumprelu": JumpReLUConfig(**ONE, normalize_activations="layer_norm"),
    "matching pursuit": MatchingPursuitConfig(**ONE, decoder_bias=True),
    "matching pursuit, raw": MatchingPursuitConfig(
        **ONE, normalize_activations="none", residual_tolerance=0.0
    ),
}
TRANSCODERS = ["tree", "tree, closed by batch", "tree, a factor", "topk", "batchtopk", "matryoshka by batch"]


def made(config: SAEConfig, d_out: int | None = None) -> SAE:
    """With an encoder that is not the decoder's transpose, biases and thresholds that matter, and a forest."""
    if d_out is not None:
        config = type(config)(**(vars(config) | {"normalize_target": 1.7}))
    sae = build(config, D, d_out=d_out, seed=1).double()
    generator = torch.Generator().manual_seed(2)

    def noise(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator, dtype=torch.float64)

    with torch.no_grad():
        sae.decoder.copy_(F.normalize(sae.decoder + 0.5 * noise(sae.decoder)))
        sae.b_dec.copy_(0.3 * noise(sae.b_dec))
        sae.b_enc.copy_(0.1 * noise(sae.b_enc) * config.encoder_bias)
        for name, tensor in sae.state_dict().items():
            if name == "threshold":
                tensor.fill_(0.2)
    return sae


def inputs(sae: SAE) -> Tensor:
    """Activations whose active features stay the same in their neighborhood."""
    generator = torch.Generator().manual_seed(3)
    x = 2 * torch.randn(40 * N, D, generator=generator, dtype=torch.float64) + 0.5
    with torch.no_grad():
        on = [sae.encode(x * (1 + s)).dense(sae.d_sae) > 0 for s in (-1e-3, 0.0, 1e-3)]
    stable = (on[0] == on[1]).all(1) & (on[1] == on[2]).all(1) & (on[1].sum(1) > 1)
    assert stable.sum() >= N
    return x[stable][:N].clone().requires_grad_()


@pytest.mark.parametrize("name", CONFIGS)
def test_gradients_of_the_reconstruction(name: str) -> None:
    sae = made(CONFIGS[name])
    check(sae, inputs(sae))


@pytest.mark.parametrize("name", TRANSCODERS)
@pytest.mark.parametrize("d_out", [D, 4])
def test_gradients_of_a_transcoder(name: str, d_out: int) -> None:
    sae = made(CONFIGS[name], d_out)
    x = inputs(sae)
    assert sae(x).shape == (N, d_out)
    check(sae, x)


def check(sae: SAE, x: Tensor) -> None:
    names = [name for name, weight in sae.named_parameters() if weight.requires_grad]
    weights = [sae.get_parameter(name) for name in names]

    def reconstruct(x: Tensor, *weights: Tensor) -> Tensor:
        return functional_call(sae, dict(zip(names, weights, strict=True)), (x,))

    frozen = [weight.detach() for weight in weights]
    assert gradcheck(lambda x: reconstruct(x, *frozen), (x,), atol=1e-7, rtol=1e-6)
    # Along random directions, for there are many weights.
    assert gradcheck(reconstruct, (x, *weights), atol=1e-7, rtol=1e-6, fast_mode=True)
    sae(x).square().sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0
    # A threshold decides what is active; what is active does not depend on it otherwise.
    moved = {name for name in names if (grad := sae.get_parameter(name).grad) is not None and grad.any()}
    assert moved == set(names) - {"threshold"}


@pytest.mark.parametrize("name", CONFIGS)
def test_gradients_of_the_code(name: str) -> None:
    sae = made(CONFIGS[name])
    x = inputs(sae)
    assert gradcheck(lambda x: sae.encode(x).dense(sae.d_sae), (x,), atol=1e-7, rtol=1e-6)


def test_without_gradients_nothing_is_kept() -> None:
    sae = made(CONFIGS["tree"])
    with torch.no_grad():
        assert sae(inputs(sae)).grad_fn is None
