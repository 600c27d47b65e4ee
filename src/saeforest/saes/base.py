"""What every sparse autoencoder here is once it is trained: weights, a normalizer, `encode` and `decode`.

Everything is differentiable with respect to activations and weights: which features are chosen is fixed, and the
values of those that are chosen carry gradients. Callers that need none work under `torch.no_grad`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import replace
from itertools import accumulate
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ..errors import InputError
from ..kernels import sparse_decode
from ..sparse_code import SparseCode
from ..structure.forest import ROOT, Forest
from .encode import PreActivations
from .normalizer import Normalization, Scale, TokenStats, normalizer_of, target_normalizer
from .reconstruct import Prefixes, Reconstruction


@runtime_checkable
class SAEConfig(Protocol):
    """What the library asks of any system's configuration, a frozen dataclass of its own file."""

    @property
    def architecture(self) -> str: ...
    @property
    def layer_sizes(self) -> tuple[int, ...]: ...
    @property
    def k_per_layer(self) -> tuple[int, ...]: ...
    @property
    def normalize_activations(self) -> Normalization: ...
    @property
    def activation_threshold(self) -> float: ...
    @property
    def encoder_bias(self) -> bool: ...
    @property
    def b_dec_init(self) -> str: ...


@runtime_checkable
class TranscoderConfig(SAEConfig, Protocol):
    """The configuration of a system that may reconstruct a target other than its input."""

    @property
    def normalize_target(self) -> Normalization: ...


class SAE(nn.Module, ABC):
    """A sparse autoencoder `x_hat = std * (sum_i f_i d_i + b_dec) + mean`.

    Rows are features: `encoder [d_sae, d_in]` holds the e_i, `decoder [d_sae, d_out]` the unit-norm d_i. Features are
    numbered layer by layer. Built with `d_out`, it is a transcoder: it reconstructs a target other than its input, in
    the target's space, and takes no bias off its input.
    """

    config_class: ClassVar[type]
    """Configuration dataclass of this SAE."""
    title: ClassVar[str]
    """Its name in reports and figures."""
    color: ClassVar[str]
    """Its color in figures, as #RRGGBB."""
    color_of_two_layers: ClassVar[str] = ""
    """Another shade for SAEs of two layers, where figures tell them apart from those of more."""
    marker: ClassVar[str] = "o"
    """Its marker in figures, one of matplotlib's."""
    at_most_k: bool = False
    """Whether no activation has more active features in a layer than that layer's k."""
    gated: ClassVar[bool] = False
    """Whether a child fires only where its parent does."""
    has_forest: ClassVar[bool] = True
    """Whether it learns a forest; otherwise every feature hangs from the root."""
    tied: ClassVar[bool] = False
    """Whether one dictionary encodes and decodes."""
    inference_keys: ClassVar[tuple[str, ...]] = (
        "layer_sizes",
        "k_per_layer",
        "normalize_activations",
        "activation_threshold",
    )
    """What of a configuration the trained SAE needs; the rest is how it was trained and lives in RUN/config.yaml."""
    scaled_keys: ClassVar[tuple[str, ...]] = ("activation_threshold",)
    """Settings that grow in proportion to the activations."""
    scaled_weights: ClassVar[tuple[str, ...]] = ("b_enc", "b_dec")
    """Weights that grow in proportion to the activations."""

    encoder: nn.Parameter
    decoder: nn.Parameter
    b_dec: nn.Parameter
    b_enc: nn.Parameter
    parent: Tensor

    def __init__(self, config: SAEConfig, d_in: int, *, d_out: int | None = None, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        self.d_in, self.d_out = d_in, d_in if d_out is None else d_out
        self.d_sae = sum(config.layer_sizes)
        self.metadata: dict[str, Any] = {}
        # SAELens, which reads the folders of flat SAEs, inverts layer_norm less exactly; see LayerNorm.
        self.normalizer = normalizer_of(config.normalize_activations, exact_inverse=self.has_forest)
        self.target_normalizer = None if d_out is None else _target_normalizer(config)
        self.reconstruction: Reconstruction = Prefixes((0, *accumulate(config.layer_sizes)))

        generator = torch.Generator().manual_seed(seed)
        encoder = (torch.rand(self.d_sae, d_in, generator=generator) * 2 - 1) / math.sqrt(d_in)
        self.encoder = nn.Parameter(encoder)
        self.decoder = nn.Parameter(F.normalize(encoder))
        if self.tied:
            self.encoder = self.decoder
        self.b_dec = nn.Parameter(torch.zeros(self.d_out))
        self.b_enc = nn.Parameter(torch.zeros(self.d_sae), requires_grad=config.encoder_bias)
        self.register_buffer("parent", self.initial_parent(generator))
        if self.is_transcoder:
            directions = torch.randn(self.d_sae, self.d_out, generator=generator)
            self.decoder = nn.Parameter(F.normalize(directions))

    def initial_parent(self, generator: torch.Generator) -> Int[Tensor, "d_sae"]:
        """Where training starts: every feature hangs from the root, unless a system says otherwise."""
        return torch.full((self.d_sae,), ROOT)

    # -- the weights as the field names and shapes them

    @property
    def W_enc(self) -> Float[Tensor, "d_in d_sae"]:
        return self.encoder.T

    @property
    def W_dec(self) -> Float[Tensor, "d_sae d_out"]:
        return self.decoder

    @property
    def forest(self) -> Forest:
        return Forest(self.parent, self.config.layer_sizes)

    @property
    def is_transcoder(self) -> bool:
        """Whether it reconstructs a target other than its input."""
        return self.target_normalizer is not None

    @property
    def device(self) -> torch.device:
        return self.encoder.device

    @property
    def cumulative(self) -> bool:
        """Whether layer l is reconstructed from layers 0 to l; otherwise every layer stands alone."""
        return self.reconstruction.cumulative

    @property
    def starts(self) -> tuple[int, ...]:
        """The first feature of each layer, and the number of features."""
        return self.reconstruction.starts

    @property
    def in_reconstruction(self) -> Bool[Tensor, "d_sae"]:
        """Which features `decode` adds up by default: of levels that each stand alone, those of the last."""
        first, end = self.reconstruction.features(self.reconstruction.last)
        ids = torch.arange(self.d_sae, device=self.device)
        return (ids >= first) & (ids < end)

    def tensors(self) -> dict[str, Tensor]:
        """What is saved of the SAE, by the names of the file. Views: what is copied into them fills the SAE."""
        tensors: dict[str, Tensor] = {"W_dec": self.W_dec, "b_dec": self.b_dec}
        if not self.tied:
            tensors = {"W_enc": self.W_enc, **tensors, "b_enc": self.b_enc}
        if self.has_forest:
            tensors["parent"] = self.parent
        return tensors | self.own_tensors()

    def own_tensors(self) -> dict[str, Tensor]:
        """What a system saves beside the weights that all have, or instead of one of them."""
        return {}

    @classmethod
    def tensor_shapes(cls, d_in: int, d_sae: int, d_out: int | None = None) -> dict[str, list[int]]:
        """Shapes of the tensors that grow with the dictionary, to be checked before memory is taken for them."""
        d_out = d_in if d_out is None else d_out
        shapes = {"W_dec": [d_sae, d_out], "b_dec": [d_out]}
        if not cls.tied:
            shapes = {"W_enc": [d_in, d_sae], "W_dec": [d_sae, d_out], "b_enc": [d_sae], "b_dec": [d_out]}
        return shapes | ({"parent": [d_sae]} if cls.has_forest else {})

    def saelens_keys(self) -> dict[str, Any]:
        """What SAELens asks of cfg.json beside our own keys, where it knows the architecture."""
        return {}

    # -- inference

    def normalize(self, x: Float[Tensor, "*n d_in"]) -> tuple[Float[Tensor, "*n d_in"], TokenStats]:
        """`x` in the units the SAE works in, and what `decode` takes to come back to those of the reconstruction."""
        u, stats = self.normalizer.apply(x.to(self.encoder.dtype))
        return u, stats if self.target_normalizer is None else self.target_normalizer.stats(u)

    def encode(self, x: Float[Tensor, "*n d_in"], *, precision: torch.dtype | None = None) -> SparseCode:
        """The active features of activations of any leading shape.

        precision: the type in which features are chosen, by default that of the weights and float32 at least.
        Raises ValueError on another width.
        """
        return self.encode_with_stats(x, precision=precision)[0]

    def encode_with_stats(
        self, x: Float[Tensor, "*n d_in"], *, precision: torch.dtype | None = None
    ) -> tuple[SparseCode, TokenStats]:
        """`encode`, with the token statistics that `decode` needs."""
        if x.shape[-1] != self.d_in:
            raise ValueError(f"activations of width {x.shape[-1]}: this SAE reads width {self.d_in}")
        u, stats = self.normalize(x)
        precision = precision or torch.promote_types(self.encoder.dtype, torch.float32)
        code = self.encode_normalized(u.reshape(-1, self.d_in), precision)
        return code.reshape(*x.shape[:-1]), stats

    @abstractmethod
    def encode_normalized(self, u: Float[Tensor, "n d_in"], precision: torch.dtype) -> SparseCode:
        """The active features of normalized activations, chosen in `precision`."""

    def decode(
        self, code: SparseCode, stats: TokenStats, layer: int | None = None
    ) -> Float[Tensor, "*n d_out"]:
        """The reconstruction in the space of activations: the whole, or the one that ends with `layer`."""
        layer = self.reconstruction.last if layer is None else layer
        flat = code.reshape(-1)
        first, end = self.reconstruction.features(layer)
        values = flat.values
        if (first, end) != (0, self.d_sae):
            values = torch.where((flat.ids >= first) & (flat.ids < end), values, 0)
        bias = self.reconstruction.bias(self.b_dec, layer)
        z = sparse_decode(values, flat.ids, self.decoder) + bias
        normalizer = self.target_normalizer or self.normalizer
        return normalizer.undo(z.reshape(*code.values.shape[:-1], self.d_out), stats)

    def forward(self, x: Float[Tensor, "*n d_in"]) -> Float[Tensor, "*n d_out"]:
        """The reconstruction of `x`, in the space of `x`; of a transcoder, its prediction of the target."""
        return self.decode(*self.encode_with_stats(x)).to(x.dtype)

    # -- what the systems build their encoders from

    def pre_activations(self, precision: torch.dtype) -> PreActivations:
        bias = self.b_enc if self.config.encoder_bias else None
        return PreActivations(self.encoder, bias, None if self.is_transcoder else self.b_dec, precision)

    def centered(self, u: Float[Tensor, "n d_in"]) -> Float[Tensor, "n d_in"]:
        """Normalized activations less `b_dec`, whose gradient `PreActivations.exact` takes care of."""
        return u if self.is_transcoder else u - self.b_dec.detach()

    @torch.no_grad()
    def fold_scale(self) -> None:
        """Folds factors of the normalizers into the weights, so that the SAE reads and writes plain activations.

        With x = u / s, the features of x are those of u divided by s.
        """
        scale = 1.0
        changes: dict[str, Any] = {}
        if isinstance(self.normalizer, Scale):
            scale, self.normalizer, changes["normalize_activations"] = self.normalizer.factor, Scale(), "none"
        out = scale
        if self.target_normalizer is not None:
            out, self.target_normalizer, changes["normalize_target"] = (
                self.target_normalizer.factor,
                Scale(),
                "none",
            )
            self.encoder.mul_(scale / out)
        weights = self.state_dict()
        for name in self.scaled_weights:
            weights[name].div_(out)
        changes |= {key: getattr(self.config, key) / out for key in self.scaled_keys}
        self.config = replace(self.config, **changes)  # pyright: ignore[reportArgumentType]


def _target_normalizer(config: SAEConfig) -> Scale:
    """Raises InputError for a system that is no transcoder."""
    if not isinstance(config, TranscoderConfig):
        raise InputError(f"a {config.architecture} SAE reconstructs its input: it cannot be a transcoder")
    return target_normalizer(config.normalize_target)
