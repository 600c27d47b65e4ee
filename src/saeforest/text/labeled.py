"""Texts with labels, for measures of how well a label can be predicted from SAE features."""

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


class LabeledText(NamedTuple):
    """A text, its label, and a name by which a person finds it."""

    text: str
    label: str
    name: str


def labeled(source: str) -> list[LabeledText]:
    """Read the labeled texts of `source`, in order. Texts without any visible character are skipped.

    A source is one of

    - `"packaged:topics"`: the Wikipedia introductions of the packaged corpus, labeled by topic; those without a
      topic are skipped.
    - a .jsonl file: one object per line, with a "text" and a "label" (a string or an integer).
    - a .csv file whose first line names the columns, "text" and "label" among them.
    - a folder: the .txt files in each of its subfolders; the subfolder's name is the label. Hidden files are skipped.

    Raises:
        InputError: the source does not exist or is empty, its package is missing, or one of its files can't be read.
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
            f"labeled texts '{source}': no such file or folder; give a .jsonl, a .csv, a folder with a subfolder "
            f"for each label, or '{_TOPICS}'"
        )
    texts = [text for text in found if text.text.strip()]
    if not texts:
        raise InputError(f"labeled texts '{source}': expected at least one text, found none")
    return texts


def _topics() -> Iterator[LabeledText]:
    for article in WIKI.read().values():
        if article["topic"] != _NO_TOPIC:
            title = article["title"]
            yield LabeledText(f"{title}\n\n{article['extract']}", article["topic"], f"wiki: {title}")


def _folder(path: Path) -> Iterator[LabeledText]:
    for file in sorted(path.glob("*/*")):
        hidden = any(part.startswith(".") for part in file.relative_to(path).parts)
        if file.suffix.lower() == ".txt" and file.is_file() and not hidden:
            with opened(file) as stream:
                text = decoded(stream.read(), file)
            yield LabeledText(text, file.parent.name, f"{file.parent.name}/{file.name}")


def _jsonl(path: Path) -> Iterator[LabeledText]:
    with opened(path) as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                where = f"{path}:{number}"
                record = parse_record(line, where)
                text = text_of(record, "text", where)
                yield LabeledText(text, _label(record.get("label"), where), f"{path.name}:{number}")


def _csv(path: Path) -> Iterator[LabeledText]:
    columns = csv_columns(path)
    for name in ("text", "label"):
        if columns.count(name) != 1:
            found = listed(columns)
            raise InputError(
                f'{path}:1: expected one column "text" and one "label", found {found}; rename the columns'
            )
    for _, row, where in csv_records(path):
        name = f"{path.name}:{where.rsplit(':', 1)[1]}"
        yield LabeledText(row["text"], _label(row["label"], where), name)


def _label(label: object, where: str) -> str:
    if isinstance(label, str) and label.strip():
        return label.strip()
    if isinstance(label, int):
        return str(label)
    found = "nothing" if label in (None, "") else shown(label)
    raise InputError(f'{where}: expected a string or an integer under "label", found {found}')


_READERS: dict[str, Callable[[Path], Iterator[LabeledText]]] = {".jsonl": _jsonl, ".csv": _csv}


def _reader(path: Path) -> Callable[[Path], Iterator[LabeledText]]:
    if path.suffix.lower() not in _READERS:
        expected = " or ".join(_READERS)
        raise InputError(f"{path}: expected a {expected} file, or a folder with a subfolder for each label")
    return _READERS[path.suffix.lower()]
