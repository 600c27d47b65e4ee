"""The training of a Tree SAE: its losses (Eq. 7 to 9), and what happens to its forest after a step (Eq. 10)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..seeds import seeded
from ..sparse_code import SparseCode, concat_slots
from ..structure.forest import group_by_parent
from .allocator import Allocator
from .auxiliary import auxiliary_loss, reconstructed
from .batch_topk import FollowedThreshold
from .encode import PreActivations
from .normalizer import TokenStats
from .parents_from_data import Seen
from .promote import rearrange
from .reconstruct import Prefixes
from .silence import silence_loss
from .start_anew import Residuals, start_anew
from .training import Event, Setup, Step, Training, scalars
from .tree import TreeSAE


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
        k = sum(sae.config.k_per_layer)
        self.allocator = Allocator(allocation, sae.config.layer_sizes, setup.run, sae.device, k=k)
        self._thresholds = [FollowedThreshold(t, sae.config.threshold, setup.run) for t in sae.thresholds()]

    def forward(self, x: Float[Tensor, "n d_in"], target: Float[Tensor, "n d_out"]) -> Step:
        sae = self.sae
        target = target.to(sae.dtype)
        normalized, stats = sae.normalize(x)
        h, u = sae.pre_activations(self.precision), sae.centered(normalized)
        code, inputs, least = sae.encode_batch(h, u)
        active = code.detach()
        fired = self.fired(active)

        reconstruction, errors = Prefixes(sae.starts).losses(code, sae.decoder, sae.b_dec, target, stats)
        weights = sae.config.aux.weights(len(errors))
        dead = self.dead_after(fired)
        auxiliary = self.auxiliary(list(weights), h, inputs, active, errors, stats, dead) if weights else {}
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
            step.seen = Seen(
                concat_slots(own)[:looks], sae.encode_batch_alone(h, u[:looks], active[:looks], least)
            )
        if sae.config.allocation.reinitialize:
            step.residuals = Residuals(u.detach(), -errors[-1].detach() / stats.std, sae.active(active))
        return step

    def _weighted(self, errors: Float[Tensor, "L"]) -> Float[Tensor, ""]:
        """Eq. 7, with a weight for each layer if they are not all 1."""
        weights = self.sae.config.weights_of_layers()
        return errors.sum() if set(weights) == {1.0} else (errors * errors.new_tensor(weights)).sum()

    def auxiliary(
        self,
        layers: Sequence[int],
        h: PreActivations,
        inputs: Sequence[Float[Tensor, "n d_in"]],
        code: SparseCode,
        errors: Sequence[Float[Tensor, "n d_out"]],
        stats: TokenStats,
        dead: Bool[Tensor, "d_sae"],
    ) -> dict[int, Float[Tensor, ""]]:
        """Eq. 8: the residual is reconstructed from the k largest dead features of a layer whose parents are active.

        inputs: what each layer of the tree reads. errors: of the reconstruction up to each.
        """
        sae, aux = self.sae, self.sae.config.aux
        active, parts = sae.active(code[aux.rows]), {id(u): u[aux.rows] for u in inputs}
        read, chosen = [parts[id(inputs[layer])] for layer in layers], []
        for layer, u in zip(layers, read, strict=True):
            start, end = sae.starts[layer], sae.starts[layer + 1]
            features = group_by_parent(sae.parent, start + dead[start:end].nonzero().flatten())
            chosen.append(sae.gate(h, u, active, features, aux.k))
        found = reconstructed(h, read, chosen, sae.decoder)
        return {
            layer: auxiliary_loss(e_hat, sae.b_dec, errors[layer], stats, aux)
            for layer, e_hat in zip(layers, found, strict=True)
        }

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
        if (promoted := self.allocator.promote(number, sae.parent)) is not None:
            at, event = promoted
            rearrange(sae, self.optimizer, at)
            self.steps_since_fired = self.steps_since_fired[at]
            moved.events.append(event)
        return moved.events

    def _follow_thresholds(self, step: Step, number: int) -> None:
        if step.least is not None:
            for threshold, least in zip(self._thresholds, step.least, strict=True):
                threshold.update(least, number)

    @torch.no_grad()
    def take_from_first_batch(self, x: Float[Tensor, "n d_in"], target: Float[Tensor, "n d_out"]) -> None:
        if self._thresholds:
            self._follow_thresholds(self(x, target), self.run.n_steps)

    @property
    def first_update(self) -> int | None:
        return None if self.sae.config.gate == "none" else next(iter(self.allocator.updates), None)
