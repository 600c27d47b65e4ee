"""SAELens reads the folders of TopK, JumpReLU and Matching Pursuit SAEs as they are; others it can read in that form.

It knows no BatchTopK or Matryoshka SAE that is done training: one with a threshold is a JumpReLU SAE to it, one that
takes the k largest is a TopK SAE. Forests and levels have no counterpart there.
"""

from __future__ import annotations

import torch

from ..errors import InputError
from ..saes import SAE, BatchTopKSAE, JumpReLUConfig, JumpReLUSAE, MatryoshkaSAE, TopKConfig, TopKSAE

_DIRECT = ("topk", "jumprelu", "matching_pursuit")


def for_saelens(sae: SAE) -> SAE:
    """The same features and reconstructions as an SAE whose folder SAELens loads.

    Raises InputError for a Tree SAE or HSAE: what makes them would be lost.
    """
    if sae.config.architecture in _DIRECT:
        return sae
    if not isinstance(sae, BatchTopKSAE | MatryoshkaSAE):
        raise InputError(
            f"an SAE of architecture {sae.config.architecture} has no counterpart in SAELens, which knows no forest; "
            f"expected one of {', '.join(_DIRECT)}, batchtopk or matryoshka"
        )
    shared = {
        "layer_sizes": (sae.d_sae,),
        "k_per_layer": sae.config.k_per_layer,
        "normalize_activations": sae.config.normalize_activations,
        "activation_threshold": sae.config.activation_threshold,
        "encoder_bias": sae.config.encoder_bias,
    }
    by_batch = "threshold" in sae.tensors()
    same = _with_weights(sae, JumpReLUConfig(**shared) if by_batch else TopKConfig(**shared))
    same.metadata = sae.metadata | {"training_architecture": sae.config.architecture}
    return same


def _with_weights(sae: SAE, config: JumpReLUConfig | TopKConfig) -> SAE:
    kind = JumpReLUSAE if isinstance(config, JumpReLUConfig) else TopKSAE
    same = kind(config, sae.d_in)  # pyright: ignore[reportArgumentType]
    with torch.no_grad():
        for name, place in same.tensors().items():
            place.copy_(sae.tensors()[name])
    same.normalizer = sae.normalizer
    return same.to(sae.device).eval()
