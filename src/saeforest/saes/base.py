"""What every sparse autoencoder here has in common: weights, input normalisation, and the trainer's protocol."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ..errors import UserError
from ..kernels import layer_errors, sparse_decode, sparse_encode
from ..sparse_code import SparseCode, concat_rows
from ..structure.forest import Forest

Normalization = Literal["layer_norm", "none", "dataset_scale"] | float
_STD_EPS = 1e-5
# Rows are independent, so features are selected in slices of so many dense pre-activations: few enough to stay in a
# processor's cache, many enough to keep a GPU busy. Fewer rows than the least would read the weights too often.
DENSE_ENTRIES = 1 << 23
_DENSE_ENTRIES_GPU = 1 << 28
_LEAST_ROWS = 256
#: The papers' schedules are for runs of so many steps (500M tokens of 5,120, or 100M of 1,024); here they are shares.
PAPER_STEPS = 97_657
#: More cannot be numbered by the kernels.
MOST_FEATURES = 2**31 - 1
# After so long a silence a feature is dead: 10M tokens of the papers' 500M, and never in too short a run to tell.
_DEAD_SHARE, _LEAST_DEAD_TOKENS = 1_953 / PAPER_STEPS, 100_000


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


class TokenStats(NamedTuple):
    """What normalisation took from each activation, and decoding gives back: `x = std * u + mean`."""

    mean: Float[Tensor, "*n 1"]
    std: Float[Tensor, "*n 1"]


class TrainingPlan(NamedTuple):
    """What a system must know of its run to scale its schedules."""

    n_steps: int
    batch_size: int

    def steps_for(self, tokens: int) -> int:
        """Whole training steps within `tokens` (10M at 5,120 a step: 1,953)."""
        return max(tokens // self.batch_size, 1)

    def share(self, share: float) -> int:
        """That share of the run's steps, at least one."""
        return max(round(share * self.n_steps), 1)

    def dead_steps(self, tokens: int | None) -> int:
        """Silent steps after which a feature is dead; None: the papers' share of the run.

        The counter is 1 on the step a feature fires: windows of one step would call the living dead.
        """
        if tokens is None:
            return max(2, self.share(_DEAD_SHARE), self.steps_for(_LEAST_DEAD_TOKENS))
        return max(2, self.steps_for(tokens))


@dataclass
class Step:
    """One training forward: `loss` carries the graph, the rest is for the log.

    `terms` holds scalars by layer, None where a layer has none.
    """

    loss: Float[Tensor, ""]
    terms: dict[str, list[float | None]]
    code: SparseCode
    x_hat: Float[Tensor, "n d"]


@dataclass
class Event:
    """What a system did after a step: `log` goes to log.jsonl; `moves` (feature, from, to) to allocations.jsonl."""

    log: dict[str, Any]
    moves: list[tuple[int, int, int]] = field(default_factory=list)


class SAE(nn.Module):
    """A sparse autoencoder `x_hat = std * (sum_i f_i d_i + b_dec) + mean`.

    Rows are features: `encoder [d_sae, d_in]` holds the e_i, `decoder [d_sae, d_in]` the unit-norm d_i. Features are
    numbered layer by layer. Subclasses give `encode_normalized` and, to be trained, `training_step`.
    """

    config_class: ClassVar[type]
    """Of its configuration."""
    title: ClassVar[str]
    """Its name in reports and figures."""
    color: ClassVar[str]
    """Its color in figures, as #RRGGBB."""
    color_of_two_layers: ClassVar[str] = ""
    """Another shade for SAEs of two layers, where figures tell them apart from those of more."""
    marker: ClassVar[str] = "o"
    """Its marker in figures, one of matplotlib's."""
    at_most_k: ClassVar[bool] = False
    """No activation has more active features in a layer than that layer's k."""
    gated: ClassVar[bool] = False
    """A child fires only where its parent does."""
    cumulative: ClassVar[bool] = True
    """Layer l is reconstructed from the features of layers 0 to l; otherwise every layer stands alone."""
    flat: ClassVar[bool] = False
    """It has no forest of its own: every feature hangs from the root."""
    inference_keys: ClassVar[tuple[str, ...]] = (
        "layer_sizes",
        "k_per_layer",
        "normalize_activations",
        "activation_threshold",
    )
    """What of a configuration the trained SAE needs; the rest is how it was trained and lives in RUN/config.yaml."""

    encoder: nn.Parameter
    decoder: nn.Parameter
    b_dec: nn.Parameter
    b_enc: nn.Parameter
    parent: Tensor
    steps_since_fired: Tensor

    def __init__(self, config: SAEConfig, d_in: int, *, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        self.d_in = d_in
        self.d_sae = sum(config.layer_sizes)
        self.seed = seed
        #: whether decoding undoes layer_norm to the last digit. SAELens, which reads the folders of flat SAEs, leaves
        #: out the epsilon that it encodes with; the Tree SAE's authors do not.
        self.exact_inverse = not self.flat
        self.metadata: dict[str, Any] = {}
        #: the dense encode that selects features runs in this type; the selected values are always float32
        self.compute_dtype = torch.float32
        #: a feature that has not fired for so many steps is dead; a system's `prepare` sets it
        self.dead_steps = sys.maxsize
        generator = torch.Generator().manual_seed(seed)
        encoder = (torch.rand(self.d_sae, d_in, generator=generator) * 2 - 1) / math.sqrt(d_in)
        self.encoder = nn.Parameter(encoder)
        self.decoder = nn.Parameter(F.normalize(encoder))
        self.b_dec = nn.Parameter(torch.zeros(d_in))
        self.b_enc = nn.Parameter(torch.zeros(self.d_sae), requires_grad=config.encoder_bias)
        self.register_buffer("parent", self.initial_parent(generator))
        # Counts training steps; 1 on a step in which the feature fires. Only training changes it.
        self.register_buffer("steps_since_fired", torch.zeros(self.d_sae, dtype=torch.int64))

    def initial_parent(self, generator: torch.Generator) -> Int[Tensor, "d_sae"]:
        """Every feature hangs from the root, unless a system says otherwise."""
        return torch.full((self.d_sae,), -1)

    # -- the weights as the field names and shapes them

    @property
    def W_enc(self) -> Float[Tensor, "d_in d_sae"]:
        return self.encoder.T

    @property
    def W_dec(self) -> Float[Tensor, "d_sae d_in"]:
        return self.decoder

    @property
    def forest(self) -> Forest:
        return Forest(self.parent, self.config.layer_sizes)

    @property
    def device(self) -> torch.device:
        return self.encoder.device

    @property
    def in_reconstruction(self) -> Bool[Tensor, "d_sae"]:
        """Which features `decode` adds up by default: of levels that each stand alone, those of the last."""
        first = 0 if self.cumulative else self.d_sae - self.config.layer_sizes[-1]
        return torch.arange(self.d_sae, device=self.device) >= first

    def tensors(self) -> dict[str, Tensor]:
        """What is saved of the SAE, by the names of the file. Views: what is copied into them fills the SAE."""
        tensors = {"W_enc": self.W_enc, "W_dec": self.W_dec, "b_enc": self.b_enc, "b_dec": self.b_dec}
        return tensors if self.flat else tensors | {"parent": self.parent}

    @classmethod
    def tensor_shapes(cls, d_in: int, d_sae: int) -> dict[str, list[int]]:
        """Of the tensors that grow with the dictionary, to be checked before memory is taken for them."""
        shapes = {"W_enc": [d_in, d_sae], "W_dec": [d_sae, d_in], "b_enc": [d_sae], "b_dec": [d_in]}
        return shapes if cls.flat else shapes | {"parent": [d_sae]}

    def saelens_keys(self) -> dict[str, Any]:
        """What SAELens asks of cfg.json beside our own keys, where it knows the architecture."""
        return {}

    # -- inference

    def normalize(self, x: Float[Tensor, "*n d_in"]) -> tuple[Float[Tensor, "*n d_in"], TokenStats]:
        """`x` in the units the SAE works in, and what it takes to come back (SPEC 5.1)."""
        how = self.config.normalize_activations
        x = x.to(self.encoder.dtype)
        if how == "layer_norm":
            mean = x.mean(-1, keepdim=True)
            centred = x - mean
            # Several times faster than Tensor.std; in float16 the sum would overflow.
            wide = centred.to(torch.promote_types(x.dtype, torch.float32))
            variance = wide.square().sum(-1, keepdim=True) / (x.shape[-1] - 1)
            std = variance.sqrt().to(x.dtype) + _STD_EPS
            return centred / std, TokenStats(mean, std)
        if how == "dataset_scale":
            raise ValueError("normalize_activations='dataset_scale' must be resolved to a number before use")
        scale = 1.0 if how == "none" else float(how)
        ones = torch.ones_like(x[..., :1])
        return x * scale, TokenStats(0 * ones, ones / scale)

    def encode(self, x: Float[Tensor, "*n d_in"]) -> SparseCode:
        """The active features of activations of any leading shape. Raises ValueError on another width."""
        return self.encode_with_stats(x)[0]

    @torch.no_grad()
    def encode_with_stats(self, x: Float[Tensor, "*n d_in"]) -> tuple[SparseCode, TokenStats]:
        """`encode`, with the token statistics that `decode` needs."""
        if x.shape[-1] != self.d_in:
            raise ValueError(f"activations of width {x.shape[-1]}: this SAE reads width {self.d_in}")
        u, stats = self.normalize(x)
        code = self.encode_normalized(u.reshape(-1, self.d_in))
        return code.reshape(*x.shape[:-1]), stats

    def encode_normalized(self, u: Float[Tensor, "n d_in"]) -> SparseCode:
        """Features of normalised activations."""
        raise NotImplementedError

    @torch.no_grad()
    def decode(
        self, code: SparseCode, stats: TokenStats, layer: int | None = None
    ) -> Float[Tensor, "*n d_in"]:
        """The reconstruction of activations in their own space: the whole, or the one that ends with `layer`."""
        last = len(self.config.layer_sizes) - 1
        layer = last if layer is None else layer
        flat = code.reshape(-1)
        starts = (0, *accumulate(self.config.layer_sizes))
        values = flat.values
        if layer < last or not self.cumulative:
            first = 0 if self.cumulative else starts[layer]
            values = torch.where((flat.ids >= first) & (flat.ids < starts[layer + 1]), values, 0)
        z = sparse_decode(values, flat.ids, self.decoder) + self.layer_bias(layer)
        inexact = self.config.normalize_activations == "layer_norm" and not self.exact_inverse
        std = stats.std - _STD_EPS if inexact else stats.std
        return z.reshape(*code.values.shape[:-1], self.d_in) * std + stats.mean

    def layer_bias(self, layer: int) -> Float[Tensor, "d_in"]:
        """The decoder's bias in the reconstruction that ends with `layer`."""
        return self.b_dec

    def forward(self, x: Float[Tensor, "*n d_in"]) -> Float[Tensor, "*n d_in"]:
        """The reconstruction of `x`, in the space of `x`."""
        return self.decode(*self.encode_with_stats(x)).to(x.dtype)

    # -- what the systems build their encoders from

    @torch.no_grad()
    def _sliced(
        self,
        u: Float[Tensor, "n d_in"],
        select: Callable[[Float[Tensor, "m F"]], SparseCode],
        features: Int[Tensor, "F"] | None = None,
    ) -> SparseCode:
        """What `select` chooses by the dense pre-activations of all features or the given, some rows at a time."""
        encoder, bias = self.encoder, self.b_enc
        if features is not None:
            encoder, bias = encoder[features], bias[features]
        encoder = encoder.to(self.compute_dtype)
        added = bias.to(self.compute_dtype) if self.config.encoder_bias else None
        entries = _DENSE_ENTRIES_GPU if u.is_cuda else DENSE_ENTRIES
        rows = max(entries // len(encoder), _LEAST_ROWS)
        code = concat_rows([select(_products(part, encoder, added)) for part in u.split(rows)])
        if features is None:
            return code
        return SparseCode(code.values, torch.where(code.values > 0, features[code.ids], 0))

    def _exact(self, u: Float[Tensor, "n d_in"], chosen: SparseCode, *, known: bool = False) -> SparseCode:
        """The chosen features of `u`, `b_dec` taken off, with values in full precision and gradients where wanted.

        `known`: the values are that already.
        """
        h = sparse_encode(
            u, chosen.ids, self.encoder, center=self.b_dec, known=chosen.values if known else None
        )
        if self.config.encoder_bias:
            h = h + F.embedding(chosen.ids, self.b_enc[:, None]).squeeze(-1)
        return SparseCode(torch.where(chosen.values > 0, h.relu(), 0), chosen.ids)

    # -- what their training steps are built from

    def _layer_losses(
        self,
        x: Float[Tensor, "n d_in"],
        code: SparseCode,
        stats: TokenStats,
        starts: tuple[int, ...],
    ) -> tuple[Float[Tensor, "L"], list[Float[Tensor, "n d_in"]]]:
        """Of every layer the error of the reconstruction that ends with it, as a share of the batch's variance.

        And the residuals, reconstruction less `x`.
        """
        squared, errors = layer_errors(code.values, code.ids, self.decoder, self.b_dec, x, *stats, starts)
        return squared / (x.numel() * (x.var() + 1e-8)), errors

    # -- training: what the one loop calls

    def rates(self) -> dict[nn.Parameter, float]:
        """Trained parameters whose learning rate is a multiple of the run's."""
        return {}

    @property
    def unit_rows(self) -> nn.Parameter:
        """The weights whose rows the optimiser keeps at unit norm."""
        return self.decoder

    def prepare(self, plan: TrainingPlan) -> None:
        """Called once before the first step (also of a resumed run)."""

    @torch.no_grad()
    def initialize(self, x: Float[Tensor, "n d_in"]) -> None:
        """Called with the first batch of a fresh run: `b_dec` becomes the geometric median (SPEC 5.1)."""
        raw = self.config.b_dec_init == "raw"
        self.b_dec.copy_(geometric_median(x.to(self.encoder.dtype) if raw else self.normalize(x)[0]))

    def training_step(self, x: Float[Tensor, "n d_in"]) -> Step:
        raise NotImplementedError

    def after_step(self, step: int, loss: float) -> list[Event]:
        """Called after optimiser step `step` (counted from 1)."""
        return []

    @property
    def first_update(self) -> int | None:
        """The first step after which `after_step` does work on a large scale; None where it never does."""
        return None

    @torch.no_grad()
    def finish(self) -> None:
        """Called before saving: the optimiser's last step left the decoder slightly off unit norm.

        A scale of the input is folded into the biases, so that the SAE reads and writes plain activations: with
        x = u / s, the features of x are those of u divided by s.
        """
        self.decoder.copy_(F.normalize(self.decoder))
        scale = self.config.normalize_activations
        if not isinstance(scale, str):
            for tensor in self._in_input_units():
                tensor.div_(scale)
            threshold = self.config.activation_threshold / scale
            self.config = replace(
                self.config,  # pyright: ignore[reportArgumentType]
                normalize_activations="none",
                activation_threshold=threshold,
            )

    def _in_input_units(self) -> list[Tensor]:
        """The weights that grow in proportion to the input."""
        return [self.b_enc, self.b_dec]

    @property
    def dead(self) -> Bool[Tensor, "d_sae"]:
        return self.steps_since_fired >= self.dead_steps

    @torch.no_grad()
    def count_firing(self, code: SparseCode) -> Int[Tensor, "d_sae"]:
        """Updates the dead-feature counters; returns on how many tokens each feature fired."""
        fired = code.fired(self.d_sae, self.config.activation_threshold)
        self.steps_since_fired += 1
        self.steps_since_fired[fired > 0] = 1
        return fired


@torch.no_grad()
def geometric_median(
    x: Float[Tensor, "n d"], iterations: int = 100, tolerance: float = 1e-5
) -> Float[Tensor, "d"]:
    """The point of least summed distance to all rows, by Weiszfeld's iteration."""
    median = x.mean(0)
    for _ in range(iterations):
        weights = 1 / (x - median).norm(dim=1).clamp(min=1e-8)
        moved = weights @ x / weights.sum()
        done = (moved - median).norm() < tolerance
        median = moved
        if done:
            break
    return median


def _products(
    u: Float[Tensor, "n d_in"], encoder: Float[Tensor, "F d_in"], bias: Float[Tensor, "F"] | None
) -> Float[Tensor, "n F"]:
    u = u.to(encoder.dtype)
    return u @ encoder.T if bias is None else torch.addmm(bias, u, encoder.T)


def check_sizes(sizes: tuple[int, ...], k: tuple[int, ...], what: str = "layer {}") -> None:
    """Raises UserError unless every layer has a size of at least its k, and a k of at least 1."""
    if not sizes or min(sizes) < 1:
        raise UserError(
            f"sae.layer_sizes {list(sizes)}: expected at least one layer, each of 1 or more features"
        )
    if sum(sizes) > MOST_FEATURES:
        raise UserError(f"sae.layer_sizes: {sum(sizes):,} features; expected at most {MOST_FEATURES:,}")
    if len(k) != len(sizes):
        raise UserError(
            f"sae.k_per_layer {list(k)} has {len(k)} entries but sae.layer_sizes {list(sizes)} has {len(sizes)}; "
            "give one k for each layer"
        )
    for layer, (size, active) in enumerate(zip(sizes, k, strict=True)):
        if not 1 <= active <= size:
            raise UserError(
                f"sae.k_per_layer[{layer}] = {active}: expected 1 to {size}, the size of {what.format(layer)}; "
                "lower k or enlarge it"
            )


def check_dead_after(tokens: int | None) -> None:
    """Raises UserError for a number of tokens after which nothing can be told dead."""
    if tokens is not None and tokens < 1:
        raise UserError(f"sae.dead_after_tokens = {tokens}: expected 1 or more")


def check_one_layer(architecture: str, sizes: tuple[int, ...]) -> None:
    """Raises UserError where a system without layers is given several."""
    if len(sizes) != 1:
        raise UserError(
            f"sae.layer_sizes {list(sizes)}: a {architecture} SAE has one layer; give one size, such as {sum(sizes)}"
        )
