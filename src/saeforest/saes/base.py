"""The base class of every trained sparse autoencoder: weights, a normalizer, `encode` and `decode`.

`encode` and `decode` are differentiable with respect to activations and weights: the selection of features is treated
as fixed, and the values of the selected features carry gradients. Use `torch.no_grad` where none are needed.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
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

_blank: ContextVar[bool] = ContextVar("blank", default=False)


@contextmanager
def blank_weights() -> Iterator[None]:
    """Inside the `with` block, encoder and decoder of a new SAE have arbitrary values: to be overwritten, or cut.

    On a CPU they take no memory until they are written.
    """
    token = _blank.set(True)
    try:
        yield
    finally:
        _blank.reset(token)


@runtime_checkable
class SAEConfig(Protocol):
    """The fields that the configuration of every system must have. It is a frozen dataclass in the system's file."""

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
    """The configuration of a system that can be a transcoder: it may reconstruct a target other than its input."""

    @property
    def normalize_target(self) -> Normalization: ...


class SAE(nn.Module, ABC):
    """A sparse autoencoder `x_hat = std * (sum_i f_i d_i + b_dec) + mean`.

    Each row of `encoder [d_sae, d_in]` is the encoder direction e_i of a feature, each row of `decoder [d_sae, d_out]`
    its unit-norm decoder direction d_i. Features are numbered layer by layer. An SAE built with `d_out` is a
    transcoder: it reconstructs a target other than its input, and does not subtract `b_dec` from its input.
    """

    config_class: ClassVar[type]
    """Configuration dataclass of this SAE."""
    title: ClassVar[str]
    """Name of the system in reports and figures."""
    color: ClassVar[str]
    """Color of the system in figures, as #RRGGBB."""
    color_of_two_layers: ClassVar[str] = ""
    """Color for SAEs with two layers, if figures should tell them apart from those with more."""
    marker: ClassVar[str] = "o"
    """Marker of the system in figures, one of matplotlib's."""
    at_most_k: bool = False
    """Whether the number of active features in a layer never exceeds that layer's k."""
    gated: ClassVar[bool] = False
    """Whether a child fires only where its parent fires."""
    has_forest: ClassVar[bool] = True
    """Whether the SAE learns a forest. If not, every feature hangs from the root."""
    tied: ClassVar[bool] = False
    """Whether encoder and decoder are the same matrix."""
    inference_keys: ClassVar[tuple[str, ...]] = (
        "layer_sizes",
        "k_per_layer",
        "normalize_activations",
        "activation_threshold",
    )
    """Settings that a trained SAE needs, saved in its cfg.json. All others concern training, and are in
    RUN/config.yaml."""
    defaulted_keys: ClassVar[tuple[str, ...]] = ()
    """Those of `inference_keys` that cfg.json leaves out where they have their default: options that came later."""
    scaled_keys: ClassVar[tuple[str, ...]] = ("activation_threshold",)
    """Settings that scale in proportion to the activations."""
    scaled_weights: ClassVar[tuple[str, ...]] = ("b_enc", "b_dec")
    """Weights that scale in proportion to the activations."""

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
        # SAELens can load SAEs without a forest, and inverts layer_norm less exactly; see LayerNorm.
        self.normalizer = normalizer_of(config.normalize_activations, exact_inverse=self.has_forest)
        self.target_normalizer = None if d_out is None else _target_normalizer(config)
        self.reconstruction: Reconstruction = Prefixes((0, *accumulate(config.layer_sizes)))

        generator = torch.Generator().manual_seed(seed)
        blank = _blank.get()
        encoder = torch.empty(self.d_sae, d_in) if blank else self._initial_encoder(generator)
        self.encoder = nn.Parameter(encoder)
        self.decoder = nn.Parameter(torch.empty(self.d_sae, self.d_out) if blank else F.normalize(encoder))
        if self.tied:
            self.encoder = self.decoder
        self.b_dec = nn.Parameter(torch.zeros(self.d_out))
        self.b_enc = nn.Parameter(torch.zeros(self.d_sae), requires_grad=config.encoder_bias)
        self.register_buffer("parent", self.initial_parent(generator))
        if self.is_transcoder and not blank:
            directions = torch.randn(self.d_sae, self.d_out, generator=generator)
            self.decoder = nn.Parameter(F.normalize(directions))

    def _initial_encoder(self, generator: torch.Generator) -> Float[Tensor, "d_sae d_in"]:
        return (torch.rand(self.d_sae, self.d_in, generator=generator) * 2 - 1) / math.sqrt(self.d_in)

    def initial_parent(self, generator: torch.Generator) -> Int[Tensor, "d_sae"]:
        """The parents at the start of training: every feature hangs from the root, unless a system overrides this."""
        return torch.full((self.d_sae,), ROOT)

    def extra_repr(self) -> str:
        """What `repr` says of the SAE: its sizes, and what it was trained on."""
        about = self.metadata
        width = {"d_in": self.d_in} | ({"d_out": self.d_out} if self.is_transcoder else {})
        says = {
            **width,
            "d_sae": self.d_sae,
            "layer_sizes": tuple(self.config.layer_sizes),
            "k_per_layer": tuple(self.config.k_per_layer),
        }
        names = {"model_name": "model", "hook_name": "site", "hook_name_out": "target"}
        says |= {name: about[key] for key, name in names.items() if about.get(key)}
        shown = [f"{name}={value!r}" for name, value in says.items()]
        if isinstance(tokens := about.get("tokens"), int):
            shown.append(f"tokens={tokens:_}")
        return ", ".join([*shown, f"device='{self.device}'"])

    # -- the weights, with the usual names and shapes

    @property
    def W_enc(self) -> Float[Tensor, "d_in d_sae"]:
        """The encoder weights `[d_in, d_sae]`, a transposed view of `encoder`."""
        return self.encoder.T

    @property
    def W_dec(self) -> Float[Tensor, "d_sae d_out"]:
        """The decoder weights `[d_sae, d_out]`; each row is the direction of a feature."""
        return self.decoder

    @property
    def forest(self) -> Forest:
        """The forest of the features. If the system learns none, every feature hangs from the root."""
        return Forest(self.parent, self.config.layer_sizes)

    @property
    def is_transcoder(self) -> bool:
        """Whether the SAE reconstructs a target other than its input."""
        return self.target_normalizer is not None

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.encoder.device

    @property
    def dtype(self) -> torch.dtype:
        """The data type of values and reconstructions. In training, encoder and decoder may be kept in fewer bits."""
        return self.b_dec.dtype

    @property
    def cumulative(self) -> bool:
        """Whether layer l is reconstructed from layers 0 to l. If not, every layer is reconstructed by itself."""
        return self.reconstruction.cumulative

    @property
    def starts(self) -> tuple[int, ...]:
        """The first feature of each layer, followed by the number of features."""
        return self.reconstruction.starts

    @property
    def in_reconstruction(self) -> Bool[Tensor, "d_sae"]:
        """Which features `decode` adds up by default: all, or those of the last level if levels are independent."""
        first, end = self.reconstruction.features(self.reconstruction.last)
        ids = torch.arange(self.d_sae, device=self.device)
        return (ids >= first) & (ids < end)

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that are saved, by their names in the file. They are views: copying into them changes the SAE."""
        tensors: dict[str, Tensor] = {"W_dec": self.W_dec, "b_dec": self.b_dec}
        if not self.tied:
            tensors = {"W_enc": self.W_enc, **tensors, "b_enc": self.b_enc}
        if self.has_forest:
            tensors["parent"] = self.parent
        return tensors | self.own_tensors()

    def own_tensors(self) -> dict[str, Tensor]:
        """The tensors that a system saves in addition to those of every system, or in place of one of them."""
        return {}

    @classmethod
    def tensor_shapes(cls, d_in: int, d_sae: int, d_out: int | None = None) -> dict[str, list[int]]:
        """The shapes of the tensors that grow with the dictionary, checked before memory is allocated for them."""
        d_out = d_in if d_out is None else d_out
        shapes = {"W_dec": [d_sae, d_out], "b_dec": [d_out]}
        if not cls.tied:
            shapes = {"W_enc": [d_in, d_sae], "W_dec": [d_sae, d_out], "b_enc": [d_sae], "b_dec": [d_out]}
        return shapes | ({"parent": [d_sae]} if cls.has_forest else {})

    def saelens_keys(self) -> dict[str, Any]:
        """The keys that SAELens requires in cfg.json besides ours, if it supports the architecture."""
        return {}

    # -- inference

    def normalize(self, x: Float[Tensor, "*n d_in"]) -> tuple[Float[Tensor, "*n d_in"], TokenStats]:
        """Normalize activations.

        Returns `x` in the units the SAE works in, and the statistics with which `decode` undoes the normalization.
        """
        u, stats = self.normalizer.apply(x.to(self.dtype))
        return u, stats if self.target_normalizer is None else self.target_normalizer.stats(u)

    def encode(self, x: Float[Tensor, "*n d_in"], *, precision: torch.dtype | None = None) -> SparseCode:
        """The active features of activations `[*n, d_in]`, with any leading shape.

        precision: data type in which features are selected; by default that of the weights, at least float32.
        Raises InputError unless `x` is a tensor of width `d_in` on the SAE's device.
        """
        return self.encode_with_stats(x, precision=precision)[0]

    def encode_with_stats(
        self, x: Float[Tensor, "*n d_in"], *, precision: torch.dtype | None = None
    ) -> tuple[SparseCode, TokenStats]:
        """The same as `encode`, with the normalization statistics that `decode` needs."""
        self._check_input(x)
        u, stats = self.normalize(x)
        precision = precision or torch.promote_types(self.encoder.dtype, torch.float32)
        code = self.encode_normalized(u.reshape(-1, self.d_in), precision)
        return code.reshape(*x.shape[:-1]), stats

    def encode_alone(self, x: Float[Tensor, "*n d_in"]) -> SparseCode:
        """The features that are active in their own right, without those that are active only for others' sake.

        The same as `encode`, unless the system may select a parent because one of its children is strong.
        Raises InputError as `encode` does.
        """
        return self.encode(x)

    @torch.no_grad()
    def detect(self, x: Float[Tensor, "*n d_in"], features: Int[Tensor, "m"]) -> Float[Tensor, "*n m"]:
        """The pre-activation of each of `features` by itself: no gate, no selection, no ReLU.

        It is in the units of the values of a code. Raises InputError as `encode` does.
        """
        self._check_input(x)
        u = self.normalize(x)[0].reshape(-1, self.d_in)
        return self.detect_normalized(u, features).reshape(*x.shape[:-1], len(features))

    def detect_normalized(
        self, u: Float[Tensor, "n d_in"], features: Int[Tensor, "m"]
    ) -> Float[Tensor, "n m"]:
        """The pre-activations of `features` on normalized activations, in at least float32."""
        precision = torch.promote_types(self.encoder.dtype, torch.float32)
        return self.pre_activations(precision).dense(self.centered(u), features)

    def _check_input(self, x: object) -> None:
        if not isinstance(x, Tensor):
            raise InputError(
                f"activations: expected a tensor [..., {self.d_in}], not {type(x).__name__}; torch.as_tensor makes one"
            )
        if x.ndim < 1 or x.shape[-1] != self.d_in:
            raise InputError(
                f"activations of shape {list(x.shape)}: this SAE reads width {self.d_in}, [..., {self.d_in}]"
            )
        if x.device != self.device:
            raise InputError(
                f"activations are on {x.device}, but the SAE is on {self.device}: move one of them with .to()"
            )

    @abstractmethod
    def encode_normalized(self, u: Float[Tensor, "n d_in"], precision: torch.dtype) -> SparseCode:
        """The active features of normalized activations, selected in `precision`."""

    def decode(
        self, code: SparseCode, stats: TokenStats | None = None, layer: int | None = None
    ) -> Float[Tensor, "*n d_out"]:
        """The reconstruction `[*n, d_out]`, in the units of the activations (of the target, for a transcoder).

        layer: reconstruct only up to this layer, or from this level alone if levels are independent (`cumulative`).
        stats: as `encode_with_stats` returns them. Only an SAE that does not normalize each activation by itself (its
            normalizer is a factor, or none) decodes without them.
        Raises InputError if there is no such layer, if an id is no feature, or if `stats` are needed and missing.
        """
        layer = self.reconstruction.last if layer is None else layer
        if not 0 <= layer <= self.reconstruction.last:
            raise InputError(f"layer = {layer}: expected 0 to {self.reconstruction.last}")
        normalizer = self.target_normalizer or self.normalizer
        if stats is None:
            if not isinstance(normalizer, Scale):
                raise InputError(
                    "stats: this SAE normalizes every activation, so decode needs what was taken from each: "
                    "code, stats = sae.encode_with_stats(x); sae.decode(code, stats)"
                )
            stats = normalizer.stats(code.values)
        flat = code.reshape(-1)
        first, end = self.reconstruction.features(layer)
        values = flat.values
        if (first, end) != (0, self.d_sae):
            values = torch.where((flat.ids >= first) & (flat.ids < end), values, 0)
        bias = self.reconstruction.bias(self.b_dec, layer)
        z = sparse_decode(values, flat.ids, self.decoder) + bias
        return normalizer.undo(z.reshape(*code.values.shape[:-1], self.d_out), stats)

    def decode_change(self, change: SparseCode, stats: TokenStats) -> Float[Tensor, "*n d_out"]:
        """What a change of the code, `change`, changes in a reconstruction: `std sum_i change_i d_i`, without bias.

        It counts every feature, also those of levels that `decode` leaves out by default (`in_reconstruction`). Where
        no value changes it is exactly 0.

        stats: as `encode_with_stats` returns them.
        """
        flat = change.reshape(-1)
        z = sparse_decode(flat.values, flat.ids, self.decoder).reshape(*change.values.shape[:-1], self.d_out)
        normalizer = self.target_normalizer or self.normalizer
        return normalizer.undo(z, TokenStats(torch.zeros_like(stats.mean), stats.std))

    def forward(self, x: Float[Tensor, "*n d_in"]) -> Float[Tensor, "*n d_out"]:
        """The reconstruction of `x`, or for a transcoder the prediction of its target, in the data type of `x`."""
        return self.decode(*self.encode_with_stats(x)).to(x.dtype)

    # -- building blocks for the encoders of the systems

    def pre_activations(self, precision: torch.dtype) -> PreActivations:
        """The pre-activations of all features, which are computed for activations from `centered`."""
        bias = self.b_enc if self.config.encoder_bias else None
        return PreActivations(self.encoder, bias, None if self.is_transcoder else self.b_dec, precision)

    def centered(self, u: Float[Tensor, "n d_in"]) -> Float[Tensor, "n d_in"]:
        """Normalized activations minus `b_dec`, whose gradient `PreActivations.exact` adds."""
        return u if self.is_transcoder else u - self.b_dec.detach()

    @torch.no_grad()
    def fold_scale(self) -> None:
        """Fold the factors of the normalizers into the weights, so that the SAE takes activations as they are.

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
            if name in weights:  # a threshold, for one, may depend on an option
                weights[name].div_(out)
        changes |= {key: getattr(self.config, key) / out for key in self.scaled_keys}
        self.config = replace(self.config, **changes)  # pyright: ignore[reportArgumentType]


def _target_normalizer(config: SAEConfig) -> Scale:
    """The normalizer of a transcoder's target. Raises InputError if the system cannot be a transcoder."""
    if not isinstance(config, TranscoderConfig):
        raise InputError(
            f"an SAE of architecture {config.architecture} reconstructs its input only: it cannot be a transcoder"
        )
    return target_normalizer(config.normalize_target)
