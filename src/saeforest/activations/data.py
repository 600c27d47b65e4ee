"""What a configuration's `data` is: text for the language model, or activations that were harvested before."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..files import read_json
from ..lm import ModelIdentity
from .manifest import Manifest
from .sources import StoredActivations, is_store, open_store
from .writer import MODEL

#: What a configuration's `data` says where a Python program trained on activations of its own (`saeforest.train`).
GIVEN = "<tensor>"


@dataclass(frozen=True)
class TextData:
    """Text, which a language model reads."""

    source: str
    """The packaged text, a file or folder, or a Hub data set."""


@dataclass(frozen=True)
class GivenData:
    """Activations that a Python program handed over: no file holds them, and no text or language model is known."""

    source: str = GIVEN


@dataclass(frozen=True)
class StoredData:
    """A folder of harvested activations, which says all that is to be known of the language model and its text."""

    folder: Path
    manifest: Manifest

    @property
    def source(self) -> str:
        """Where their text came from."""
        return self.manifest.data

    @property
    def model(self) -> ModelIdentity:
        """The language model that was read."""
        said = self.manifest
        return ModelIdentity(said.model, said.model_revision or "", said.model_fingerprint or "")

    def about_model(self) -> dict[str, Any]:
        """The same with how the model fared on a short text, where the harvest wrote that down."""
        path = self.folder / MODEL
        return {**self.model.to_dict(), **(read_json(path) if path.exists() else {})}

    def open(self, seed: int = 0) -> StoredActivations:
        return open_store(self.folder, seed)


def data_of(data: str) -> TextData | StoredData | GivenData:
    """Raises InputError where a folder of harvested activations is not whole."""
    if data == GIVEN:
        return GivenData()
    folder = Path(data)
    if not is_store(folder):
        return TextData(data)
    return StoredData(folder, Manifest.model_validate(open_store(folder).manifest))
