"""Folders of text: which files are read, in which order, and what is skipped."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from saeforest.errors import InputError
from saeforest.files import read_json
from saeforest.output import note
from saeforest.text.document import Document
from saeforest.text.fields import Reading
from saeforest.text.opening import suffix_of
from saeforest.text.readers import SUFFIXES, holds_text, read_file, readable

# Files that come with a text but are not part of it.
_ABOUT_TEXT = re.compile(r"(licen[cs]es?|copying|notice|readme|requirements)([-_. ].*)?\.txt", re.IGNORECASE)
_OF_RUN = re.compile(r"^(model|site|data):", re.MULTILINE)
_SAVED, _SAVED_SPLITS = ("state.json", "dataset_info.json"), "dataset_dict.json"
_NAMED = 12
_said: set[str] = set()


@dataclass
class _Found:
    """What a folder contains."""

    files: dict[str, Path] = field(default_factory=dict)
    """Files to read, by their path within the folder."""
    passed: Counter[str] = field(default_factory=Counter)
    """Number of skipped entries of each kind."""
    folders: set[tuple[int, int]] = field(default_factory=set)
    """Folders already visited, by device and inode."""
    links: list[tuple[Path, str]] = field(default_factory=list)
    """Linked folders still to visit."""


def read_folder(folder: Path, reading: Reading) -> Iterator[Document]:
    """Iterate over the documents of all text files below a folder, sorted by path. Reports what is skipped.

    Raises InputError if there is no text file.
    """
    if what := _of_a_tool(folder):
        raise InputError(f"{folder}: {what}, not text; give the folder or file that holds the text")
    found = _look_into(folder, reading)
    if reading.split != "train" and not any(path.suffix == ".arrow" for path in found.files.values()):
        raise InputError(
            f"text.split = {reading.split}: {folder} is a plain folder of files and has no splits; give a folder that "
            "holds the files of one split"
        )
    if not found.files:
        holds = _counted(found.passed) or "nothing"
        raise InputError(f"{folder}: no {SUFFIXES} with text; it contains {holds}")
    _say(folder, found)
    names = sorted(found.files)
    return (document for name in names for document in read_file(found.files[name], name, reading))


def _say(folder: Path, found: _Found) -> None:
    """Reported once per process, since training and held-out text are read from the same folder."""
    passed = f"; skipping {_counted(found.passed)}" if found.passed else ""
    line = f"{folder}: reading {_counted(Counter(map(suffix_of, found.files.values())))}{passed}"
    if line not in _said:
        _said.add(line)
        note(line)


def _counted(things: Counter[str]) -> str:
    shown = [f"{n:,} {what}" for what, n in sorted(things.items(), key=lambda pair: (-pair[1], pair[0]))]
    rest = sum(sorted(things.values(), reverse=True)[_NAMED:])
    return ", ".join(shown[:_NAMED] + ([f"{rest:,} others"] if rest else []))


def _look_into(folder: Path, reading: Reading) -> _Found:
    found = _Found()
    _walk(folder, "", reading, found)
    # Links come last: a folder that a link leads to may lie in this folder itself, and is then already read.
    while found.links:
        path, name = found.links.pop(0)
        if _identity(path) in found.folders or _is_above(path, folder):
            found.passed["linked folder that was already read"] += 1
        else:
            _walk(path, name, reading, found)
    return found


def _walk(folder: Path, name: str, reading: Reading, found: _Found) -> None:
    found.folders.add(_identity(folder))
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise InputError(f"{folder}: can't be read ({error.strerror}); check its permissions") from None
    if (saved := _saved_files(folder, reading)) is not None:
        found.files |= {f"{name}{path.relative_to(folder).as_posix()}": path for path in saved}
        found.passed["other splits and metadata of a saved data set"] += len(entries) - len(saved)
        found.passed += Counter()  # without zeros
        return
    for entry in entries:
        path, inner = Path(entry.path), f"{name}{entry.name}"
        if entry.name.startswith("."):
            found.passed["hidden"] += 1
        elif path.is_dir():
            if what := _of_a_tool(path):
                found.passed[f"folder that is {what} ({inner})"] += 1
            elif entry.is_symlink():
                found.links.append((path, f"{inner}/"))
            else:
                _walk(path, f"{inner}/", reading, found)
        elif not path.is_file():
            found.passed["broken link" if entry.is_symlink() else "pipe or device"] += 1
        elif _ABOUT_TEXT.fullmatch(entry.name):
            found.passed[f"{entry.name} (not text)"] += 1
        elif not readable(path):
            found.passed[suffix_of(path) or "without a suffix"] += 1
        elif not holds_text(path, reading):
            found.passed[f"{suffix_of(path)} without a text field ({entry.name})"] += 1
        else:
            found.files[inner] = path


def _identity(folder: Path) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def _is_above(path: Path, folder: Path) -> bool:
    """Whether a link leads to a folder that contains the link: following it would never end."""
    target = path.resolve()
    return any(
        target == inner or target in inner.parents for inner in (folder.resolve(), path.parent.resolve())
    )


# Folders that tools write


def _of_a_tool(folder: Path) -> str | None:
    """What kind of folder this is if a tool wrote it: a run, harvested activations, an SAE, an index, a model."""

    def has(*names: str) -> bool:
        return all((folder / name).is_file() for name in names)

    if has("config.yaml") and (
        has("log.jsonl") or (folder / "sae").is_dir() or _says_run(folder / "config.yaml")
    ):
        return "a run of saeforest"
    if has("activations.json"):
        return "harvested activations"
    if has("cfg.json", "sae_weights.safetensors"):
        return "an SAE"
    if has("index.json", "index.safetensors"):
        return "an index of saeforest"
    if has("recovery.json"):
        return "a synthetic run of saeforest"
    if has("report.html", "report.md", "report.json"):
        return "a report of saeforest"
    beside = (
        "tokenizer.json",
        "tokenizer_config.json",
        "merges.txt",
        "model.safetensors",
        "pytorch_model.bin",
    )
    return "a language model" if any(has("config.json", other) for other in beside) else None


def _says_run(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            start = file.read(1 << 16).decode("utf-8", "replace")
    except OSError:
        return False
    return len(set(_OF_RUN.findall(start))) == 3


def _saved_files(folder: Path, reading: Reading) -> list[Path] | None:
    """The files of one split of a data set that `datasets` saved to a folder; None if it is no such folder."""
    if (folder / _SAVED_SPLITS).is_file():
        splits = _names(folder / _SAVED_SPLITS, "splits")
        if reading.split not in splits:
            raise InputError(
                f"{folder}: has no split '{reading.split}'; set text.split to one of {', '.join(splits)}"
            )
        inner = folder / reading.split
        if not all((inner / name).is_file() for name in _SAVED):
            raise InputError(f"{inner}: this saved data set is incomplete; save it again")
        return _saved_files(inner, reading)
    if not all((folder / name).is_file() for name in _SAVED):
        return None
    listed = read_json(folder / "state.json")
    entries = listed.get("_data_files") if isinstance(listed, dict) else None
    names = [e.get("filename") for e in entries if isinstance(e, dict)] if isinstance(entries, list) else []
    for name in names:
        if not isinstance(name, str) or Path(name).name != name or not (folder / name).is_file():
            raise InputError(
                f"{folder / 'state.json'}: names the file {name!r}, which is missing; save the data set again"
            )
    return [folder / str(name) for name in names]


def _names(path: Path, key: str) -> list[str]:
    listed = read_json(path)
    names = listed.get(key) if isinstance(listed, dict) else None
    if not isinstance(names, list) or not all(isinstance(n, str) and Path(n).name == n for n in names):
        raise InputError(f'{path}: expected a list of names under "{key}"; save the data set again')
    return names
