"""The direct effects of features on logits."""

from __future__ import annotations

import re

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ...lm import LanguageModel
from ...progress import progress
from ...saes import SAE
from ..index import Logits
from ..index.form import LOGITS

# Sites whose activations are added to, or are, the residual stream.
_RESIDUAL = re.compile(r"blocks\.\d+\.hook_(resid_pre|resid_mid|resid_post|attn_out|mlp_out)")
_NORMS = ("norm", "ln_f", "final_layer_norm", "final_layernorm", "final_norm", "norm_f")
# Logits are computed for blocks of features with the whole vocabulary, of about this many entries.
_ENTRIES = 1 << 23


@torch.no_grad()
def direct_logits(sae: SAE, lm: LanguageModel, site: str) -> Logits | None:
    """The tokens with the largest and smallest logits of every feature.

    Its logits are its decoder row, of unit length, times the linear part of the final norm (its weight; for a
    LayerNorm, after subtracting the mean) and the unembedding.

    site: where the decoder writes. None if that is not the residual stream or the model has no norm that can be found.
    """
    unembedding = lm.model.get_output_embeddings()
    weight = getattr(unembedding, "weight", None)
    if _RESIDUAL.fullmatch(site) is None or not isinstance(weight, Tensor) or weight.shape[1] != sae.d_out:
        return None
    norm = final_norm(lm.model, sae.d_out)
    if norm is None:
        return None
    scale, centers = norm
    rows = torch.nn.functional.normalize(sae.W_dec.detach().float())
    if centers:
        rows = rows - rows.mean(1, keepdim=True)
    rows = (rows * scale.to(rows)).to(weight.device)
    n = min(LOGITS, len(weight))
    shape = sae.d_sae, LOGITS
    found = Logits(
        torch.full(shape, -1, dtype=torch.int32),
        torch.full(shape, torch.nan),
        torch.full(shape, -1, dtype=torch.int32),
        torch.full(shape, torch.nan),
    )
    to = weight.float().T
    with progress("logits", sae.d_sae, "features") as advance:
        for block in torch.arange(sae.d_sae).split(max(_ENTRIES // len(weight), 1)):
            logits = (rows[block.to(rows.device)] @ to).cpu()
            for ids, value, largest in ((found.up_id, found.up, True), (found.down_id, found.down, False)):
                top = logits.topk(n, dim=1, largest=largest)
                ids[block, :n], value[block, :n] = top.indices.int(), top.values
            advance(len(block))
    return found


@torch.no_grad()
def final_norm(model: nn.Module, width: int) -> tuple[Float[Tensor, "d"], bool] | None:
    """The factor of each direction of the last norm before the unembedding, and whether the norm subtracts the mean.

    They are found by what the norm does to vectors of mean 0 and variance 1, whatever its class. None if no module has
    one of the usual names.
    """
    blocks = max((len(m) for m in model.modules() if isinstance(m, nn.ModuleList)), default=0)
    within = [name for name, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m) == blocks]
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{path}.") for path in within)
        if name.rsplit(".", 1)[-1] in _NORMS and not inside and sum(p.numel() for p in module.parameters()):
            break
    else:
        return None
    some = next(module.parameters())
    zero = torch.zeros(1, width, dtype=torch.float32, device=some.device)

    def of(vector: Tensor) -> Tensor:
        return module(vector.to(some.dtype))[0].float().cpu()

    rest = of(zero)
    signs = torch.ones_like(zero)
    signs[:, 1::2] = -1
    scale = (of(signs) - rest) * signs[0].cpu()
    if width % 2:  # the mean of the signs is not 0, so that the last entries are off by a little
        weight = getattr(module, "weight", None)
        scale = scale if not isinstance(weight, Tensor) else weight.float().cpu()
    centers = bool((of(torch.ones_like(zero)) - rest).abs().max() < 1e-2 * scale.abs().max())
    return scale, centers
