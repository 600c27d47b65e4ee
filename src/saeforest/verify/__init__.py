"""Checking that files are intact: `verify` checks every file in a folder and says how damage can be repaired.

A file with a checksum (its own, or one in a manifest next to it) is compared with it, and its contents are checked
against the format of its kind. Nothing is changed.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from ..errors import InputError
from ..files import is_temporary
from .finding import Finding
from .kinds import checks_of, other_file

__all__ = ["Finding", "summary", "verify"]


def verify(path: str | Path) -> list[Finding]:
    """Check every file that saeforest wrote in a folder and its subfolders, or one such file.

    The folder may be a run, a trained SAE, a checkpoint, harvested activations, an index, a forest, records of
    measures, results, the cache of models, or a folder that contains some of these.

    Raises InputError if there is no such file.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path}: no such file or folder")
    found = list(_walk(path if path.is_dir() else path.parent))
    if not path.is_dir():
        found = [finding for finding in found if finding.path == path]
    if not found:
        raise InputError(
            f"{path}: no file written by saeforest; expected a run, a trained SAE, a checkpoint, harvested "
            "activations, an index, a forest, records of measures, results, or the cache of models"
        )
    return found


def summary(findings: list[Finding]) -> str:
    """The number of intact and damaged files, in one line."""
    sound = [finding for finding in findings if finding.sound]
    damaged = sum(bool(finding.problem) and not finding.leftover for finding in findings)
    left = sum(finding.leftover for finding in findings)
    without = sum(not finding.has_checksum for finding in sound)
    parts = [f"{len(sound):,} {_files(len(sound))} intact"]
    if without:
        parts[0] += f" ({without:,} of them without a checksum: only their format could be checked)"
    if damaged:
        parts.append(f"{damaged:,} damaged")
    if left:
        parts.append(f"{left:,} left behind by killed processes")
    return ", ".join(parts)


def _files(n: int) -> str:
    return "file" if n == 1 else "files"


# Walking through folders


def _walk(root: Path) -> Iterator[Finding]:
    unreadable: list[OSError] = []
    for place, folders, names in os.walk(root, onerror=unreadable.append):
        folder = Path(place)
        for name in sorted(folders):
            if is_temporary(Path(name)):
                yield from _leftover(folder / name)
        folders[:] = sorted(name for name in folders if not is_temporary(Path(name)))
        found = [finding for check in checks_of(folder, set(names)) for finding in check(folder)]
        yield from found
        known = {finding.path for finding in found}
        for name in sorted(names):
            if folder / name not in known and not is_temporary(Path(name)):
                yield from other_file(folder / name, known)
    for error in unreadable:
        yield Finding(Path(error.filename), os.strerror(error.errno or 0), "check its permissions")


def _leftover(path: Path) -> Iterator[Finding]:
    if _in_use(path):  # a running process is writing it
        return
    replaced = [old.name for old in path.iterdir()] if path.name.endswith(".old.part") else []
    waiting = [name for name in replaced if not (path.parent / name).exists()]
    if waiting:
        problem = f"left behind by a killed process; contains {', '.join(waiting)}, which was being replaced"
        remedy = "the next command on this folder restores it"
    else:
        problem = "left behind by a killed process; contains nothing that is needed"
        remedy = "the next command on this folder removes it"
    yield Finding(path, problem, remedy, leftover=True)


def _in_use(folder: Path) -> bool:
    """Whether a running process has locked the folder."""
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(handle)
    return False
