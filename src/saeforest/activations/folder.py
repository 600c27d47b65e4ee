"""The folder of a store: on a disk, or at any address that fsspec knows, such as `s3://bucket/folder`.

Both write a file whole or not at all. On a disk, it is written beside its place and renamed; an object store shows an
object when all of it is there.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from ..errors import InputError
from ..extras import missing
from ..files import (
    check_file,
    checksum_of_bytes,
    is_temporary,
    json_text,
    parse_signed,
    read_json,
    read_tensors,
    write_json,
    write_tensors,
)

_SCHEME = "://"


@runtime_checkable
class Folder(Protocol):
    """Files by name, all in one folder. Errors name the file's whole address."""

    def path(self, name: str) -> str:
        """The whole address of a file, for messages."""
        ...

    def has(self, name: str) -> bool:
        """Whether there is such a file."""
        ...

    def sizes(self) -> dict[str, int]:
        """The size of every file in bytes, by name; empty if there is no folder."""
        ...

    def read_json(self, name: str) -> Any:
        """See `files.read_json`."""
        ...

    def write_json(self, name: str, data: Any) -> None:
        """See `files.write_json`."""
        ...

    def read_tensors(self, name: str, checksum: str | None = None, remedy: str = ...) -> dict[str, Tensor]:
        """See `files.read_tensors`."""
        ...

    def write_tensors(self, name: str, tensors: Mapping[str, Tensor]) -> str:
        """See `files.write_tensors`."""
        ...

    def check(self, name: str, checksum: str, remedy: str = ...) -> None:
        """See `files.check_file`."""
        ...

    def size(self, name: str) -> int:
        """The size of a file in bytes."""
        ...

    def remove(self, name: str) -> None:
        """Remove a file, which may be gone already."""
        ...

    def remove_empty(self) -> None:
        """Remove the folder itself if it is empty."""
        ...


def folder_at(place: Path | str | Folder) -> Folder:
    """The folder at a path or an address. Raises InputError if fsspec has nothing for this kind of address."""
    if isinstance(place, Path) or (isinstance(place, str) and not is_address(place)):
        return LocalFolder(Path(place))
    return RemoteFolder(place) if isinstance(place, str) else place


def is_address(place: str) -> bool:
    """Whether a text is an address for fsspec rather than a path."""
    return _SCHEME in place


@dataclass(frozen=True)
class LocalFolder:
    """A folder on a disk."""

    at: Path

    def __str__(self) -> str:
        return str(self.at)

    def path(self, name: str) -> str:
        return str(self.at / name)

    def has(self, name: str) -> bool:
        return (self.at / name).is_file()

    def sizes(self) -> dict[str, int]:
        found = {}
        for path in self.at.iterdir() if self.at.is_dir() else ():
            with suppress(FileNotFoundError):  # another worker has just removed it
                if not is_temporary(path) and path.is_file():
                    found[path.name] = path.stat().st_size
        return found

    def read_json(self, name: str) -> Any:
        return read_json(self.at / name)

    def write_json(self, name: str, data: Any) -> None:
        write_json(self.at / name, data)

    def read_tensors(
        self, name: str, checksum: str | None = None, remedy: str = "write or copy it again"
    ) -> dict[str, Tensor]:
        return read_tensors(self.at / name, checksum, remedy)

    def write_tensors(self, name: str, tensors: Mapping[str, Tensor]) -> str:
        return write_tensors(self.at / name, tensors)

    def check(self, name: str, checksum: str, remedy: str = "restore it from a copy") -> None:
        check_file(self.at / name, checksum, remedy)

    def size(self, name: str) -> int:
        return (self.at / name).stat().st_size

    def remove(self, name: str) -> None:
        (self.at / name).unlink(missing_ok=True)

    def remove_empty(self) -> None:
        with suppress(OSError):
            self.at.rmdir()


@dataclass(frozen=True)
class RemoteFolder:
    """A folder at an address that fsspec knows."""

    address: str

    def __str__(self) -> str:
        return self.address

    @cached_property
    def _opened(self) -> tuple[Any, str]:
        """The file system, and the folder's path in it."""
        from fsspec.core import url_to_fs

        scheme = self.address.partition(_SCHEME)[0]
        try:
            fs, path = url_to_fs(self.address)
        except ImportError as error:
            if scheme in ("s3", "s3a"):
                raise missing("s3", self.address, "s3fs") from None
            raise InputError(f"{self.address}: {error}") from None
        except ValueError as error:
            raise InputError(
                f"{self.address}: {error}; expected a folder, or an address such as s3://bucket/folder"
            ) from None
        return fs, path.rstrip("/")

    def path(self, name: str) -> str:
        return f"{self.address.rstrip('/')}/{name}"

    @contextmanager
    def _file(self, name: str) -> Iterator[tuple[Any, str]]:
        """Yield the file system and the file's path in it, without what the file system remembers of either."""
        fs, root = self._opened
        fs.invalidate_cache()
        try:
            yield fs, f"{root}/{name}" if name else root
        except (InputError, FileNotFoundError):
            raise
        except Exception as error:  # networks and services have errors of their own
            said = " ".join(str(error).split()) or type(error).__name__
            code = getattr(error, "errno", None) or errno.EIO
            raise OSError(code, said, self.path(name) if name else self.address) from error

    def has(self, name: str) -> bool:
        with self._file(name) as (fs, path):
            return bool(fs.isfile(path))

    def sizes(self) -> dict[str, int]:
        with self._file("") as (fs, path):
            try:
                found = fs.ls(path, detail=True)
            except FileNotFoundError:
                return {}
        return {Path(f["name"]).name: int(f["size"]) for f in found if f["type"] == "file"}

    def _bytes(self, name: str, remedy: str = "") -> bytes:
        try:
            with self._file(name) as (fs, path):
                return fs.cat_file(path)
        except FileNotFoundError:
            raise InputError(f"{self.path(name)}: no such file{f'; {remedy}' if remedy else ''}") from None

    def read_json(self, name: str) -> Any:
        return parse_signed(self._bytes(name), self.path(name))

    def write_json(self, name: str, data: Any) -> None:
        self._put(name, json_text(data).encode())

    def read_tensors(
        self, name: str, checksum: str | None = None, remedy: str = "write or copy it again"
    ) -> dict[str, Tensor]:
        data = self._checked(name, checksum, remedy)
        try:
            return load(data)
        except SafetensorError as error:
            why = str(error).splitlines()[0]
            raise InputError(f"{self.path(name)}: not a whole safetensors file ({why}); {remedy}") from None

    def write_tensors(self, name: str, tensors: Mapping[str, Tensor]) -> str:
        data = save({key: tensor.detach().contiguous().cpu() for key, tensor in tensors.items()})
        self._put(name, data)
        return checksum_of_bytes(data)

    def _put(self, name: str, data: bytes) -> None:
        with self._file(name) as (fs, path):
            fs.makedirs(self._opened[1], exist_ok=True)
            fs.pipe_file(path, data)

    def check(self, name: str, checksum: str, remedy: str = "restore it from a copy") -> None:
        self._checked(name, checksum, remedy)

    def _checked(self, name: str, checksum: str | None, remedy: str) -> bytes:
        data = self._bytes(name, remedy)
        if checksum is not None and checksum_of_bytes(data) != checksum:
            raise InputError(
                f"{self.path(name)}: damaged: it does not match its checksum {checksum}; {remedy}"
            )
        return data

    def size(self, name: str) -> int:
        with self._file(name) as (fs, path):
            return int(fs.size(path))

    def remove(self, name: str) -> None:
        with suppress(FileNotFoundError), self._file(name) as (fs, path):
            fs.rm_file(path)

    def remove_empty(self) -> None:
        """An object store has no folders."""
