"""Building the index in one pass over activations, each row once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..activations import ActivationBatch
from ..errors import InputError
from ..memory import Forecast
from ..progress import progress
from ..saes import SAE
from ..structure.directions import RIDGE, Moments, nearness, nearness_memory
from ..structure.forest import Forest
from ..text import Tokens
from .columns import COLUMNS
from .form import CONTEXTS, unused
from .index import About, Index, fingerprint
from .strongest import Strongest, passages

# Number of rows processed at once: bounds the float64 copies, whatever the batch size.
_SLICE = 4096


@torch.no_grad()
def build_index(
    sae: SAE,
    forest: Forest,
    batches: Iterable[ActivationBatch],
    tokens: Tokens,
    *,
    total: int,
    n_contexts: int = CONTEXTS,
    min_count: int = 20,
    begin: Callable[[Counts], None] = lambda counts: None,
) -> Index:
    """Measure what the explorer shows of every feature of `sae` and every edge of `forest`, learned or inferred.

    batches: activations read from `tokens`, each row once.
    total: number of activations, for the progress bar.
    n_contexts: number of strongest activations to keep for each feature.
    min_count: minimum number of tokens that a feature must fire on to get a direction.
    begin: called with the counts before the first batch is read; may restore counts of an earlier process.

    Raises InputError if there are no activations.
    """
    unit, passage = passages(tokens)
    device = sae.device
    seen = Counts(sae, forest, Strongest(sae.d_sae, n_contexts, passage, device))
    begin(seen)
    forecast = Forecast("index", "lm.batch_size, or index a smaller SAE")
    with progress("index", total) as advance:
        for batch in batches:
            for x, rows in zip(batch.x.split(_SLICE), batch.rows.split(_SLICE), strict=True):
                seen.add(x.to(device), rows.to(device))
            advance(len(batch))
            # All memory for counts was allocated at the start; directions are computed after the pass.
            forecast.tell(0, seen.directions_memory())
    if seen.moments.n == 0:
        raise InputError("no activations to index: all positions of the text are excluded; give more text")
    # A transcoder's decoder writes at another site, so its encoder is compared with the directions.
    rows = sae.W_enc.T if sae.is_transcoder else sae.W_dec
    near = nearness(seen.moments, seen.n_fired, rows, seen.parent, min_count)
    about = About(
        model=str(sae.metadata.get("model_name", "unknown model")),
        site=_site(sae.metadata),
        n_tokens=seen.moments.n,
        min_count=min_count,
        contexts_from=unit,
        ridge=RIDGE,
        sae=fingerprint(sae, forest),
        rows="encoder" if sae.is_transcoder else "decoder",
        prepend_bos=tokens.prepend_bos,
        columns=tuple(column.about for column in COLUMNS),
    )
    parents = (forest.n_children > 0).nonzero().flatten()
    names = [column.name for column in about.columns]
    measured = seen.measured() | {
        "parents": parents,
        "cos_child": near.cos_child.cpu(),
        "cos_parent": near.cos_parent.cpu(),
        "rank_child": near.rank_child.cpu(),
        "rank_parent": near.rank_parent.cpu(),
    }
    return Index.of_tensors(
        about, tokens, unused(sae.d_sae, n_contexts, names, n_parents=len(parents)) | measured
    )


class Counts:
    """The counts accumulated so far."""

    def __init__(self, sae: SAE, forest: Forest, strongest: Strongest) -> None:
        self.sae, self.strongest = sae, strongest
        self.parent = forest.parent.to(sae.device)
        self.moments = Moments(sae.d_sae, sae.d_in, sae.device)
        self.n_fired = torch.zeros(sae.d_sae, dtype=torch.int64, device=sae.device)
        self.n_with_parent = torch.zeros_like(self.n_fired)
        self.value_sum = torch.zeros(sae.d_sae, dtype=torch.float64, device=sae.device)
        self.value_max = torch.zeros(sae.d_sae, device=sae.device)

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

    def directions_memory(self) -> int:
        """Estimate of the memory, in bytes, for computing directions on the CPU, if twice as many features fire."""
        if self.sae.device.type != "cpu":
            return 0
        n_features = min(2 * int((self.n_fired > 0).sum()), self.sae.d_sae)
        return nearness_memory(n_features, self.sae.d_sae, self.sae.d_in)

    def tensors(self) -> dict[str, Tensor]:
        """The tensors from which `restore` restores the counts."""
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

    def add(self, x: Float[Tensor, "n d_in"], rows: Int[Tensor, "n"]) -> None:
        """Add activations and their rows in the text."""
        code = self.sae.encode(x)
        threshold = self.sae.config.activation_threshold
        active = code.active(threshold)
        feature, value = code.ids[active], code.values[active]
        with_parent = code.ids[code.with_parent(self.parent, threshold)]
        self.n_fired += torch.bincount(feature, minlength=self.sae.d_sae)
        self.n_with_parent += torch.bincount(with_parent, minlength=self.sae.d_sae)
        self.value_sum += torch.bincount(feature, value.double(), minlength=self.sae.d_sae)
        self.value_max.scatter_reduce_(0, feature, value, "amax")
        self.strongest.add(feature, value, rows[:, None].expand_as(active)[active])
        self.moments.add(self.sae.normalize(x)[0], code.ids, active.double())


def _site(metadata: Mapping[str, Any]) -> str:
    """The site that the SAE reads and, for a transcoder, the site that it writes."""
    site = str(metadata.get("hook_name", "unknown site"))
    return f"{site} to {metadata['hook_name_out']}" if "hook_name_out" in metadata else site
