"""Labels of features: by a person, else by a judge, else the tokens by which they stand out."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from threading import Lock
from typing import Literal

import torch

from ..index import Index
from ..queries.contexts import TokenTexts
from .annotations import Annotations

Source = Literal["hand", "judge", "auto"]
"""Where a label comes from: a person, a judge, or the tokens by which the feature stands out."""
_TOKENS = 3
_BETWEEN = " · "


class Labels:
    """The labels of an index's features. Those of a person come before those of a judge, and these before automatic
    ones: the tokens that tell a feature from its parent, or a root from all text. Of these, those of its strongest
    activations lead: how often it fires on a token says nothing of how strongly. No model is needed."""

    def __init__(self, index: Index, texts: TokenTexts, annotations: Annotations) -> None:
        self._index, self._texts, self._annotations = index, texts, annotations
        self._lock = Lock()
        self._known: dict[int, tuple[str, Source]] = {}
        self._version = -1

    def of(self, feature: int) -> str | None:
        """The label of a feature; None if it has none: it never fired."""
        found = self.all().get(feature)
        return None if found is None else found[0]

    def source(self, feature: int) -> Source | None:
        """Where the label of a feature comes from."""
        found = self.all().get(feature)
        return None if found is None else found[1]

    def all(self) -> dict[int, tuple[str, Source]]:
        """The labels of all features that have one, with their sources."""
        with self._lock:
            if self._version != self._annotations.version:
                version = self._annotations.version
                known: dict[int, tuple[str, Source]] = dict(self._automatic)
                for feature, judged in self._annotations.judged().items():
                    if judged.label and feature < self._index.d_sae:
                        known[feature] = judged.label, "judge"
                for feature, note in self._annotations.notes().items():
                    if note.label and feature < self._index.d_sae:
                        known[feature] = note.label, "hand"
                self._known, self._version = known, version
            return self._known

    def tokens(self, feature: int) -> tuple[str, ...]:
        """The tokens by which a feature stands out, most telling first."""
        ids = self._index.child_tokens[feature].tolist()
        return self._distinct(ids if ids and ids[0] >= 0 else self._strongest[feature])

    @cached_property
    def _automatic(self) -> dict[int, tuple[str, Source]]:
        telling, strongest = self._index.child_tokens.tolist(), self._strongest
        chosen = [
            _strong_first(a, b) if a and a[0] >= 0 else b for a, b in zip(telling, strongest, strict=True)
        ]
        self._texts.learn([token for tokens in chosen for token in tokens if token >= 0])
        labels = (_BETWEEN.join(self._distinct(tokens)[:_TOKENS]) for tokens in chosen)
        return {feature: (label, "auto") for feature, label in enumerate(labels) if label}

    @cached_property
    def _strongest(self) -> list[list[int]]:
        """The tokens of the strongest activations of every feature."""
        rows = self._index.top_row
        ids = self._index.tokens.ids.flatten()[rows.clamp(min=0).long()]
        return torch.where(rows >= 0, ids, -1).tolist()

    def _distinct(self, tokens: Sequence[int]) -> tuple[str, ...]:
        """The texts of tokens without spaces around them, each once."""
        texts = (self._texts.of(token).strip() or "␣" for token in tokens if token >= 0)
        return tuple(dict.fromkeys(texts))


def _strong_first(telling: list[int], strongest: Sequence[int]) -> list[int]:
    """Telling tokens in their order, but those that are among the strongest before the others."""
    among = set(strongest)
    return sorted(telling, key=lambda token: token not in among)
