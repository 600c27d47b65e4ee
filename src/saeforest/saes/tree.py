"""Tree SAE (Cao et al., arXiv 2605.07922): features in privilege layers, each under a parent in an earlier layer.

A child fires only where its parent fires (Eq. 6), the features of every layer and all earlier ones must reconstruct
the input by themselves (Eq. 7), and dead children are moved to the parents where they are needed most (Eq. 10,
Algorithms 1 and 2). Where the paper's text and the authors' code differ, an option chooses between them
(docs/spec/tree-sae.md#two-readings). The settings are in `tree_config.py`, the training in `tree_training.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..errors import InputError
from ..kernels import kth_largest
from ..sparse_code import SparseCode, concat_rows
from ..structure.forest import ROOT, ByParent, group_by_parent
from .base import SAE
from .by_layers import Encoded, LayerSelection, encode_by_layers
from .closed import ClosedSelection
from .encode import PreActivations
from .gate import Gate, ParentGate
from .select import top_k
from .tree_config import TreeConfig

# Rows are independent. Handling this many at a time bounds the memory for the children of their active features.
_ROWS = 1 << 14


class TreeSAE(SAE):
    """A Tree SAE: features in privilege layers, where a child can fire only on activations where its parent does.

    `encode` goes through the layers in turn: of the features whose parent is active (or that hang from the root), the
    `k_per_layer[l]` of largest pre-activation are active (Eq. 6). Training sums the reconstruction losses of layers 0
    to l for every l (Eq. 7 to 9), and moves dead children to parents that need them (Eq. 10).

    Options of the configuration select one set for the whole tree (`selection`), from budgets of a batch (`budget`), or
    let a layer read what earlier ones leave over (`reads`); see docs/spec/tree-sae.md#selection.

    Shapes: activations `[..., d_in]`; `encoder` and `decoder` `[d_sae, d_in]`; `parent` `[d_sae]`, -1 for the root; a
    code has sum(k_per_layer) slots, or with `budget="batch"` as many as the fullest activation needs, and then there is
    `threshold` `[d_sae]`. Raises InputError for a transcoder with `reads="residual"`.

    Source: Cao et al., arXiv 2605.07922, section 4.

    Example:
        >>> import torch
        >>> from saeforest.saes import TreeConfig, TreeSAE
        >>> sae = TreeSAE(TreeConfig(layer_sizes=(4, 12), k_per_layer=(2, 1)), d_in=8)
        >>> code = sae.encode(torch.randn(5, 8))
        >>> code.ids.shape
        torch.Size([5, 3])
        >>> sae.forest.layer_sizes
        (4, 12)
    """

    config_class = TreeConfig
    title, color, marker = "Tree SAE", "#D55E00", "o"
    color_of_two_layers = "#E69F00"
    gated = True
    defaulted_keys = ("selection", "budget", "beam", "reads")
    inference_keys = (*SAE.inference_keys, *defaulted_keys)
    scaled_weights = (*SAE.scaled_weights, "threshold")

    config: TreeConfig
    threshold: Tensor | None

    def __init__(self, config: TreeConfig, d_in: int, *, d_out: int | None = None, seed: int = 0) -> None:
        super().__init__(config, d_in, d_out=d_out, seed=seed)
        if config.reads == "residual" and self.is_transcoder:
            raise InputError(
                "sae.reads = residual: a transcoder does not reconstruct what it reads; expected input"
            )
        self.gate: Gate = ParentGate()
        self.at_most_k = config.selection == "layer" and config.budget == "token"
        # For a budget of the batch: the scores that features must exceed at inference, by layer or the same for all; 0
        # until the first update, and in the first layer if layers have budgets of their own.
        self.register_buffer("threshold", torch.zeros(self.d_sae) if config.budget == "batch" else None)
        self._grouped: tuple[Tensor, list[ByParent]] | None = None

    def initial_parent(self, generator: torch.Generator) -> Int[Tensor, "d_sae"]:
        """Parents drawn uniformly from the root and the features that may be parents.

        See docs/spec/tree-sae.md#initialization.
        """
        sizes, allocation = self.config.layer_sizes, self.config.allocation
        parents, start = [], 0
        for i, size in enumerate(sizes):
            first = allocation.first_parent(i, sizes)
            layer = torch.randint(first, start + 1, (size,), generator=generator)
            layer[: allocation.min_root_children(size)] = start
            if self.config.gate == "none" or allocation.start == "root":
                layer[:] = start
            parents.append(torch.where(layer == start, ROOT, layer))
            start += size
        return torch.cat(parents)

    # -- Eq. 6: in each layer keep the features whose parent is active, then the k largest of them, then apply ReLU

    def encode_normalized(self, u: Float[Tensor, "n d_in"], precision: torch.dtype) -> SparseCode:
        return self.encode_centered(self.pre_activations(precision), self.centered(u))

    def encode_centered(self, h: PreActivations, u: Float[Tensor, "n d_in"]) -> SparseCode:
        """The code of activations from which `b_dec` has been subtracted, with gradients."""
        code = concat_rows([self._encode(h, part).code for part in u.split(_ROWS)])
        return code if self.config.reads == "residual" else h.exact(u, code, known=True)

    def encode_alone(self, x: Float[Tensor, "*n d_in"]) -> SparseCode:
        if self.config.selection == "layer":
            return self.encode(x)
        self._check_input(x)
        u = self.centered(self.normalize(x)[0].reshape(-1, self.d_in))
        h = self.pre_activations(torch.promote_types(self.encoder.dtype, torch.float32))
        select = self._closed(batch=False, threshold=self.threshold)
        code = concat_rows([select(h, part, pull=False).code for part in u.split(_ROWS)])
        return code.reshape(*x.shape[:-1])

    def detect_normalized(
        self, u: Float[Tensor, "n d_in"], features: Int[Tensor, "m"]
    ) -> Float[Tensor, "n m"]:
        if self.config.reads == "input":
            return super().detect_normalized(u, features)
        h = self.pre_activations(torch.promote_types(self.encoder.dtype, torch.float32))
        found = u.new_empty(len(u), len(features), dtype=h.precision)
        for i, left in enumerate(self._encode(h, self.centered(u)).inputs):
            mine = (features >= self.starts[i]) & (features < self.starts[i + 1])
            found[:, mine] = h.dense(left, features[mine])
        return found

    def encode_batch(self, h: PreActivations, u: Float[Tensor, "n d_in"]) -> Encoded:
        """The code of a training batch, whose activations may share a budget.

        Gradients do not flow through what the layers before a layer reconstruct.
        """
        if self.config.budget == "token" and self.config.reads == "input":
            return Encoded(self.encode_centered(h, u), [u] * len(self.config.layer_sizes))
        found = self._encode(h, u, training=True)
        if self.config.reads == "residual":
            return found
        return found._replace(code=h.exact(u, found.code, known=True))

    def _encode(self, h: PreActivations, u: Float[Tensor, "n d_in"], *, training: bool = False) -> Encoded:
        """The selected features, with gradients only where layers read a residual."""
        config = self.config
        batch = config.budget == "batch" and training
        threshold = None if training else self.threshold
        if config.selection == "closed":
            return self._closed(batch=batch, threshold=threshold)(h, u)
        thresholds = None if threshold is None else threshold[list(self.starts[:-1])]
        rule = LayerSelection(self.gate, config.k_per_layer, batch, thresholds)
        residual = self.decoder if config.reads == "residual" else None
        floor = config.activation_threshold
        return encode_by_layers(h, u, self._by_parent(), rule, floor, residual, through=not training)

    def thresholds(self) -> list[Float[Tensor, "F"]]:
        """The parts of `threshold` that are one number each: for every layer, or for the whole tree."""
        if self.threshold is None:
            return []
        whole = self.config.selection == "closed"
        return [self.threshold] if whole else list(self.threshold.split(list(self.config.layer_sizes)))

    def own_tensors(self) -> dict[str, Tensor]:
        return {} if self.threshold is None else {"threshold": self.threshold}

    def _closed(self, *, batch: bool, threshold: Tensor | None) -> ClosedSelection:
        config = self.config
        return ClosedSelection(
            self._by_parent(),
            self.parent,
            self.starts,
            sum(config.k_per_layer),
            config.beam,
            config.activation_threshold,
            batch,
            None if threshold is None else threshold[0],
        )

    def active(self, code: SparseCode) -> Int[Tensor, "n k"]:
        """The ids of the active features, -1 in unused slots."""
        return torch.where(code.active(self.config.activation_threshold), code.ids, ROOT)

    @torch.no_grad()
    def own_detectors(self, h: PreActivations, inputs: Sequence[Float[Tensor, "n d_in"]]) -> list[SparseCode]:
        """The children whose own detector is on, whatever their parents do (docs/spec/tree-sae.md#parents-from-data).

        In a layer these are the `2 k` features of largest pre-activation of a token, or as many on average where
        detectors share the batch (`from_data.detectors`). If the tree has one budget, they are those among the sum of
        all `k` largest of the whole tree.

        inputs: what each layer reads.

        Returns a code for every layer but the first.
        """
        every, codes = torch.arange(self.d_sae, device=self.device), []
        layers = every.split(list(self.config.layer_sizes))
        if self.config.selection == "closed":
            found = self._strongest(h, inputs[0], sum(self.config.k_per_layer))
            for start, end in zip(self.starts[1:-1], self.starts[2:], strict=True):
                inside = (found.ids >= start) & (found.ids < end)
                codes.append(found.replace(values=torch.where(inside, found.values, 0)))
        else:
            for u, features, k in zip(inputs[1:], layers[1:], self.config.k_per_layer[1:], strict=True):
                codes.append(self._strongest(h, u, 2 * k, features))
        return [self.above_threshold(code) for code in codes]

    def _strongest(
        self, h: PreActivations, u: Float[Tensor, "n d_in"], k: int, features: Int[Tensor, "m"] | None = None
    ) -> SparseCode:
        """The `k` largest pre-activations of every row, or the `k * n` largest of all rows."""
        if self.config.allocation.from_data.detectors == "token":
            return h.choose(u, lambda dense: top_k(dense, k), features)
        # Few rows have more than this many of the largest.
        found = h.choose(u, lambda dense: top_k(dense, 4 * k + 16), features)
        n = k * len(u)
        if found.values.numel() <= n:
            return found
        bound = kth_largest(found.values, n)
        return found.replace(values=torch.where(found.values >= bound, found.values, 0))

    @torch.no_grad()
    def encode_batch_alone(
        self, h: PreActivations, u: Float[Tensor, "n d_in"], code: SparseCode, least: Tensor | None
    ) -> SparseCode:
        """The features of a training batch that are active without being chosen for a child's sake.

        code: the code of these activations, which is the answer unless the tree has one budget.
        least: the smallest score that a budget of the whole batch selected, as in `Step`.
        """
        if self.config.selection == "closed":
            bound = None if least is None else least.nextafter(torch.zeros_like(least))
            code = self._closed(batch=False, threshold=bound)(h, u, pull=False).code
        return self.above_threshold(code)

    def above_threshold(self, code: SparseCode) -> SparseCode:
        """The same code with a value of 0 for features that do not count as active."""
        return code.replace(values=torch.where(code.active(self.config.activation_threshold), code.values, 0))

    def _by_parent(self) -> list[ByParent]:
        """The features of every layer, grouped by parent. The result is cached until a parent changes."""
        kept = self._grouped
        if kept is None or kept[0].device != self.parent.device or not torch.equal(kept[0], self.parent):
            every = torch.arange(self.d_sae, device=self.parent.device)
            layers = every.split(list(self.config.layer_sizes))
            kept = self._grouped = (
                self.parent.clone(),
                [group_by_parent(self.parent, layer) for layer in layers],
            )
        return kept[1]
