"""Files that are whole or absent, bounded when they are read, and checked when they have a checksum.

A file or folder is written beside its place, synced, then renamed into it. JSON written here carries a checksum of its
own; tensor files have theirs in the manifest beside them (its key "checksums"), so that a flipped bit is noticed when
a file is read. Checksums find damage, not forgery.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

import yaml
from safetensors import SafetensorError
from safetensors.torch import load, load_file, save_file
from torch import Tensor
from xxhash import xxh3_128, xxh3_128_hexdigest

from .errors import InputError

# Of files and folders that are being written, and of a folder that holds what is just being replaced.
_PREFIX, _SUFFIX, _OLD = ".saeforest-", ".part", ".old.part"
_CHUNK = 1 << 22
# Far above anything that is written here, and far below what makes a parser run out of memory or time.
_MOST_BYTES = 1 << 29
_MOST_DEPTH = 64
_MOST_DIGITS = 32
_MOST_YAML = 1 << 24
_MOST_NODES = 1_000_000
CHECKSUM, CHECKSUMS = "checksum", "checksums"


# Whole or absent


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yields a temporary path to write; on leaving without an error it becomes `path`, else nothing is left.

    An OSError names `path`.
    """
    with _named(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        # In a folder of its own: whoever writes may want temporary files beside it, as safetensors does.
        handle, folder = _temporary(path.parent)
        try:
            temporary = folder / path.name
            temporary.touch()
            yield temporary
            _sync(temporary)
            temporary.chmod(0o644)
            temporary.replace(path)
            _sync(path.parent)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(handle)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Like `atomic_file` for a folder; one already at `path` is replaced as the last act."""
    with _named(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = _temporary(path.parent)
        try:
            yield temporary
            for file in temporary.iterdir():
                _sync(file)
            temporary.chmod(0o755)
            if path.exists():
                _replace_folder(path, temporary)
            else:
                temporary.replace(path)
            _sync(path.parent)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        finally:
            os.close(handle)


def _replace_folder(path: Path, new: Path) -> None:
    handle, old = _temporary(path.parent, _OLD)
    try:
        path.replace(old / path.name)
        try:
            new.replace(path)
        except BaseException:
            (old / path.name).replace(path)
            raise
    finally:
        shutil.rmtree(old, ignore_errors=True)
        os.close(handle)


def _temporary(parent: Path, suffix: str = _SUFFIX) -> tuple[int, Path]:
    """A fresh folder, and a handle whose lock tells `remove_leftovers` that somebody is writing in it."""
    while True:
        path = Path(tempfile.mkdtemp(dir=parent, prefix=_PREFIX, suffix=suffix))
        handle = os.open(path, os.O_RDONLY)
        with suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if path.exists():  # else it was taken for a leftover in the moment before it was locked
            return handle, path
        os.close(handle)


def remove_leftovers(folder: Path) -> list[Path]:
    """Removes what killed processes were writing in `folder` and below; returns what it removed.

    What a living process is writing is locked by it, and stays. What was being replaced goes back to its place if
    nothing has come there.
    """
    removed = []
    for path in sorted(folder.rglob(f"{_PREFIX}*{_SUFFIX}")):
        try:
            handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.name.endswith(_OLD):
                _put_back(path)
            shutil.rmtree(path)
            removed.append(path)
        except OSError:  # in use, gone, or not ours to remove
            continue
        finally:
            os.close(handle)
    return removed


def _put_back(old: Path) -> None:
    for replaced in old.iterdir():
        if not (place := old.parent / replaced.name).exists():
            replaced.rename(place)


def is_temporary(path: Path) -> bool:
    """Whether this is, or is inside, something that is being written or that a killed process left behind."""
    return any(part.startswith(_PREFIX) and part.endswith(_SUFFIX) for part in path.parts)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Within, an OSError that names no file, or a temporary one, names `path`."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and (error.filename is None or is_temporary(Path(str(error.filename)))):
            error.filename, error.filename2 = str(path), None
        raise


def _sync(path: Path) -> None:
    """Of a file its content, of a folder the names in it, onto the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# Checksums


def checksum(path: Path) -> str:
    """The checksum of a file's bytes, as manifests hold it. Raises OSError where it cannot be read."""
    digest = xxh3_128()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return f"xxh3:{digest.hexdigest()}"


def checksum_of_bytes(data: bytes) -> str:
    return f"xxh3:{xxh3_128_hexdigest(data)}"


def checksum_of_data(data: Any) -> str:
    """The checksum of what a JSON file says, however it is laid out."""
    plain = json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return checksum_of_bytes(plain.encode())


def check_file(path: Path, expected: str, remedy: str = "restore it from a copy") -> None:
    """Raises InputError where the file is missing or is not the one that the checksum was taken of."""
    try:
        found = checksum(path)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; {remedy}") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    if found != expected:
        raise InputError(f"{path}: damaged: it does not match its checksum {expected}; {remedy}")


def listed_checksum(manifest: Any, name: str) -> str | None:
    """The checksum of a file in a manifest; None where that is of a time before there were any."""
    listed = manifest.get(CHECKSUMS) if isinstance(manifest, Mapping) else None
    found = listed.get(name) if isinstance(listed, Mapping) else None
    return found if isinstance(found, str) else None


# JSON and YAML


def write_json(path: Path, data: Any, *, signed: bool = True) -> None:
    """Writes JSON. An object gets its checksum as its last key, unless `signed` is False."""
    if signed and isinstance(data, dict):
        plain = json.loads(json.dumps(data, allow_nan=False))  # tuples are lists once they are read again
        data = {**data, CHECKSUM: checksum_of_data(plain)}
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(data, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path: Path, *, constants: Literal["refused", "text"] = "refused") -> Any:
    """What `write_json` wrote, without its checksum.

    constants: what becomes of Infinity and NaN, which JSON has not but Python writes.

    Raises InputError where the file is missing, cannot be read, is no JSON, is of no sane size, or does not match the
    checksum in it.
    """
    data = parse_json(read_bytes(path), str(path), constants=constants)
    if isinstance(data, dict) and CHECKSUM in data:
        expected = data.pop(CHECKSUM)
        if expected != checksum_of_data(data):
            raise InputError(
                f'{path}: does not match the "{CHECKSUM}" in it, so it is damaged or was edited; restore it, or, if it '
                "was edited on purpose, delete that key"
            )
    return data


def parse_json(text: bytes | str, where: str, *, constants: Literal["refused", "text"] = "refused") -> Any:
    """JSON from outside: finite numbers of bounded length, bounded nesting. Raises InputError that names `where`."""
    try:
        data = json.loads(
            text.decode("utf-8-sig") if isinstance(text, bytes) else text,
            parse_int=_integer,
            parse_float=_finite,
            parse_constant=_finite if constants == "refused" else str,
        )
    except RecursionError:
        raise InputError(f"{where}: not valid JSON (nested too deeply); the file is damaged") from None
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError are of this kind
        raise InputError(f"{where}: not valid JSON ({error}); the file is damaged") from None
    _check_nesting(data, where)
    return data


def _integer(digits: str) -> int:
    if len(digits) > _MOST_DIGITS:
        raise ValueError(f"a number of {len(digits):,} digits")
    return int(digits)


def _finite(number: str) -> float:
    value = float(number.replace("Infinity", "inf"))
    if value - value != 0:
        raise ValueError(f"{number[:_MOST_DIGITS]} is not a finite number")
    return value


def _check_nesting(data: Any, where: str, most_nodes: int | None = None) -> None:
    """Raises InputError for containers within containers beyond reason, or more of them than `most_nodes`."""
    level, depth, nodes = [data], 0, 0
    while level:
        containers = [item for item in level if isinstance(item, dict | list)]
        nodes += len(level)
        if depth > _MOST_DEPTH or (most_nodes is not None and nodes > most_nodes):
            raise InputError(
                f"{where}: nested too deeply or too large; expected a plain file of settings or values"
            )
        depth += 1
        level = [
            child
            for item in containers
            for child in (item.values() if isinstance(item, dict) else item)
            if most_nodes is not None or isinstance(child, dict | list)
        ]


def read_yaml(path: Path) -> Any:
    """YAML from outside, as plain data. Raises InputError where it is missing, damaged, or of no sane size."""
    text = read_bytes(path, _MOST_YAML)
    try:
        data = yaml.load(text.decode("utf-8"), _PlainLoader)
    except RecursionError:
        raise InputError(f"{path}: not valid YAML (nested too deeply)") from None
    # PyYAML raises whatever its converters of dates, numbers and bases raise.
    except (yaml.YAMLError, ValueError, OverflowError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from None
    _check_nesting(data, str(path), _MOST_NODES)
    return data


class _PlainLoader(yaml.SafeLoader):
    """YAML's plain values: mappings, lists, strings, numbers, booleans and null. No dates, sets or binary data."""


def _plain_integer(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    if len(node.value) > _MOST_DIGITS:
        raise ValueError(f"a number of {len(node.value):,} digits")
    return loader.construct_yaml_int(node)


def _text_of(loader: yaml.SafeLoader, node: Any) -> str:
    return str(loader.construct_scalar(node))


_PlainLoader.add_constructor("tag:yaml.org,2002:int", _plain_integer)


for _tag in ("timestamp", "binary", "set", "omap", "pairs"):
    _PlainLoader.add_constructor(f"tag:yaml.org,2002:{_tag}", _text_of)


def read_bytes(path: Path, most: int = _MOST_BYTES) -> bytes:
    """The bytes of a file. Raises InputError where it is missing, cannot be read, or is larger than `most`."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > most:
                raise InputError(f"{path}: {size:,} bytes; expected at most {most:,}")
            chunks, size = [], 0
            while size <= most and (chunk := file.read(_CHUNK)):
                chunks.append(chunk)
                size += len(chunk)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    if size > most:
        raise InputError(f"{path}: {size:,} bytes or more; expected at most {most:,}")
    return b"".join(chunks)


# Tensors


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> str:
    """Writes a safetensors file; returns its checksum, for the manifest beside it.

    Raises OSError that names the file where the disk is full or the file cannot be written for another reason.
    """
    try:
        with atomic_file(path) as temporary:
            save_file({k: t.detach().contiguous().cpu() for k, t in tensors.items()}, temporary, metadata)
            return checksum(temporary)
    except SafetensorError as error:  # its name for an OSError, whose number it spells out
        code = re.search(r"os error (\d+)", str(error))
        if code is None:
            raise
        raise OSError(int(code[1]), os.strerror(int(code[1])), str(path)) from None


def _has_name(path: Path) -> bool:
    """Whether the path is text: a file name may be any bytes, which safetensors does not take."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def read_tensors(
    path: Path, expected: str | None = None, remedy: str = "write or copy it again"
) -> dict[str, Tensor]:
    """The tensors of a file, whose checksum must be `expected` where one is known.

    Raises InputError, with the `remedy`, where the file is missing, truncated or otherwise damaged.
    """
    if expected is not None:
        check_file(path, expected, remedy)
    try:
        return load_file(path) if _has_name(path) else load(read_bytes(path, sys.maxsize))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; {remedy}") from None
    except (SafetensorError, OSError) as error:
        why = str(error).splitlines()[0]
        raise InputError(f"{path}: not a whole safetensors file ({why}); {remedy}") from None
