"""Files of text opened for reading: unpacked where they are compressed, and every trouble with them one line."""

from __future__ import annotations

import gzip
import io
import os
import stat
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

from saeforest.errors import InputError

# Python's readers of .bz2 and .xz take damage in the middle for the end: they are not among these.
_PACKED = (".gz", ".zst")
_BOMS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}


def suffix_of(path: Path) -> str:
    """What a file is by its name, in small letters: ".txt", ".jsonl.gz"."""
    suffixes = path.name.lower().split(".")[1:]
    if len(suffixes) > 1 and f".{suffixes[-1]}" in _PACKED:
        return f".{suffixes[-2]}.{suffixes[-1]}"
    return f".{suffixes[-1]}" if suffixes else ""


def unpacked_suffix(path: Path) -> str:
    """What a file is once it is unpacked: ".jsonl" for ".jsonl.gz"."""
    suffix = suffix_of(path)
    return suffix if suffix.count(".") < 2 else suffix[: suffix.rindex(".")]


@contextmanager
def opened(path: Path) -> Iterator[io.BufferedIOBase]:
    """The bytes of a file, unpacked.

    Raises InputError that names it where it is no regular file, cannot be read, is damaged, or changes meanwhile.
    """
    try:
        if not stat.S_ISREG(
            os.stat(path).st_mode
        ):  # a pipe gives its text once, and text is read several times
            raise InputError(f"{path}: not a file on disk; write the text into one")
        with path.open("rb") as raw:
            before = os.fstat(raw.fileno())
            with _unpacked(path, raw) as stream:
                yield stream
            after = os.fstat(raw.fileno())
        if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
            raise InputError(f"{path}: changed while it was read; wait until it is whole, and run again")
    except (OSError, EOFError, zlib.error) as error:
        raise unreadable(path, error) from error


@contextmanager
def _unpacked(path: Path, raw: io.BufferedReader) -> Iterator[io.BufferedIOBase]:
    packed = f".{path.name.lower().rsplit('.', 1)[-1]}"
    if packed not in _PACKED:
        yield raw
    elif packed == ".gz":
        with gzip.GzipFile(fileobj=raw) as stream:
            yield stream
    else:
        try:
            import pyarrow  # unlike zstandard it notices a stream that is cut off
        except ImportError as error:
            raise needs_data_extra(f"{path}: unpacking .zst") from error
        # Arrow closes what it has read.
        own = pyarrow.PythonFile(os.fdopen(os.dup(raw.fileno()), "rb"), "r")
        with pyarrow.CompressedInputStream(own, "zstd") as stream:
            yield io.BufferedReader(cast(io.RawIOBase, stream), 1 << 20)


def decoded(data: bytes, path: Path, first_line: int = 1) -> str:
    """The text of some bytes of a file. Raises InputError that names the line where they are not UTF-8."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = first_line + data.count(b"\n", 0, error.start)
        looks = f" (it looks like {_BOMS[data[:2]]})" if data[:2] in _BOMS else ""
        raise InputError(f"{path}:{line}: expected UTF-8 text{looks}; convert the file to UTF-8") from error
    if (place := data.find(b"\0")) >= 0:
        line = first_line + data.count(b"\n", 0, place)
        raise InputError(
            f"{path}:{line}: holds a NUL byte, so it is damaged, or in another encoding than UTF-8; mend or convert it"
        )
    return text


def unreadable(path: Path, error: Exception) -> InputError:
    why = getattr(error, "strerror", None) or str(error).strip() or type(error).__name__
    return InputError(
        f"{path}: can't be read ({' '.join(str(why).split())}); check the file and its permissions"
    )


def needs_data_extra(what: str) -> InputError:
    return InputError(f"{what} needs more packages: run `pip install 'saeforest[data]'`")
