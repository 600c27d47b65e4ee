"""What is counted in the pass over activations; it can be kept and restored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor

from ...saes import SAE
from ...spill import WAITING
from ...structure.directions import Moments, nearness_memory
from ...structure.forest import Forest
from ...structure.pairs import kept_memory, sorted_memory
from ...text import Tokens
from ..index.form import CONTEXTS, SAMPLES, WINDOW
from .firings import SHARD_FIRINGS, Firings, Part, lowest
from .planes import points_each
from .strongest import Strongest, passages

#: Number of activations, spread over the text, on which the detectors of children are run without the gate.
DETECTED = 1 << 16
#: Number of firings of which pairs are counted, at most.
PAIR_FIRINGS = 1 << 25
# Entries of blocks of scores, and bytes that an entry takes with what is computed from it.
_BLOCK_ENTRIES, _PER_ENTRY = 1 << 21, 64
# Activations beyond this do not fit into 16 bits.
_LARGEST = 65_504.0
# Bytes of a firing in a shard that is looked up.
_PER_FIRING = 100


class Counts:
    """The counts accumulated so far, and the firings that they were counted from.

    n_contexts: number of strongest activations to keep for each feature.
    """

    def __init__(self, sae: SAE, forest: Forest, tokens: Tokens, n_contexts: int = CONTEXTS) -> None:
        self.sae, self.forest, self.tokens = sae, forest, tokens
        self.contexts_from: Literal["document", "window"]
        self.contexts_from, self.passage = passages(tokens)
        self.strongest = Strongest(sae.d_sae, n_contexts, self.passage, sae.device)
        self.parent = forest.parent.to(sae.device)
        self.moments = Moments(sae.d_sae, sae.d_in, sae.device)
        self.n_fired = torch.zeros(sae.d_sae, dtype=torch.int64, device=sae.device)
        self.n_with_parent = torch.zeros_like(self.n_fired)
        self.value_sum = torch.zeros(sae.d_sae, dtype=torch.float64, device=sae.device)
        self.value_max = torch.zeros(sae.d_sae, device=sae.device)
        self.firings = Firings(sae.d_sae, sae.d_in)
        self._sampled = lowest(tokens.n_tokens, DETECTED)
        self._has_plane = (forest.n_children >= 2).to(sae.device)
        self._n_points = points_each(forest, sae.d_in)

    def add(self, x: Float[Tensor, "n d_in"], rows: Int[Tensor, "n"]) -> None:
        """Add activations and their rows in the text, on the device of the SAE."""
        code = self.sae.encode(x)
        threshold = self.sae.config.activation_threshold
        active = code.active(threshold)
        feature, value = code.ids[active], code.values[active]
        with_parent = code.ids[code.with_parent(self.parent, threshold)]
        u = self.sae.normalize(x)[0]
        self.firings.add(self._part(x, u, rows, active, feature, value))
        self.n_fired += torch.bincount(feature, minlength=self.sae.d_sae)
        self.n_with_parent += torch.bincount(with_parent, minlength=self.sae.d_sae)
        self.value_sum += torch.bincount(feature, value.double(), minlength=self.sae.d_sae)
        self.value_max.scatter_reduce_(0, feature, value, "amax")
        self.strongest.add(feature, value, rows[:, None].expand_as(active)[active])
        self.moments.add(u, code.ids, active.double())

    def _part(
        self,
        x: Float[Tensor, "n d_in"],
        u: Float[Tensor, "n d_in"],
        rows: Int[Tensor, "n"],
        active: Bool[Tensor, "n k"],
        feature: Int64[Tensor, "m"],
        value: Float[Tensor, "m"],
    ) -> Part:
        in_sample = self._sampled[rows.cpu()]
        place = torch.arange(len(rows), device=rows.device)[:, None].expand_as(active)[active]
        first = self._first(feature)
        shown, u_place = place[first].unique(return_inverse=True)
        return Part(
            rows=rows.cpu(),
            width=active.sum(1).int().cpu(),
            ids=feature.int().cpu(),
            values=value.float().cpu(),
            x_row=rows.cpu()[in_sample],
            x=x[in_sample.to(x.device)].cpu(),
            u_feature=feature[first].cpu(),
            u_row=rows[place[first]].cpu(),
            u_place=u_place.cpu(),
            u=u[shown].clamp(-_LARGEST, _LARGEST).half().cpu(),
        )

    def _first(self, feature: Int64[Tensor, "m"]) -> Int64[Tensor, "g"]:
        """Which firings are among the first of a parent whose plane is to be shown."""
        mine = self._has_plane[feature].nonzero().flatten()
        of, order = feature[mine].sort(stable=True)
        rank = torch.arange(len(of), device=of.device) - torch.searchsorted(of, of)
        return mine[order[self.n_fired[of] + rank < self._n_points]].sort().values

    def measured(self) -> dict[str, Tensor]:
        """What was counted, by its names in the index."""
        return {
            "n_fired": self.n_fired.cpu(),
            "n_with_parent": self.n_with_parent.cpu(),
            "value_sum": self.value_sum.cpu(),
            "value_max": self.value_max.cpu(),
            "top_value": self.strongest.value.cpu(),
            "top_row": self.strongest.row.cpu(),
        }

    def afterwards_memory(self, total: int) -> int:
        """Estimate of the memory, in bytes, that the index takes after the pass, if twice as many features fire.

        total: number of activations that will have been counted.
        """
        d_sae, d_in = self.sae.d_sae, self.sae.d_in
        n_features = min(2 * int((self.n_fired > 0).sum()), d_sae)
        directions = nearness_memory(n_features, d_sae, d_in) if self.sae.device.type == "cpu" else 0
        parents = int((self.forest.n_children > 0).sum())
        firings = round(int(self.n_fired.sum()) * total / max(self.moments.n, 1))
        sample = min(total, DETECTED)
        held = 2 * (d_sae + 2 * parents) * (self.strongest.row.shape[1] + SAMPLES) * WINDOW
        pairs, of_sample = min(firings, PAIR_FIRINGS), sample * firings // max(total, 1)
        # The pairs are sorted, and so are those of the sample.
        held += 2 * (kept_memory(pairs) + kept_memory(of_sample))
        held += min(4 * sample * d_in, WAITING) + 12 * of_sample
        return held + max(
            directions,
            _PER_ENTRY * min(_BLOCK_ENTRIES, d_sae**2),
            _PER_FIRING * min(firings, SHARD_FIRINGS),
            sorted_memory(pairs, d_sae) - kept_memory(pairs),
        )

    def tensors(self) -> dict[str, Tensor]:
        """The tensors from which `restore` restores the counts; not the firings."""
        return self._places() | {"n": torch.tensor(self.moments.n)}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore the counts. Raises KeyError or ValueError if the tensors do not fit this SAE."""
        places = self._places()
        if any(
            tensors[name].shape != place.shape or tensors[name].dtype != place.dtype
            for name, place in places.items()
        ):
            raise ValueError("the counts belong to another SAE")
        for name, place in places.items():
            place.copy_(tensors[name])
        self.moments.n = int(tensors["n"])

    def _places(self) -> dict[str, Tensor]:
        return {
            "n_fired": self.n_fired,
            "n_with_parent": self.n_with_parent,
            "value_sum": self.value_sum,
            "value_max": self.value_max,
            "top_value": self.strongest.value,
            "top_row": self.strongest.row,
            "sum": self.moments.sum,
            "product": self.moments.product,
            "fired_sum": self.moments.fired_sum,
        }
