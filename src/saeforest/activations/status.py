"""What a store holds: which of its shards are there, missing or damaged, whether it is complete or not."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ..errors import InputError
from .folder import Folder
from .plan import PLAN, Entry, entry_of, open_file, read_entry, read_plan, shard_file
from .sources import open_manifest
from .writer import MANIFEST


@dataclass
class StoreStatus:
    """The shards of a store."""

    complete: bool
    """Whether the manifest is there, so that the store can be used."""
    shards: int
    """Number of shards of the whole harvest."""
    there: list[str] = field(default_factory=list)
    """Shards that are there and whole."""
    begun: list[str] = field(default_factory=list)
    """Shards of which the beginning is there."""
    missing: list[str] = field(default_factory=list)
    damaged: dict[str, str] = field(default_factory=dict)
    """Damaged files, and what is wrong with each."""
    activations: int = 0
    """Number of activations in the shards that are there."""

    def to_dict(self) -> dict[str, Any]:
        """The same as JSON values."""
        return dict(vars(self))


def store_status(folder: Folder, *, quick: bool = False) -> StoreStatus:
    """Check every shard of a store.

    quick: compare only the sizes of files with the entries, and not what is in them.

    Raises InputError if there is no store, or its manifest or plan is damaged.
    """
    if folder.has(MANIFEST):
        return _of_complete(folder, quick)
    plan = read_plan(folder)
    if plan is None:
        if folder.has(MANIFEST):  # finished between the two looks
            return _of_complete(folder, quick)
        raise InputError(f"{folder}: neither {MANIFEST} nor {PLAN}; expected a folder of `saeforest harvest`")
    found = StoreStatus(complete=False, shards=plan.n_shards)
    sizes, digest = folder.sizes(), plan.digest()
    for index in range(plan.n_shards):
        file, name = shard_file(index), entry_of(shard_file(index))
        if name not in sizes:
            (found.begun if entry_of(open_file(index)) in sizes else found.missing).append(file)
            continue
        try:
            entry = read_entry(folder, name)
            if entry.plan != digest:
                raise InputError(f"{folder.path(name)}: written by a worker with other settings")
            _check(folder, entry, sizes, quick)
        except InputError as error:
            found.damaged[file] = _said(folder, file, error)
            continue
        found.there.append(file)
        found.activations += entry.rows
    return found


def _check(folder: Folder, entry: Entry, sizes: dict[str, int], quick: bool) -> None:
    if not entry.rows:
        return
    if entry.file not in sizes:
        raise InputError(f"{folder.path(entry.file)}: no such file")
    if sizes[entry.file] != entry.bytes:
        raise InputError(
            f"{folder.path(entry.file)}: {sizes[entry.file]:,} bytes, and its entry says {entry.bytes:,}"
        )
    if not quick:
        folder.check(entry.file, entry.file_checksum)


def _of_complete(folder: Folder, quick: bool) -> StoreStatus:
    manifest = open_manifest(folder)
    found = StoreStatus(complete=True, shards=len(manifest["shards"]))
    sizes = folder.sizes()
    for shard in manifest["shards"]:
        file = shard["file"]
        if file not in sizes:
            found.missing.append(file)
            continue
        try:
            if not quick and (expected := shard.get("checksum")):
                folder.check(file, expected)
        except InputError as error:
            found.damaged[file] = _said(folder, file, error)
            continue
        found.there.append(file)
        found.activations += shard["rows"]
    return found


def _said(folder: Folder, file: str, error: InputError) -> str:
    """What is wrong with a shard, without the advice."""
    return str(error).removeprefix(f"{folder.path(file)}: ").removeprefix(f"{folder}/").split("; ")[0]
