"""Texts with labels, for measures that ask how well a label can be read off a code."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from saeforest.errors import InputError
from saeforest.schema import listed, shown
from saeforest.text.fields import text_of
from saeforest.text.opening import decoded, opened
from saeforest.text.packaged import WIKI
from saeforest.text.readers import csv_columns, csv_records, parse_record

_TOPICS = "packaged:topics"
_NO_TOPIC = "Uncategorized"


class LabelledText(NamedTuple):
    """A text, its label, and where a reader finds it."""

    text: str
    label: str
    name: str


def labelled(source: str) -> list[LabelledText]:
    """The texts of `source` with their labels, in its order; those without any visible character are left out.

    A source is one of

    - `"packaged:topics"`: Wikipedia's introductions of the packaged corpus, labelled by their topic; those that
      have none are left out.
    - a .jsonl file: an object a line, with a "text" and a "label" (a string or a whole number).
    - a .csv file whose first line names the columns, "text" and "label" among them.
    - a folder: the .txt files in each of its subfolders, which is their label. Hidden ones are passed over.

    Raises:
        InputError: the source does not exist, its package is missing, a file of it can't be read, or it is empty.
    """
    path = Path(os.path.expanduser(source))
    if source == _TOPICS:
        found = _topics()
    elif source and path.is_dir():
        found = _folder(path)
    elif source and path.exists():
        found = _reader(path)(path)
    else:
        raise InputError(
            f"labelled texts '{source}': no such file or folder; give a .jsonl, a .csv, a folder with a subfolder "
            f"for each label, or '{_TOPICS}'"
        )
    texts = [text for text in found if text.text.strip()]
    if not texts:
        raise InputError(f"labelled texts '{source}': expected some texts, found none")
    return texts


def _topics() -> Iterator[LabelledText]:
    for article in WIKI.read().values():
        if article["topic"] != _NO_TOPIC:
            title = article["title"]
            yield LabelledText(f"{title}\n\n{article['extract']}", article["topic"], f"wiki: {title}")


def _folder(path: Path) -> Iterator[LabelledText]:
    for file in sorted(path.glob("*/*")):
        hidden = any(part.startswith(".") for part in file.relative_to(path).parts)
        if file.suffix.lower() == ".txt" and file.is_file() and not hidden:
            with opened(file) as stream:
                text = decoded(stream.read(), file)
            yield LabelledText(text, file.parent.name, f"{file.parent.name}/{file.name}")


def _jsonl(path: Path) -> Iterator[LabelledText]:
    with opened(path) as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                where = f"{path}:{number}"
                record = parse_record(line, where)
                text = text_of(record, "text", where)
                yield LabelledText(text, _label(record.get("label"), where), f"{path.name}:{number}")


def _csv(path: Path) -> Iterator[LabelledText]:
    columns = csv_columns(path)
    for name in ("text", "label"):
        if columns.count(name) != 1:
            found = listed(columns)
            raise InputError(
                f'{path}:1: expected the columns "text" and "label", found {found}; name them so, one each'
            )
    for _, row, where in csv_records(path):
        name = f"{path.name}:{where.rsplit(':', 1)[1]}"
        yield LabelledText(row["text"], _label(row["label"], where), name)


def _label(label: object, where: str) -> str:
    if isinstance(label, str) and label.strip():
        return label.strip()
    if isinstance(label, int):
        return str(label)
    found = "nothing" if label in (None, "") else shown(label)
    raise InputError(f'{where}: expected a string or a whole number under "label", found {found}')


_READERS: dict[str, Callable[[Path], Iterator[LabelledText]]] = {".jsonl": _jsonl, ".csv": _csv}


def _reader(path: Path) -> Callable[[Path], Iterator[LabelledText]]:
    if path.suffix.lower() not in _READERS:
        expected = " or ".join(_READERS)
        raise InputError(f"{path}: expected a {expected} file, or a folder with a subfolder for each label")
    return _READERS[path.suffix.lower()]
