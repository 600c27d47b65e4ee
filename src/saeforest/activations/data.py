"""What the setting `data` refers to: text for the language model, or activations that already exist."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..files import read_json
from ..lm import ModelIdentity
from .manifest import Manifest
from .sources import StoredActivations, is_store, open_store
from .writer import MODEL

#: The value of `data` if a Python program passed its own activations to `saeforest.train`.
GIVEN = "<tensor>"


@dataclass(frozen=True)
class TextData:
    """Text, from which a language model computes activations."""

    source: str
    """The packaged text, a file or folder, or a Hub data set."""


@dataclass(frozen=True)
class GivenData:
    """Activations that a Python program passed in: they are in no file, and their text and model are unknown."""

    source: str = GIVEN


@dataclass(frozen=True)
class StoredData:
    """A folder of harvested activations, whose manifest describes their language model and text."""

    folder: Path
    manifest: Manifest

    @property
    def source(self) -> str:
        """The source of the text from which the activations were computed."""
        return self.manifest.data

    @property
    def model(self) -> ModelIdentity:
        """The language model that computed the activations."""
        said = self.manifest
        return ModelIdentity(said.model, said.model_revision or "", said.model_fingerprint or "")

    def about_model(self) -> dict[str, Any]:
        """The language model, with its results on a short text if the harvest recorded them."""
        path = self.folder / MODEL
        return {**self.model.to_dict(), **(read_json(path) if path.exists() else {})}

    def open(self, seed: int = 0) -> StoredActivations:
        """The activations themselves; `seed` fixes the order in which they are read."""
        return open_store(self.folder, seed)


def data_of(data: str) -> TextData | StoredData | GivenData:
    """What a value of the setting `data` refers to.

    Raises InputError if it is a folder of harvested activations that is incomplete.
    """
    if data == GIVEN:
        return GivenData()
    folder = Path(data)
    if not is_store(folder):
        return TextData(data)
    return StoredData(folder, Manifest.model_validate(open_store(folder).manifest))
