"""Reading local files as documents, one reader per format."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from saeforest.errors import InputError
from saeforest.text.document import Document
from saeforest.text.fields import Fields, Reading, has_text
from saeforest.text.opening import decoded, needs_data_extra, opened, suffix_of, unpacked_suffix, unreadable

Reader = Callable[[Path, str, Reading], Iterator[Document]]


def read_file(path: Path, name: str, reading: Reading) -> Iterator[Document]:
    """Iterate over the documents of a file; `name` begins their names. Raises InputError for an unknown suffix."""
    if not readable(path):
        advice = (
            "saeforest.train(x) in Python trains on a tensor"
            if path.suffix.lower() in (".pt", ".pth", ".npy", ".safetensors")
            else "convert the file"
        )
        raise InputError(f"{path}: expected a {SUFFIXES}, or a folder of such files; {advice}")
    reader = _READERS[unpacked_suffix(path)]
    if reader is _txt and reading.render is not None:
        raise InputError(f"{path}: text.chat = true, but this is plain text; set text.chat to false")
    return reader(path, name, reading)


def readable(path: Path) -> bool:
    """Whether a file of this name can be read, judging by its suffix."""
    kind, suffix = unpacked_suffix(path), suffix_of(path)
    return kind in _READERS and (suffix == kind or kind not in _UNPACKED_ONLY)


def holds_text(path: Path, reading: Reading) -> bool:
    """Whether a file in a folder holds text: a .csv or .tsv if its columns say so, a .json if it holds records.

    True in case of doubt: reading the file then raises an error that says what is wrong.
    """
    kind = unpacked_suffix(path)
    try:
        if kind in _DELIMITERS:
            return has_text(csv_columns(path, _DELIMITERS[kind]), reading)
        if kind == ".json":
            with opened(path) as stream:
                start = next((line for line in stream if line.strip()), b"").lstrip(b"\xef\xbb\xbf").strip()
                if not start.startswith(b"{"):
                    return True
                more = any(line.strip() for line in stream)
            try:
                first = json.loads(start)
            except ValueError:  # one object over many lines
                first, more = _whole(path), False
            return more or has_text(list(first), reading)
    except (InputError, RecursionError):
        return True
    return True


# Plain text


def _txt(path: Path, name: str, reading: Reading) -> Iterator[Document]:
    with opened(path) as stream:
        data = stream.read()
    yield Document(decoded(data, path), name)


# JSON


def _jsonl(path: Path, name: str, reading: Reading) -> Iterator[Document]:
    fields = Fields(str(path), reading)
    with opened(path) as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                record = parse_record(line, f"{path}:{number}")
                yield fields.document(record, f"{path}:{number}", f"{name}:{number}")
    fields.finish()


def _json(path: Path, name: str, reading: Reading) -> Iterator[Document]:
    """Read an array of records, one record per line, or a single record."""
    with opened(path) as stream:
        lines = [line for line in stream if line.strip()]
    start = lines[0].removeprefix(b"\xef\xbb\xbf").strip() if lines else b"{"
    if start.startswith(b"{") and (len(lines) < 2 or _is_json(start)):
        yield from _jsonl(path, name, reading)
        return
    whole, fields = _whole(path), Fields(str(path), reading)
    for number, record in enumerate(whole if isinstance(whole, list) else [whole], 1):
        where = f"{path}, record {number}"
        if not isinstance(record, dict):
            raise InputError(
                f'{where}: expected a JSON object with a "text", got a {type(record).__name__}; write the file as an '
                "array of objects"
            )
        yield fields.document(record, where, f"{name}:{number}")
    fields.finish()


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _whole(path: Path) -> Any:
    with opened(path) as stream:
        text = decoded(stream.read(), path)
    try:
        return json.loads(text)
    except RecursionError:
        raise InputError(f"{path}: not valid JSON (nested too deeply); fix the file") from None
    except json.JSONDecodeError as error:
        raise InputError(f"{path}:{error.lineno}: not valid JSON ({error.msg}); fix the file") from None
    except ValueError as error:  # a number of too many digits
        raise InputError(f"{path}: not valid JSON ({error}); fix the file") from None


def parse_record(line: bytes, where: str) -> dict[str, Any]:
    """The JSON object on a line. Raises InputError, naming `where`, if it is anything else."""
    try:
        record = json.loads(line.decode("utf-8-sig"))
    except RecursionError:
        raise InputError(f"{where}: the record is nested too deeply; fix or remove the line") from None
    except ValueError as error:
        why = " ".join(str(error).split())
        raise InputError(
            f"{where}: expected a JSON object in UTF-8 ({why}); fix or remove the line"
        ) from error
    if not isinstance(record, dict):
        raise InputError(
            f'{where}: expected a JSON object, got a {type(record).__name__}; write {{"text": ...}}'
        )
    return record


# Tables of text


def csv_records(path: Path, delimiter: str = ",") -> Iterator[tuple[list[str], dict[str, str], str]]:
    """For each row of a .csv file: the columns, the row as a dict, and the line on which it ends ("d.csv:12").

    Raises InputError for a malformed row.
    """
    for columns, row, where in _rows(path, delimiter):
        if row and len(row) != len(columns):
            raise InputError(
                f"{where}: expected {len(columns)} fields as in the first line, found {len(row)}; fix the row"
            )
        if row:
            yield columns, dict(zip(columns, row, strict=True)), where


def csv_columns(path: Path, delimiter: str = ",") -> list[str]:
    """The columns that the first line of a .csv file names."""
    return next(_rows(path, delimiter), ([], [], ""))[0]


def _rows(path: Path, delimiter: str) -> Iterator[tuple[list[str], list[str], str]]:
    """For each row: the header, the row, and the line on which it ends. The first item has the header and no row."""
    csv.field_size_limit(sys.maxsize)  # the module's default limit is shorter than many texts
    with opened(path) as stream:
        rows = csv.reader(
            (decoded(line, path, number) for number, line in enumerate(_lines(stream), 1)),
            delimiter=delimiter,
            strict=True,
        )
        try:
            columns = next(rows, [])
            yield columns, [], f"{path}:1"
            for row in rows:
                yield columns, row, f"{path}:{rows.line_num}"
        except csv.Error as error:
            raise InputError(f"{path}:{rows.line_num}: not valid CSV ({error}); fix the row") from error


def _lines(stream: io.BufferedIOBase) -> Iterator[bytes]:
    """Lines with their line ends: \\n, \\r\\n or \\r (old Macintosh files)."""
    for line in stream:
        yield from line.splitlines(keepends=True) if b"\r" in line else (line,)


def _csv(path: Path, name: str, reading: Reading) -> Iterator[Document]:
    delimiter = _DELIMITERS[unpacked_suffix(path)]
    fields = Fields(f"{path}:1", reading, csv_columns(path, delimiter))
    for _, record, where in csv_records(path, delimiter):
        yield fields.document(record, where, f"{name}:{where.rsplit(':', 1)[1]}")
    fields.finish()


# Arrow


def _parquet(path: Path, name: str, reading: Reading) -> Iterator[Document]:
    with _arrow_errors(path, "reading Parquet"):
        from pyarrow.parquet import ParquetFile

        with opened(path) as stream:
            file = ParquetFile(stream)
            fields = Fields(str(path), reading, file.schema_arrow.names)
            yield from _of_batches(file.iter_batches(columns=[fields.key]), fields, path, name)


def _arrow(path: Path, name: str, reading: Reading) -> Iterator[Document]:
    """Read Arrow's file format or its stream format, which `datasets` writes."""
    with _arrow_errors(path, "reading Arrow") as pyarrow, opened(path) as stream:
        magic = stream.read(6)
        stream.seek(0)
        if magic == b"ARROW1":
            file = pyarrow.ipc.open_file(stream)
            batches = (file.get_batch(i) for i in range(file.num_record_batches))
        else:
            file = batches = pyarrow.ipc.open_stream(stream)
        fields = Fields(str(path), reading, file.schema.names)
        yield from _of_batches((batch.select([fields.key]) for batch in batches), fields, path, name)


def _of_batches(batches: Iterator[Any], fields: Fields, path: Path, name: str) -> Iterator[Document]:
    row = 0
    for batch in batches:
        for record in batch.to_pylist():
            row += 1
            yield fields.document(record, f"{path}:{row}", f"{name}:{row}")
    fields.finish()


@contextmanager
def _arrow_errors(path: Path, what: str) -> Iterator[Any]:
    """Turn Arrow's exceptions into an InputError that names the file. Yields the pyarrow package."""
    try:
        import pyarrow
        import pyarrow.ipc
    except ImportError as error:
        raise needs_data_extra(f"{path}: {what}") from error
    try:
        yield pyarrow
    except (UnicodeDecodeError, pyarrow.ArrowException) as error:
        raise unreadable(path, error) from error


_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_READERS: dict[str, Reader] = {
    ".txt": _txt,
    ".jsonl": _jsonl,
    ".ndjson": _jsonl,
    ".json": _json,
    ".csv": _csv,
    ".tsv": _csv,
    ".parquet": _parquet,
    ".arrow": _arrow,
}
_UNPACKED_ONLY = (".parquet", ".arrow")  # these formats compress their columns themselves
SUFFIXES = f"{', '.join(list(_READERS)[:-1])} or {list(_READERS)[-1]} file"
