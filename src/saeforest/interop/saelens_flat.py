"""SAELens reads the folders of TopK, JumpReLU and Matching Pursuit SAEs as they are; others it can read in that form.

It knows no BatchTopK or Matryoshka SAE that is done training: one with a threshold is a JumpReLU SAE to it, one that
takes the k largest is a TopK SAE. A forest has no counterpart there; the plug-in (`saelens.py`) loads those.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ..errors import InputError
from ..saes import (
    HSAE,
    SAE,
    BatchTopKSAE,
    JumpReLUConfig,
    JumpReLUSAE,
    MatryoshkaSAE,
    TopKConfig,
    TopKSAE,
    save_sae,
)
from ..saes.normalizer import LayerNorm, Scale
from .exports import Exported, export_folder, write_hierarchy

_DIRECT = ("topk", "jumprelu", "matching_pursuit")


def for_saelens(sae: SAE) -> SAE:
    """The same features and reconstructions as an SAE whose folder SAELens loads.

    Raises InputError for a Tree SAE or HSAE, of which what makes them would be lost, for a transcoder, and for a factor
    on activations that is not folded into the weights: SAELens would compute something else without a word.
    """
    if sae.is_transcoder:
        raise InputError(
            "a transcoder of saeforest has no counterpart in SAELens, which would take it for an SAE of its input; "
            "expected an SAE that reconstructs what it reads"
        )
    if isinstance(sae.normalizer, Scale) and sae.normalizer.factor != 1:
        raise InputError(
            f"an SAE that multiplies activations by {sae.normalizer.factor} has no counterpart in SAELens; fold_scale "
            "first"
        )
    if sae.config.architecture in _DIRECT:
        return sae
    if not isinstance(sae, BatchTopKSAE | MatryoshkaSAE):
        raise InputError(
            f"an SAE of architecture {sae.config.architecture} has no counterpart in SAELens, which knows no forest; "
            f"expected one of {', '.join(_DIRECT)}, batchtopk or matryoshka. After `import saeforest.interop.saelens`, "
            "SAELens loads the folder as it is"
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


def write_saelens(sae: SAE, out: Path, *, force: bool = False) -> Exported:
    """Write an SAE as a folder that SAELens loads without a plug-in; the levels of an HSAE as a folder each.

    Raises InputError for a system of which something would be lost (see `for_saelens`), and if `out` holds anything
    else than an earlier export.
    """
    levels = levels_of(sae) if isinstance(sae, HSAE) else None
    same = [for_saelens(sae)] if levels is None else levels
    about: dict[str, Any] = {"architecture": same[0].config.architecture}
    if isinstance(same[0].normalizer, LayerNorm) and same[0].normalizer.exact_inverse:
        about["loss"] = "in decoding, SAELens leaves out the 1e-5 that is added to an activation's deviation"
    with export_folder(out, "saelens", sae, about, force=force) as folder:
        for i, one in enumerate(same):
            place = folder if levels is None else folder / f"level_{i}"
            saved = folder / "saved"
            save_sae(one, saved)
            place.mkdir(exist_ok=True)
            for file in saved.iterdir():
                file.rename(place / file.name)
            saved.rmdir()
        write_hierarchy(folder, sae.forest)
    return Exported(out, about)


def levels_of(sae: HSAE) -> list[SAE]:
    """The levels of an HSAE, each a JumpReLU SAE with the same features and the same reconstruction."""
    found: list[SAE] = []
    for i in range(sae.n_levels):
        mine = sae.level(i)
        config = JumpReLUConfig(
            (mine.stop - mine.start,),
            (sae.config.k_per_layer[i],),
            normalize_activations=sae.config.normalize_activations,
            activation_threshold=sae.config.activation_threshold,
            encoder_bias=sae.config.encoder_bias,
        )
        level = JumpReLUSAE(config, sae.d_in)
        with torch.no_grad():
            level.encoder.copy_(sae.encoder[mine])
            level.decoder.copy_(sae.decoder[mine])
            level.b_enc.copy_(sae.b_enc[mine])
            level.b_dec.copy_(sae.level_bias(i))
            level.threshold.copy_(sae.threshold[mine])
        level.normalizer = sae.normalizer
        level.metadata = sae.metadata | {"training_architecture": "hsae", "level": i}
        found.append(level.to(sae.device).eval())
    return found
