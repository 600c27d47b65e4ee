"""The tensors in a model's safetensors files, read from the files' headers alone."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saeforest.errors import InputError
from saeforest.files import read_bytes

CONFIG_FILE = "config.json"
_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_MOST_HEADER = 100_000_000  # bytes; the limit of the safetensors format
FLOATS = {"F64", "F32", "F16", "BF16"}


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file; its bytes are `length` bytes from offset `start`."""

    name: str
    dtype: str
    """As safetensors writes it: F32, BF16, F8_E4M3, I8, ..."""
    shape: tuple[int, ...]
    file: Path
    start: int
    length: int


def read_model_config(folder: Path) -> dict[str, Any]:
    """Read config.json of a folder. Raises ValueError if it is missing or not a JSON object."""
    return read_object(folder / CONFIG_FILE)


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that transformers reads, in order: the single one, or those that the index names.

    Raises ValueError if there are none, or if a file named in the index is missing.
    """
    explicit = read_object(folder / CONFIG_FILE).get("transformers_weights")
    if isinstance(explicit, str):
        index = folder / explicit if explicit.endswith(".json") else None
        single = folder / explicit
    else:
        index, single = folder / _INDEX, folder / _SINGLE
    if index is None or (single != index and single.is_file()):
        if not single.is_file():
            raise ValueError(f"{single}: no such file")
        return [single]
    if not index.is_file():
        raise ValueError(
            f"no {_SINGLE} in {folder}; weights are read only from safetensors files, "
            "never from .bin or .pt files, which could run code"
        )
    named = read_object(index).get("weight_map")
    if not isinstance(named, dict) or not all(isinstance(v, str) for v in named.values()):
        raise ValueError(f"{index}: expected a weight_map from tensors to files")
    files = [folder / file for file in sorted(set(named.values()))]
    for file in files:
        if not file.is_file():
            raise ValueError(f"{index} names {file.name}, which is missing; download or copy it again")
    return files


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """The tensors in the files of a folder, by name. Raises ValueError if a file is damaged."""
    found: dict[str, StoredTensor] = {}
    for file in weight_files(folder):
        for tensor in _header(file):
            if tensor.name in found:
                raise ValueError(
                    f"tensor {tensor.name} is in both {found[tensor.name].file.name} and {file.name}"
                )
            found[tensor.name] = tensor
    return found


def _header(file: Path) -> list[StoredTensor]:
    size = file.stat().st_size
    try:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if not 2 <= length <= min(size - 8, _MOST_HEADER):
                raise ValueError
            entries = json.loads(stream.read(length))
        base = 8 + length
        found = []
        for name, entry in entries.items():
            if name == "__metadata__":
                continue
            start, end = (int(x) for x in entry["data_offsets"])
            if not 0 <= start <= end <= size - base:
                raise ValueError
            shape = tuple(int(n) for n in entry["shape"])
            found.append(StoredTensor(name, str(entry["dtype"]), shape, file, base + start, end - start))
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, struct.error, RecursionError):
        raise ValueError(f"{file}: {_what_is_wrong(file, size)}; download or copy it again") from None
    return found


def _what_is_wrong(file: Path, size: int) -> str:
    with file.open("rb") as stream:
        start = stream.read(64)
    if start.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer instead of the weights"
    return "not a complete safetensors file" if size else "empty"


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON object from a model's folder. Raises ValueError if the file is missing or holds none.

    Unlike saeforest's own files, these may hold Infinity, as the configuration of Mamba 2 does.
    """
    try:
        data = json.loads(read_bytes(path))
    except InputError as error:
        raise ValueError(str(error)) from None
    except (ValueError, RecursionError):
        raise ValueError(f"{path}: not valid JSON; download or copy it again") from None
    if not isinstance(data, dict):
        raise ValueError(f"{path}: expected a JSON object")
    return data
