"""Reading and writing files: never half written, of bounded size when read, and verified by checksums.

A file or folder is written to a temporary place beside its destination, synced, then renamed. JSON files written here
contain their own checksum. The checksums of tensor files are in the manifest beside them (key "checksums"). So a
flipped bit is noticed when a file is read. Checksums detect damage, not forgery.
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
from yaml.constructor import SafeConstructor

from .errors import InputError

# The names of temporary files and folders, and of a folder that holds what is being replaced.
_PREFIX, _SUFFIX, _OLD = ".saeforest-", ".part", ".old.part"
_CHUNK = 1 << 22
# Limits far above anything that is written here, and far below what makes a parser run out of memory or time.
_MOST_BYTES = 1 << 29
_MOST_DEPTH = 64
_MOST_DIGITS = 32
_MOST_YAML = 1 << 24
_MOST_NODES = 1_000_000
CHECKSUM, CHECKSUMS = "checksum", "checksums"


# Atomic writing


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write to. If the block succeeds, it is renamed to `path`; otherwise nothing is left.

    An OSError names `path`.
    """
    with _named(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        # In its own folder, because the writer may create temporary files beside it, as safetensors does.
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
    """The same as `atomic_file` for a folder. An existing folder at `path` is replaced as the last step."""
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
    """Create a folder, and return it with a handle whose lock tells `remove_leftovers` that it is in use."""
    while True:
        path = Path(tempfile.mkdtemp(dir=parent, prefix=_PREFIX, suffix=suffix))
        try:
            handle = os.open(path, os.O_RDONLY)
        except FileNotFoundError:  # `remove_leftovers` of another process removed it before it was locked
            continue
        with suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if path.exists():  # as above
            return handle, path
        os.close(handle)


def remove_leftovers(folder: Path) -> list[Path]:
    """Remove what killed processes were writing in `folder` and below. Returns what was removed.

    What a running process is writing is locked, and stays. What was being replaced is moved back if its place is empty.
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
    """Whether the path is a temporary file or folder of `atomic_file` or `atomic_folder`, or inside one."""
    return any(part.startswith(_PREFIX) and part.endswith(_SUFFIX) for part in path.parts)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Inside the `with` block, make an OSError that names no file or a temporary one name `path`."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and (error.filename is None or is_temporary(Path(str(error.filename)))):
            error.filename, error.filename2 = str(path), None
        raise


def _sync(path: Path) -> None:
    """Write the contents of a file, or the entries of a folder, to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# Checksums


def checksum(path: Path) -> str:
    """The checksum of a file, in the form used in manifests. Raises OSError if the file cannot be read."""
    digest = xxh3_128()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return f"xxh3:{digest.hexdigest()}"


def checksum_of_bytes(data: bytes) -> str:
    """The checksum of bytes, in the form used in manifests."""
    return f"xxh3:{xxh3_128_hexdigest(data)}"


def checksum_of_data(data: Any) -> str:
    """The checksum of JSON data, which does not depend on formatting or the order of keys."""
    plain = json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return checksum_of_bytes(plain.encode())


def check_file(path: Path, expected: str, remedy: str = "restore it from a copy") -> None:
    """Raise InputError if the file is missing or does not match the checksum."""
    try:
        found = checksum(path)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; {remedy}") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    if found != expected:
        raise InputError(f"{path}: damaged: it does not match its checksum {expected}; {remedy}")


def listed_checksum(manifest: Any, name: str) -> str | None:
    """The checksum of a file in a manifest; None if the manifest has none, as in older versions."""
    listed = manifest.get(CHECKSUMS) if isinstance(manifest, Mapping) else None
    found = listed.get(name) if isinstance(listed, Mapping) else None
    return found if isinstance(found, str) else None


# JSON and YAML


def write_json(path: Path, data: Any, *, signed: bool = True) -> None:
    """Write JSON. An object gets its checksum as its last key, unless `signed` is False."""
    text = json_text(data, signed=signed)
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def json_text(data: Any, *, signed: bool = True) -> str:
    """The text that `write_json` writes."""
    if signed and isinstance(data, dict):
        plain = json.loads(json.dumps(data, allow_nan=False))  # with lists for tuples, as when it is read
        data = {**data, CHECKSUM: checksum_of_data(plain)}
    return json.dumps(data, indent=2, allow_nan=False) + "\n"


def read_json(path: Path, *, constants: Literal["refused", "text"] = "refused") -> Any:
    """Read what `write_json` wrote, without its checksum.

    constants: how to treat Infinity and NaN, which Python writes although JSON does not have them.

    Raises InputError if the file is missing, cannot be read, is not JSON, is too large, or does not match the checksum
    in it.
    """
    return parse_signed(read_bytes(path), str(path), constants=constants)


def parse_signed(text: bytes, where: str, *, constants: Literal["refused", "text"] = "refused") -> Any:
    """Parse the text of `json_text`, without its checksum. Raises InputError, which names `where`."""
    data = parse_json(text, where, constants=constants)
    if isinstance(data, dict) and CHECKSUM in data:
        expected = data.pop(CHECKSUM)
        if expected != checksum_of_data(data):
            raise InputError(
                f'{where}: does not match its key "{CHECKSUM}", so it is damaged or was edited; restore it, or, if it '
                "was edited on purpose, delete that key"
            )
    return data


def parse_json(text: bytes | str, where: str, *, constants: Literal["refused", "text"] = "refused") -> Any:
    """Parse JSON with finite numbers, and limits on nesting and digits. Raises InputError, which names `where`."""
    try:
        data = json.loads(
            text.decode("utf-8-sig") if isinstance(text, bytes) else text,
            parse_int=_integer,
            parse_float=_finite,
            parse_constant=_finite if constants == "refused" else str,
        )
    except RecursionError:
        raise InputError(f"{where}: not valid JSON (nested too deeply); the file is damaged") from None
    except ValueError as error:  # includes JSONDecodeError and UnicodeDecodeError
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
    """Raise InputError if data are nested too deeply, or have more nodes than `most_nodes`."""
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


# libyaml's, which is ten times faster; PyYAML can be installed without it.
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read_yaml(path: Path) -> Any:
    """Read a YAML file as plain data. Raises InputError if it is missing, damaged or too large."""
    text = read_bytes(path, _MOST_YAML)
    try:
        _check_depth(text.decode("utf-8"))
        data = yaml.load(text.decode("utf-8"), _PlainLoader)
    except RecursionError:
        raise InputError(f"{path}: not valid YAML (nested too deeply)") from None
    # PyYAML raises whatever its converters for dates and numbers raise.
    except (yaml.YAMLError, ValueError, OverflowError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from None
    _check_nesting(data, str(path), _MOST_NODES)
    return data


def _check_depth(text: str) -> None:
    """Raises RecursionError for text nested so deeply that libyaml's loader, which recurses, would crash."""
    depth = 0
    for event in yaml.parse(text, _Loader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _MOST_DEPTH + 2:  # `_check_nesting` says which depth is too much
            raise RecursionError


class _PlainLoader(_Loader):
    """A loader for mappings, lists, strings, numbers, booleans and null, but not dates, sets or binary data."""


def _plain_integer(loader: SafeConstructor, node: yaml.ScalarNode) -> int:
    if len(node.value) > _MOST_DIGITS:
        raise ValueError(f"a number of {len(node.value):,} digits")
    return loader.construct_yaml_int(node)


def _text_of(loader: SafeConstructor, node: Any) -> str:
    return str(loader.construct_scalar(node))


_PlainLoader.add_constructor("tag:yaml.org,2002:int", _plain_integer)


for _tag in ("timestamp", "binary", "set", "omap", "pairs"):
    _PlainLoader.add_constructor(f"tag:yaml.org,2002:{_tag}", _text_of)


def read_bytes(path: Path, most: int = _MOST_BYTES) -> bytes:
    """The bytes of a file. Raises InputError if it is missing, cannot be read, or is larger than `most`."""
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
    """Write a safetensors file. Returns its checksum, for the manifest beside it.

    Raises OSError, which names the file, if the disk is full or the file cannot be written for another reason.
    """
    try:
        with atomic_file(path) as temporary:
            save_file({k: t.detach().contiguous().cpu() for k, t in tensors.items()}, temporary, metadata)
            return checksum(temporary)
    except SafetensorError as error:  # safetensors wraps an OSError, with its number in the message
        code = re.search(r"os error (\d+)", str(error))
        if code is None:
            raise
        raise OSError(int(code[1]), os.strerror(int(code[1])), str(path)) from None


def _has_name(path: Path) -> bool:
    """Whether the path can be encoded: a file name may be any bytes, which safetensors does not accept."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def read_tensors(
    path: Path, expected: str | None = None, remedy: str = "write or copy it again"
) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file, and verify its checksum if `expected` is given.

    Raises InputError, with the `remedy`, if the file is missing, truncated or otherwise damaged.
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
