"""SAEs for tools that take codes as dense matrices, and decode without what normalization took from an activation.

`encode` remembers the mean and deviation of each activation, as SAELens does, and `decode` takes those of the latest
`encode`. An SAE that normalizes no activation by itself remembers nothing.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..errors import InputError
from ..saes import SAE
from ..saes.normalizer import Normalizer, Scale, TokenStats

Units = Literal["sae", "activations"]
"""Units of the values of a code: those of the normalized activation, or of the activation itself."""


class DenseSAE(nn.Module):
    """An SAE with dense codes `[*n, d_sae]`, and the names that SAEBench, sae-probes and SAELens' users know.

    units: whether codes are multiplied by the deviation of their activation. Raises InputError if so for a transcoder,
        whose input has another deviation than its target.

    Example:
        >>> import torch
        >>> from saeforest.saes import TopKConfig, TopKSAE
        >>> sae = DenseSAE(TopKSAE(TopKConfig(layer_sizes=(16,), k_per_layer=(3,)), d_in=8))
        >>> sae.decode(sae.encode(torch.randn(5, 8))).shape
        torch.Size([5, 8])
    """

    def __init__(self, sae: SAE, units: Units = "sae") -> None:
        super().__init__()
        if sae.is_transcoder and units == "activations":
            raise InputError(
                "units = 'activations': a transcoder reads other activations than it writes; leave it out"
            )
        self.sae, self.units = sae, units
        self._stats: TokenStats | None = None

    @property
    def W_enc(self) -> Float[Tensor, "d_in d_sae"]:
        return self.sae.W_enc

    @property
    def W_dec(self) -> Float[Tensor, "d_sae d_out"]:
        return self.sae.W_dec

    @property
    def b_enc(self) -> Float[Tensor, "d_sae"]:
        return self.sae.b_enc

    @property
    def b_dec(self) -> Float[Tensor, "d_out"]:
        """The bias of the reconstruction."""
        return self.sae.reconstruction.bias(self.sae.b_dec, self.sae.reconstruction.last)

    @property
    def device(self) -> torch.device:
        return self.sae.device

    @property
    def dtype(self) -> torch.dtype:
        return self.sae.encoder.dtype

    def encode(self, x: Float[Tensor, "*n d_in"]) -> Float[Tensor, "*n d_sae"]:
        """The code of activations; remembers what `decode` needs."""
        code, stats = self.sae.encode_with_stats(x)
        self._stats = None if isinstance(self._normalizer, Scale) else stats
        f = code.dense(self.sae.d_sae)
        return f * stats.std if self.units == "activations" else f

    def decode(self, feature_acts: Float[Tensor, "*n d_sae"]) -> Float[Tensor, "*n d_out"]:
        """The reconstruction of any code, of the activations that were encoded last where they are normalized each.

        Raises InputError if those were not as many.
        """
        stats = self._stats_of(feature_acts)
        f = feature_acts / stats.std if self.units == "activations" else feature_acts
        return self._normalizer.undo(reconstruct(self.sae, f, self.W_dec, self.b_dec), stats)

    def forward(self, x: Float[Tensor, "*n d_in"]) -> Float[Tensor, "*n d_out"]:
        return self.decode(self.encode(x)).to(x.dtype)

    @property
    def _normalizer(self) -> Normalizer:
        return self.sae.target_normalizer or self.sae.normalizer

    def _stats_of(self, f: Float[Tensor, "*n d_sae"]) -> TokenStats:
        if isinstance(self._normalizer, Scale):
            return self._normalizer.stats(f)
        if self._stats is None or self._stats.std.shape[:-1] != f.shape[:-1]:
            raise InputError(
                f"decode: codes of {list(f.shape[:-1])} activations, which are not those of the latest encode; this "
                "SAE normalizes each activation, so encode and decode go together"
            )
        return self._stats


def reconstruct(
    sae: SAE,
    f: Float[Tensor, "*n d_sae"],
    decoder: Float[Tensor, "d_sae d_out"],
    b_dec: Float[Tensor, "d_out"],
) -> Float[Tensor, "*n d_out"]:
    """The reconstruction of a dense code in the units of the SAE: of all features or, if levels are independent, of the
    last level's."""
    first, end = sae.reconstruction.features(sae.reconstruction.last)
    return f[..., first:end].to(decoder.dtype) @ decoder[first:end] + b_dec
