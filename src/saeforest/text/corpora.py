"""Where documents come from: the packaged corpus, local files, or a data set of the Hugging Face Hub."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from saeforest.errors import InputError
from saeforest.text.document import LINE, PARAGRAPH, Document, cut
from saeforest.text.fields import Reading
from saeforest.text.folder import read_folder
from saeforest.text.hub import hub_name, read_hub
from saeforest.text.opening import unpacked_suffix
from saeforest.text.packaged import packaged, parts_of
from saeforest.text.readers import read_file, readable

_PLAIN = Reading()


def documents(source: str, *, seed: int = 0, reading: Reading = _PLAIN) -> Iterator[Document]:
    """Iterate over the documents of `source`, in an order that depends only on `source`, `seed` and the data.

    Documents without any visible character are skipped. A source is one of

    - `"packaged"`, or some of its parts as in `"packaged:wiki"` or `"packaged:wiki,recipes"`. The parts are
      wiki, chat, recipes and python (the source of the running Python's standard library). `seed` shuffles
      each part. The parts are interleaved so that, until one runs out, all contribute equally many characters.
    - a local file: .txt (cut into passages of a few pages, one document each), .jsonl, .json, .csv, .tsv, .parquet
      or .arrow (one document per record; see `fields` for which field is the text). Text formats may be compressed
      as .gz or .zst.
    - a local folder: all such files below it, sorted by path (see `folder` for what is skipped). In a folder, a .txt
      file is one document. A folder saved by `datasets` is read too.
    - `"org/name"`, `"org/name:subset"`, `"org/name@revision"` or `"org/name@revision:subset"`: a split of a
      Hub data set, streamed. A local path of the same name takes precedence.

    Raises:
        InputError: the source does not exist, a package it needs is missing, or one of its files can't be read.
            The call itself raises for a source that does not exist; iterating raises when it reaches a damaged file.
    """
    return (document for document in _found(source, seed, reading) if document.text.strip())


def _found(source: str, seed: int, reading: Reading) -> Iterator[Document]:
    if (parts := parts_of(source)) is not None:
        for key, given in (
            ("split", reading.split != "train"),
            ("column", reading.column),
            ("chat", reading.render),
        ):
            if given:
                raise InputError(f"text.{key}: the packaged corpus is plain text and has none; leave it out")
        return packaged(parts, seed)
    if (path := local_path(source)) is not None:
        if path.is_dir():
            return read_folder(path, reading)
        return _file(path, reading)
    if not source.startswith((".", "/", "~")) and not readable(Path(source)):
        place = hub_name(source)
        if place is not None:
            return read_hub(source, place, reading)
    raise InputError(
        f"text source '{source}': no such file or folder; give a path that exists, a Hub data set as "
        "'org/name', 'org/name:subset' or 'org/name@revision:subset' (its split is text.split), or 'packaged'"
    )


def local_path(source: str) -> Path | None:
    """The local path of a source; None if there is no such file or folder."""
    try:
        path = Path(os.path.expanduser(source))
        return path if source and path.exists() else None
    except PermissionError as error:
        raise InputError(
            f"text source '{source}': {error.strerror}; check the permissions of its folders"
        ) from None
    except (OSError, ValueError):  # too long for a name, or with a NUL in it
        return None


def is_hub_source(source: str) -> bool:
    """Whether a source names a Hub data set rather than a local file, a folder or the packaged corpus."""
    local = source.startswith((".", "/", "~")) or readable(Path(source)) or local_path(source) is not None
    return not local and parts_of(source) is None and hub_name(source) is not None


def _file(path: Path, reading: Reading) -> Iterator[Document]:
    if reading.split != "train":
        raise InputError(f"text.split = {reading.split}: {path} is a file, which has no splits; leave it out")
    found = read_file(path, path.name, reading)
    # A single text would be all training or all held-out text, so its passages stand in for documents.
    return _passages(found) if unpacked_suffix(path) == ".txt" else found


def _passages(found: Iterator[Document]) -> Iterator[Document]:
    for document in found:
        for passage in cut(document.text, document.name, [PARAGRAPH, LINE]):
            yield Document(passage.text, passage.name)
