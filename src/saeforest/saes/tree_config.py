"""The settings of a Tree SAE (`tree.py`)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from ..errors import InputError
from ..schema import shown
from .allocator import AllocationConfig
from .auxiliary import ResidualConfig, check_coefficients
from .batch_topk import ThresholdConfig
from .checks import check_sizes
from .normalizer import Normalization


@dataclass(frozen=True)
class TreeAuxConfig(ResidualConfig):
    """The auxiliary loss (Eq. 8): the dead features of a layer reconstruct the residual of this and earlier layers."""

    layers: tuple[int, ...] | None = (0,)
    """Layers that have an auxiliary loss, counted from 0. None: all."""
    coefficient: float | tuple[float, ...] = 1 / 32
    """Weight of the auxiliary loss: one for all these layers, or one for each of them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        weights = self.coefficient if isinstance(self.coefficient, tuple) else (self.coefficient,)
        check_coefficients(weights, self.coefficient)

    def weights(self, n_layers: int) -> dict[int, float]:
        """The weight of each layer that has an auxiliary loss.

        Raises InputError if there is no such layer, or if the number of weights does not match the number of layers.
        """
        layers = tuple(range(n_layers)) if self.layers is None else self.layers
        for layer in layers:
            if not 0 <= layer < n_layers:
                raise InputError(
                    f"sae.aux.layers names layer {layer}: expected 0 to {n_layers - 1}, the layers of sae.layer_sizes"
                )
        weights = self.coefficient
        if not isinstance(weights, tuple):
            weights = (weights,) * len(layers)
        if len(weights) != len(layers):
            raise InputError(
                f"sae.aux.coefficient {list(weights)}: expected one number, or one for each of the {len(layers)} "
                "layers with an auxiliary loss"
            )
        return {layer: weight for layer, weight in zip(layers, weights, strict=True) if weight}


@dataclass(frozen=True)
class TreeConfig:
    """A Tree SAE and its training. The defaults are the paper's 4-layer SAE at L0 32."""

    layer_sizes: tuple[int, ...] = (1536, 3072, 9216, 10752)
    """Number of features in each layer (the paper's privilege layers)."""
    k_per_layer: tuple[int, ...] = (21, 5, 4, 2)
    """Largest number of active features in each layer, on a token. With selection=closed only their sum counts, and may
    be given as one number for the whole tree."""
    normalize_activations: Normalization = "layer_norm"
    """How activations are normalized. layer_norm: each to mean 0 and standard deviation 1; constant_norm_rescale: each
    to norm sqrt(d_in); dataset_scale: all by one factor that makes their mean norm sqrt(d_in); none; or that factor as
    a number."""
    activation_threshold: float = 1e-3
    """Value above which a feature counts as active."""
    gate: Literal["parent", "none"] = "parent"
    """parent: a child fires only where its parent does (the paper). none, an ablation: every feature hangs from the
    root, so none is gated and none is moved."""
    layer_weights: float | tuple[float, ...] = 1.0
    """Weights of the layers' reconstruction losses (Eq. 7): one for all layers but the last, whose weight is 1, or one
    for each layer. 1: the paper; 0: the loss of the whole reconstruction alone."""
    silence: float = 0.0
    """Weight of a penalty on children whose own detector is on where their parent is silent, on
    allocation.from_data.sample tokens of a batch. 0: none (the paper)."""
    b_dec_init: Literal["normalized", "raw"] = "normalized"
    """Initial b_dec: the geometric median of the first batch, after normalization (normalized) or before it (raw, as
    in the authors' code)."""
    normalize_target: Normalization = "dataset_scale"
    """How the target of a transcoder is normalized: dataset_scale, none, or a factor. Other SAEs ignore it."""
    selection: Literal["layer", "closed"] = "layer"
    """How features are selected. layer: layer by layer, the k of each layer of largest pre-activation among those
    whose parents are active (the paper); closed: the sum of all k over the whole tree at once, as the best set that
    contains every member's parent."""
    budget: Literal["token", "batch"] = "token"
    """Whether the k are those of every token (the paper), or means over the tokens of a batch in training, with a
    threshold at inference. With selection=layer, the first layer keeps a k for every token."""
    beam: float = 2.0
    """With selection=closed: how many features of each layer are candidates, as a multiple of the sum of all k."""
    reads: Literal["input", "residual"] = "input"
    """What a layer encodes: the input (the paper), or what the layers before it leave of it. Only with
    selection=layer."""
    threshold: ThresholdConfig = field(default_factory=ThresholdConfig)
    aux: TreeAuxConfig = field(default_factory=TreeAuxConfig)
    allocation: AllocationConfig = field(default_factory=AllocationConfig)
    architecture: Literal["tree"] = "tree"

    @property
    def encoder_bias(self) -> bool:
        """Always False: a Tree SAE has no encoder bias."""
        return False

    @property
    def starts_without_edges(self) -> bool:
        """Whether training begins without parents, and finds them later."""
        return self.gate == "parent" and self.allocation.start == "root"

    def __post_init__(self) -> None:
        if self.selection == "closed" and len(self.k_per_layer) == 1:
            check_sizes((sum(self.layer_sizes),), self.k_per_layer, "the whole tree")
            check_sizes(self.layer_sizes, (1,) * len(self.layer_sizes))
        else:
            check_sizes(self.layer_sizes, self.k_per_layer)
        self.aux.weights(len(self.layer_sizes))
        weights = self.weights_of_layers()
        if len(weights) != len(self.layer_sizes) or min(weights) < 0 or not any(weights):
            raise InputError(
                f"sae.layer_weights = {shown(self.layer_weights)}: expected one number, or one for each of the "
                f"{len(self.layer_sizes)} layers, 0 or more and not all 0"
            )
        if self.silence < 0:
            raise InputError(f"sae.silence = {self.silence}: expected 0 or more")
        if not 1 <= self.beam < math.inf:
            raise InputError(f"sae.beam = {self.beam}: expected 1 or more")
        if self.reads == "residual" and self.selection == "closed":
            raise InputError(
                "sae.reads = residual: a closed selection looks at all layers at once; expected input, or "
                "sae.selection = layer"
            )

    def weights_of_layers(self) -> tuple[float, ...]:
        """The weight of every layer's reconstruction loss."""
        weights = self.layer_weights
        return weights if isinstance(weights, tuple) else (weights,) * (len(self.layer_sizes) - 1) + (1.0,)
