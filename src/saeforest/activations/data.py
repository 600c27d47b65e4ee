"""What the setting `data` refers to: text for the language model, or activations that already exist."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..lm import ModelIdentity
from .folder import Folder, folder_at, is_address
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
    """Harvested activations, whose manifest describes their language model and text."""

    folder: Folder
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
        said = self.folder.read_json(MODEL) if self.folder.has(MODEL) else {}
        return {**self.model.to_dict(), **said}

    def open(self, seed: int = 0, tokens: int | None = None) -> StoredActivations:
        """The activations themselves, or those of the first `tokens` tokens; `seed` fixes the order in which they are
        read."""
        return open_store(self.folder, seed, tokens)


def data_of(data: str) -> TextData | StoredData | GivenData:
    """What a value of the setting `data` refers to.

    Raises InputError if it is a folder of harvested activations that is incomplete, or an address without any.
    """
    if data == GIVEN:
        return GivenData()
    folder = folder_at(data)
    if not is_address(data) and not is_store(folder):
        return TextData(data)
    return StoredData(folder, Manifest.model_validate(open_store(folder).manifest))
