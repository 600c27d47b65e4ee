"""Tree SAE (Cao et al., arXiv 2605.07922): features in privilege layers, each under a parent in an earlier layer.

A child fires only where its parent fires (Eq. 6), the features of every layer and all earlier ones must reconstruct
the input by themselves (Eq. 7), and dead children are moved to the parents where they are needed most (Eq. 10,
Algorithms 1 and 2). Where the paper's text and the authors' code differ, an option chooses between them
(docs/spec/tree-sae.md#two-readings).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..errors import InputError
from ..seeds import seeded
from ..sparse_code import SparseCode, concat_rows, concat_slots
from ..structure.forest import ROOT, ByParent, group_by_parent
from .allocator import Allocator
from .auxiliary import auxiliary_loss
from .base import SAE
from .batch_topk import FollowedThreshold
from .by_layers import Encoded, LayerSelection, encode_by_layers
from .closed import ClosedSelection
from .encode import PreActivations
from .gate import Gate, ParentGate
from .normalizer import TokenStats
from .parents_from_data import Seen
from .reconstruct import Prefixes
from .select import top_k
from .silence import silence_loss
from .start_anew import Residuals, start_anew
from .training import Event, Setup, Step, Training, scalars
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

        In a layer these are the `2 k` features of largest pre-activation. If the tree has one budget, they are those
        among the sum of all `k` largest of the whole tree.

        inputs: what each layer reads.

        Returns a code for every layer but the first.
        """
        every, codes = torch.arange(self.d_sae, device=self.device), []
        layers = every.split(list(self.config.layer_sizes))
        if self.config.selection == "closed":
            found = h.choose(inputs[0], lambda dense: top_k(dense, sum(self.config.k_per_layer)))
            for start, end in zip(self.starts[1:-1], self.starts[2:], strict=True):
                inside = (found.ids >= start) & (found.ids < end)
                codes.append(found.replace(values=torch.where(inside, found.values, 0)))
        else:
            for u, features, k in zip(inputs[1:], layers[1:], self.config.k_per_layer[1:], strict=True):
                codes.append(h.choose(u, lambda dense, k=k: top_k(dense, 2 * k), features))
        return [self.above_threshold(code) for code in codes]

    @torch.no_grad()
    def in_own_right(
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


@dataclass
class TreeStep(Step):
    """A step, and what else is needed of it to move children."""

    seen: Seen | None = None
    residuals: Residuals | None = None


class TreeTraining(Training):
    """Training with Eq. 9: the sum of the layers' cumulative reconstruction losses and the auxiliary losses."""

    sae: TreeSAE

    def __init__(self, sae: TreeSAE, setup: Setup) -> None:
        allocation = sae.config.allocation
        super().__init__(sae, setup, dead_after_tokens=allocation.dead_after_tokens)
        self._seed = setup.seed
        slots = 2 * sum(sae.config.k_per_layer)
        self.allocator = Allocator(allocation, sae.config.layer_sizes, setup.run, sae.device, slots=slots)
        self._thresholds = [FollowedThreshold(t, sae.config.threshold, setup.run) for t in sae.thresholds()]

    def forward(self, x: Float[Tensor, "n d_in"], target: Float[Tensor, "n d_out"]) -> Step:
        sae = self.sae
        target = target.to(sae.encoder.dtype)
        normalized, stats = sae.normalize(x)
        h, u = sae.pre_activations(self.precision), sae.centered(normalized)
        code, inputs, least = sae.encode_batch(h, u)
        active = code.detach()
        fired = self.fired(active)

        reconstruction, errors = Prefixes(sae.starts).losses(code, sae.decoder, sae.b_dec, target, stats)
        weights = sae.config.aux.weights(len(errors))
        dead = self.dead_after(fired)
        auxiliary = {i: self._auxiliary(i, h, inputs[i], active, -errors[i], stats, dead) for i in weights}
        loss = self._weighted(reconstruction)
        for layer, weight in weights.items():
            loss = loss + weight * auxiliary[layer]
        terms: dict[str, list[Tensor | None]] = {
            "reconstruction": scalars(reconstruction),
            "auxiliary": [auxiliary[i].detach() if i in auxiliary else None for i in range(len(errors))],
        }
        looks = 0 if sae.config.gate == "none" else self.allocator.looks(self.done + 1)  # nothing moves then
        n = sae.config.allocation.from_data.sample if sae.config.silence else looks
        part = [u[:n] for u in inputs]
        own = sae.own_detectors(h, part) if n and len(part) > 1 else []
        if sae.config.silence and own:
            silence = silence_loss(h, part, own, sae.active(active[:n]), sae.parent)
            loss, terms["silence"] = loss + sae.config.silence * silence, scalars([silence])

        step = TreeStep(loss, terms, active, target + errors[-1].detach(), fired, len(x), least=least)
        if looks and own:
            # The silence loss may look at more tokens than the evidence keeps.
            step.seen = Seen(concat_slots(own)[:looks], sae.in_own_right(h, u[:looks], active[:looks], least))
        if sae.config.allocation.reinitialize:
            step.residuals = Residuals(u.detach(), -errors[-1].detach() / stats.std, sae.active(active))
        return step

    def _weighted(self, errors: Float[Tensor, "L"]) -> Float[Tensor, ""]:
        """Eq. 7, with a weight for each layer if they are not all 1."""
        weights = self.sae.config.weights_of_layers()
        return errors.sum() if set(weights) == {1.0} else (errors * errors.new_tensor(weights)).sum()

    def _auxiliary(
        self,
        layer: int,
        h: PreActivations,
        u: Float[Tensor, "n d_in"],
        code: SparseCode,
        residual: Float[Tensor, "n d_out"],
        stats: TokenStats,
        dead: Bool[Tensor, "d_sae"],
    ) -> Float[Tensor, ""]:
        """Eq. 8: the residual is reconstructed from the k largest dead features of a layer whose parents are active."""
        sae, aux = self.sae, self.sae.config.aux
        start, end = sae.starts[layer], sae.starts[layer + 1]
        features = group_by_parent(sae.parent, start + dead[start:end].nonzero().flatten())
        chosen = h.exact(u, sae.gate(h, u, sae.active(code), features, aux.k))
        return auxiliary_loss(chosen, sae.decoder, sae.b_dec, residual, stats, aux)

    def follow(self, step: Step, number: int) -> list[Event]:
        """Move children to other parents, by their capacity (Eq. 10) or by data, and let dead ones start anew."""
        sae, seen, residuals = self.sae, None, None
        if isinstance(step, TreeStep):
            seen, residuals = step.seen, step.residuals
        self._follow_thresholds(step, number)
        if sae.config.gate == "none":
            return []
        moved = self.allocator.after_step(step, number, sae.parent, self.steps_since_fired, self.dead, seen)
        if residuals is not None and len(moved.dead):
            generator = seeded(self._seed, "start anew", number)
            begun = start_anew(sae, self.optimizer, moved.dead, self.dead, residuals, generator)
            moved.events.append(Event({"event": "started_anew", "step": number, "features": len(begun)}))
        return moved.events

    def _follow_thresholds(self, step: Step, number: int) -> None:
        if step.least is not None:
            for threshold, least in zip(self._thresholds, step.least, strict=True):
                threshold.update(least, number)

    @torch.no_grad()
    def without_steps(self, x: Float[Tensor, "n d_in"], target: Float[Tensor, "n d_out"]) -> None:
        if self._thresholds:
            self._follow_thresholds(self(x, target), self.run.n_steps)

    @property
    def first_update(self) -> int | None:
        return None if self.sae.config.gate == "none" else next(iter(self.allocator.updates), None)
