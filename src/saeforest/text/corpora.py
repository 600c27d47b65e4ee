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
    """The documents of `source`, in an order that only `source`, `seed` and the data decide.

    Documents without any visible character are left out. A source is one of

    - `"packaged"`, or some of its parts as in `"packaged:wiki"` or `"packaged:wiki,recipes"`. The parts are
      wiki, chat, recipes and python (the sources of the running Python's standard library). `seed` shuffles
      each part; the parts take turns so that each gives as many characters as the others while it lasts.
    - a local file: .txt (passages of some pages stand for documents), .jsonl, .json, .csv, .tsv, .parquet or
      .arrow (a document a record: `fields` says which field of it), the text ones also as .gz or .zst.
      Or a folder: all such files below it, sorted by path (`folder` says what is passed over); there a .txt is
      one document. Or a data set that `datasets` has saved. What exists locally is never looked for on the Hub.
    - `"org/name"`, `"org/name:subset"`, `"org/name@revision"` or `"org/name@revision:subset"`: a split of a
      Hub data set, streamed.

    Raises:
        InputError: the source does not exist, a package it needs is missing, or a file of it can't be read.
            This call tells of a source that does not exist, the iteration of damage when it gets there.
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
    """Where a source is on this machine, if it is."""
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
    """Whether a source is to be looked for on the Hub."""
    local = source.startswith((".", "/", "~")) or readable(Path(source)) or local_path(source) is not None
    return not local and parts_of(source) is None and hub_name(source) is not None


def _file(path: Path, reading: Reading) -> Iterator[Document]:
    if reading.split != "train":
        raise InputError(f"text.split = {reading.split}: {path} is a file, which has no splits; leave it out")
    found = read_file(path, path.name, reading)
    # A lone text would be all training or all held out: its passages stand for documents.
    return _passages(found) if unpacked_suffix(path) == ".txt" else found


def _passages(found: Iterator[Document]) -> Iterator[Document]:
    for document in found:
        for passage in cut(document.text, document.name, [PARAGRAPH, LINE]):
            yield Document(passage.text, passage.name)
