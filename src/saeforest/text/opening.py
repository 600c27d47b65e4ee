"""Opening text files, compressed or not; whatever goes wrong becomes an InputError of one line."""

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
from saeforest.extras import missing

# .bz2 and .xz are left out: Python's readers mistake damage in the middle of a file for its end.
_PACKED = (".gz", ".zst")
_BOMS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}


def suffix_of(path: Path) -> str:
    """The suffix of a file in lower case, that of a compressed file included: ".txt", ".jsonl.gz"."""
    suffixes = path.name.lower().split(".")[1:]
    if len(suffixes) > 1 and f".{suffixes[-1]}" in _PACKED:
        return f".{suffixes[-2]}.{suffixes[-1]}"
    return f".{suffixes[-1]}" if suffixes else ""


def unpacked_suffix(path: Path) -> str:
    """The suffix of a file after decompression: ".jsonl" for ".jsonl.gz"."""
    suffix = suffix_of(path)
    return suffix if suffix.count(".") < 2 else suffix[: suffix.rindex(".")]


@contextmanager
def opened(path: Path) -> Iterator[io.BufferedIOBase]:
    """Open a file as a stream of decompressed bytes.

    Raises InputError, naming the file, if it is not a regular file, can't be read, is damaged, or changes meanwhile.
    """
    try:
        if not stat.S_ISREG(
            os.stat(path).st_mode
        ):  # a pipe gives its text once, and text is read several times
            raise InputError(f"{path}: not a regular file; save the text to a file")
        with path.open("rb") as raw:
            before = os.fstat(raw.fileno())
            with _unpacked(path, raw) as stream:
                yield stream
            after = os.fstat(raw.fileno())
        if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
            raise InputError(f"{path}: changed while it was being read; run again once it is complete")
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
    """Decode bytes of a file that begin at line `first_line`. Raises InputError, naming the line, if not UTF-8."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = first_line + data.count(b"\n", 0, error.start)
        looks = f" (it looks like {_BOMS[data[:2]]})" if data[:2] in _BOMS else ""
        raise InputError(f"{path}:{line}: expected UTF-8 text{looks}; convert the file to UTF-8") from error
    if (place := data.find(b"\0")) >= 0:
        line = first_line + data.count(b"\n", 0, place)
        raise InputError(
            f"{path}:{line}: contains a NUL byte, so it is damaged or not UTF-8; repair it or convert it to UTF-8"
        )
    return text


def unreadable(path: Path, error: Exception) -> InputError:
    """The InputError for a file that can't be read."""
    why = getattr(error, "strerror", None) or str(error).strip() or type(error).__name__
    return InputError(
        f"{path}: can't be read ({' '.join(str(why).split())}); check the file and its permissions"
    )


def needs_data_extra(what: str) -> InputError:
    """The InputError for an action (`what`) that needs the optional packages of the `data` extra."""
    return missing("data", what)
