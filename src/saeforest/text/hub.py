"""Data sets of the Hugging Face Hub, streamed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any, NamedTuple

from saeforest.errors import InputError
from saeforest.text.document import Document
from saeforest.text.fields import Fields, Reading
from saeforest.text.opening import needs_data_extra

_NAME = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(@(?P<revision>[^:@\s]+))?(:(?P<subset>[^/:@]+))?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_PATIENCE_S = 10.0


class HubName(NamedTuple):
    """The parts of `org/name@revision:subset`; revision and subset are optional."""

    name: str
    revision: str | None
    subset: str | None

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        return f"{self.name}{revision}{f':{self.subset}' if self.subset else ''}"


def hub_name(source: str) -> HubName | None:
    """The parts of a Hub data set's name; None if `source` is no such name."""
    found = _NAME.fullmatch(source)
    return HubName(*found.group("name", "revision", "subset")) if found else None


def pinned(source: str) -> str:
    """The source with the revision of a Hub data set replaced by its current commit.

    Other sources are returned unchanged, and so is any source if the Hub cannot be reached.
    """
    place = hub_name(source)
    if place is None or (place.revision and _COMMIT.fullmatch(place.revision)):
        return source
    from huggingface_hub import HfApi

    try:
        found = HfApi().dataset_info(place.name, revision=place.revision, timeout=_PATIENCE_S)
    except Exception:  # offline, or there is no such data set: reading it will say so
        return source
    return str(place._replace(revision=found.sha)) if found.sha else source


def read_hub(source: str, place: HubName, reading: Reading) -> Iterator[Document]:
    """Iterate over the documents of a split of a Hub data set. Raises InputError if it can't be read."""
    what = f"text source '{source}'"
    fields = Fields(what, reading)
    for row, where in hub_rows(what, source, place, reading.split):
        yield fields.document(row, where, where)
    fields.finish()


def hub_rows(what: str, source: str, place: HubName, split: str) -> Iterator[tuple[dict[str, Any], str]]:
    """Iterate over the rows of a split of a Hub data set, each with its place. what: begins the errors' messages.

    Raises InputError if it can't be read.
    """
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise needs_data_extra(f"{what}: reading a Hub data set") from error
    revision: dict[str, Any] = {"revision": place.revision} if place.revision else {}
    try:
        rows = load_dataset(place.name, place.subset, split=split, streaming=True, **revision)
        for number, row in enumerate(rows, 1):
            yield row, f"{source}:{number}"
    except InputError:
        raise
    except Exception as error:  # the Hub's client has no common base of its many errors
        if (package := _missing_package(error)) is not None:
            raise InputError(
                f"{what}: reading it needs the package {package}: run `pip install "
                f"{'saeforest[data]' if package == 'zstandard' else package!r}`"
            ) from error
        raise InputError(
            f"{what}: not a local file, and split '{split}' of the Hub data set can't be read "
            f"({_why(error)}); check the name, the subset, the revision, text.split and the network"
        ) from error


def _missing_package(error: BaseException) -> str | None:
    """The missing package that caused the error; None if the cause is another."""
    for cause in _causes(error):
        if isinstance(cause, ModuleNotFoundError) and cause.name:
            return cause.name.split(".")[0]
        if "zstd" in str(cause) and find_spec("zstandard") is None:
            return "zstandard"
    return None


def _causes(error: BaseException) -> list[BaseException]:
    """The error, its cause, the cause of that, and so on."""
    chain = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None and cause not in chain:
        chain.append(cause)
    return chain


def _why(error: BaseException) -> str:
    """The message of an error and of its first cause."""
    lines = [_first_line(cause) for cause in (error, _causes(error)[-1])]
    return lines[0] if lines[0] == lines[1] else f"{lines[0]}; first cause: {lines[1]}"


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
