"""The lines about features, with the keys of Neuronpedia's tables, from the explorer's index."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from ...explore import Explorer
from ...explore.labels.labels import Source
from ...explore.queries.contexts import Context, Contexts, TokenTexts
from ...output import UNKNOWN
from ...saes import SAE
from ...structure.forest import ROOT
from .names import MOST_DESCRIPTION, Names

#: Characters of an explanation that the API takes.
MOST_EXPLANATION = 512
#: The user to whom Neuronpedia's own exports attribute everything.
CREATOR_ID = "clkht01d40000jv08hvalcvly"
# Edge columns that an explanation tells of, with what they are called there.
_TOLD = {"ungated": "coverage without the gate", "s_res": "S_res"}
_CHILDREN = 8
_ALPHABET = "0123456789abcdefghijklmnopqrstuvwxyz"
Part = tuple[float, float, float]
"""A part of a feature's range: its bounds, and the share of the activations in it."""


class Records:
    """The lines about an SAE and its features.

    labels: of features, with their sources. judges: who labeled a feature, if a judge did.
    """

    def __init__(
        self,
        explorer: Explorer,
        sae: SAE,
        names: Names,
        labels: Mapping[int, tuple[str, Source]],
        judges: Mapping[int, str],
        texts: TokenTexts,
    ) -> None:
        self._index, self._forest, self._sae = explorer.index, explorer.forest, sae
        self._names = names
        self._labels, self._judges, self._texts = labels, judges, texts
        self._contexts = Contexts(explorer.index, explorer.forest, texts)
        self._now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        self._decoder = sae.W_dec.detach().cpu().float().numpy()
        self._site = str(sae.metadata.get("hook_name_out") or sae.metadata.get("hook_name") or "")
        n_bins = self._index.histogram.shape[1]
        self._bins = (torch.arange(n_bins) + 0.5) / n_bins

    def headers(self) -> dict[str, dict[str, Any]]:
        """The lines about release, model, source set and source."""
        names, about = self._names, self._sae.metadata
        own = {"creatorId": CREATOR_ID, "createdAt": self._now}
        title = f"{self._sae.title}, {self._sae.d_sae:,} features, {self._site}"[:MOST_DESCRIPTION]
        model_name = str(about.get("model_name", names.model))
        return {
            "release": {
                "name": names.release,
                "description": names.title,
                "descriptionShort": names.title,
                "creatorName": names.creator,
                "creatorNameShort": names.creator,
                "urls": [names.url] if names.url else [],
                "visibility": "PUBLIC",
                **own,
            },
            "model": {
                "id": names.model,
                "instruct": model_name.lower().endswith(("-it", "-instruct")),
                "displayNameShort": names.model,
                "displayName": names.model,
                "owner": "",
                "visibility": "PUBLIC",
                "inferenceEnabled": False,
                "updatedAt": self._now,
                **own,
            },
            "sourceset": {
                "modelId": names.model,
                "name": names.set,
                "description": title,
                "type": "saeforest",
                "creatorName": names.creator,
                "urls": [names.url] if names.url else [],
                "releaseName": names.release,
                "hasDashboards": True,
                "visibility": "PUBLIC",
                **own,
            },
            "source": {
                "id": names.source,
                "modelId": names.model,
                "setName": names.set,
                "hasDashboards": True,
                "inferenceEnabled": False,
                "visibility": "PUBLIC",
                "dataset": str(about.get("dataset_path", "")),
                "num_prompts": len(self._index.tokens.ids),
                "num_tokens_in_prompt": self._index.tokens.context,
                **own,
            },
        }

    def feature(self, feature: int) -> dict[str, Any]:
        """The line about a feature."""
        index, value_max = self._index, float(self._index.value_max[feature])
        near = index.near_id[feature] >= 0
        found: dict[str, Any] = {
            "modelId": self._names.model,
            "layer": self._names.source,
            "index": str(feature),
            "sourceSetName": self._names.set,
            "creatorId": CREATOR_ID,
            "createdAt": self._now,
            "maxActApprox": value_max,
            "hasVector": True,
            "vector": _exact(self._decoder[feature]),
            "vectorLabel": self._vector_label(feature),
            "vectorDefaultSteerStrength": value_max,
            "hookName": self._site,
            "topkCosSimIndices": index.near_id[feature][near].tolist(),
            "topkCosSimValues": _rounded(index.near_cos[feature][near]),
            "frac_nonzero": float(index.density[feature]),
            "freq_hist_data_bar_heights": index.histogram[feature].tolist(),
            "freq_hist_data_bar_values": _rounded(self._bins * value_max),
        }
        for key in ("pos", "neg"):
            found |= {f"{key}_str": [], f"{key}_values": []}
        if index.logits is not None:
            found |= self._logits("pos", index.logits.up_id[feature], index.logits.up[feature])
            found |= self._logits("neg", index.logits.down_id[feature], index.logits.down[feature])
        return found

    def _logits(self, key: str, ids: Int[Tensor, "n"], values: Float[Tensor, "n"]) -> dict[str, Any]:
        known = (ids >= 0) & ~values.isnan()
        texts = [self._texts.of(token) or UNKNOWN for token in ids[known].tolist()]
        return {f"{key}_str": texts, f"{key}_values": _rounded(values[known])}

    def contexts(self, feature: int) -> list[tuple[Context, Part | None]]:
        """The strongest contexts, and samples with the part of the feature's range that each is of: its bounds, and
        about which share of the activations lies in it."""
        strongest = self._contexts.top(feature, children=False)
        rows = {context.row for context in strongest}
        edges = self._index.sample_edges(feature).tolist()
        found: list[tuple[Context, Part | None]] = [(c, None) for c in strongest]
        for context in self._contexts.samples(feature, children=False):
            if context.row not in rows:
                part = next((i for i, low in enumerate(edges[1:]) if context.value >= low), len(edges) - 2)
                found.append((context, (edges[part + 1], edges[part], self._share(feature, part))))
        return found

    def _share(self, feature: int, part: int) -> float:
        """The share of the activations in one of five equal parts of the range, the highest first; within a bar of the
        histogram, activations count as evenly spread."""
        bars = self._index.histogram[feature].double()
        n, parts = len(bars), len(self._index.sample_edges(feature)) - 1
        low, high = n * (parts - 1 - part) / parts, n * (parts - part) / parts
        inside = (torch.arange(n) + 1).clamp(max=high) - torch.arange(n).clamp(min=low)
        return round(float((bars * inside.clamp(0, 1)).sum() / bars.sum().clamp(min=1)), 4)

    def activations(
        self, feature: int, contexts: Iterable[tuple[Context, Part | None]]
    ) -> Iterable[dict[str, Any]]:
        """The lines about contexts of a feature."""
        for place, (context, part) in enumerate(contexts):
            values = list(context.values)
            largest = max(values)
            yield {
                "id": self._id("activation", feature, place),
                "modelId": self._names.model,
                "layer": self._names.source,
                "index": str(feature),
                "tokens": [token or UNKNOWN for token in context.tokens],
                "values": values,
                "maxValue": largest,
                "maxValueTokenIndex": values.index(largest),
                "minValue": min(values),
                # Without a part of the range, the page takes it for one of the strongest.
                "binMin": None if part is None else part[0],
                "binMax": None if part is None else part[1],
                "binContains": None if part is None else part[2],
                "qualifyingTokenIndex": context.at,
                "dataSource": context.document,
                "dataIndex": str(context.row),
                "creatorId": CREATOR_ID,
                "createdAt": self._now,
            }

    def explanations(self, feature: int) -> Iterable[dict[str, Any]]:
        """The lines that say what a feature is: its label, and its place in the forest."""
        for place, (text, note) in enumerate(self._said(feature)):
            yield {
                "id": self._id("explanation", feature, place),
                "modelId": self._names.model,
                "layer": self._names.source,
                "index": str(feature),
                "description": text[:MOST_EXPLANATION],
                "authorId": CREATOR_ID,
                "typeName": None,
                "explanationModelName": None,
                "notes": note,
                "createdAt": self._now,
            }

    def _said(self, feature: int) -> Iterable[tuple[str, str | None]]:
        """What there is to say of a feature, and who says it."""
        label, source = self._labels.get(feature, ("", "auto"))
        if label:
            who = {
                "hand": "by a person",
                "judge": f"by a judge: {self._judges.get(feature, '')}",
                "auto": None,
            }
            yield (f"tokens: {label}" if source == "auto" else label), who[source]
        if (place := self._in_forest(feature)) is not None:
            yield place, "by saeforest"

    def _vector_label(self, feature: int) -> str | None:
        parent = int(self._forest.parent[feature])
        label = self._labels.get(feature, ("", "auto"))[0]
        return " · ".join(filter(None, (label, f"child of #{parent}" if parent != ROOT else ""))) or None

    def _in_forest(self, feature: int) -> str | None:
        """Where a feature is in the forest; each number about its edge beside what pairs with shuffled parents have."""
        parent, children = int(self._forest.parent[feature]), self._forest.children(feature)
        named = f" ({self._labels[parent][0]})" if parent in self._labels else ""
        found = [f"child of #{parent}{named}{self._evidence(feature)}"] if parent != ROOT else []
        if children:
            some = ", ".join(f"#{child}" for child in children[:_CHILDREN])
            more = f" and {len(children) - _CHILDREN:,} more" if len(children) > _CHILDREN else ""
            found.append(f"parent of {some}{more}")
        return "; ".join(found) or None

    def _evidence(self, feature: int) -> str:
        told = []
        for name, what in _TOLD.items():
            if name not in self._index.columns:
                continue
            value = float(self._index.columns[name][feature])
            place = float(self._index.column_places[name][feature])
            if not math.isnan(value) and not math.isnan(place):
                told.append(f"{what} {value:.2f}, above that of {place:.0%} of pairs with shuffled parents")
        return f": {'; '.join(told)}" if told else ""

    def _id(self, kind: str, feature: int, place: int) -> str:
        """An id of the form that Neuronpedia's have, always the same: a second import adds nothing."""
        key = f"{self._index.about.sae}/{self._names.model}/{self._names.source}/{kind}/{feature}/{place}"
        number = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=16).digest(), "big")
        digits = []
        for _ in range(24):
            number, digit = divmod(number, 36)
            digits.append(_ALPHABET[digit])
        return "c" + "".join(digits)


def hierarchy(explorer: Explorer) -> dict[str, Any]:
    """The forest, and for each edge, named by its child, every column beside its place among pairs of shuffled
    parents."""
    index = explorer.index
    columns = {}
    for about in index.about.columns:
        columns[about.name] = {
            "title": about.title,
            "description": about.description,
            "mechanical": about.mechanical,
            "values": _or_none(index.columns[about.name]),
            "places": _or_none(index.column_places[about.name]),
        }
    return {
        "forest": explorer.origin,
        "layer_sizes": list(explorer.forest.layer_sizes),
        "parent": explorer.forest.parent.tolist(),
        "places": "share of pairs with shuffled parents that the edge's value exceeds, ties half; 0.5 is chance",
        "columns": columns,
    }


def _or_none(values: Float[Tensor, "n"]) -> list[float | None]:
    return [None if math.isnan(value) else round(value, 6) for value in values.double().tolist()]


def _rounded(values: Float[Tensor, "n"]) -> list[float]:
    return [round(value, 4) for value in values.double().tolist()]


def _exact(values: NDArray[np.float32]) -> list[float]:
    """Numbers with as few digits as tell float32 apart."""
    return [float(str(value)) for value in values]
