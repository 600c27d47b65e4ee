"""Claims on folders: only one process at a time may work in a folder."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import InputError
from .output import note

LOCK = ".lock"
# The error numbers with which a file system without locks refuses one.
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}


@contextmanager
def claimed(folder: Path, part: str = "") -> Iterator[None]:
    """Keep other processes from claiming the folder, or the same part of it, inside the `with` block.

    The folder is created if it is missing. The claim is a lock on the file `.lock` (or `.lock-PART`) in it. It ends
    when the process ends, for whatever reason, and holds across machines if the file system supports that, as NFS does.
    If the file system has no locks at all, a note says so. A claim on a part does not conflict with one on the whole.

    Raises InputError if another process has claimed it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / (f"{LOCK}-{part.replace('/', '-')}" if part else LOCK)
    handle = _locked(path, folder / part)
    try:
        yield
    finally:
        with suppress(OSError):  # the folder may be gone
            path.unlink()
        os.close(handle)


def remove_unheld(folder: Path) -> None:
    """Remove the lock files in the folder whose process has ended."""
    for path in filter(is_lock, list(folder.iterdir())):
        with suppress(OSError):  # held, or gone
            handle = os.open(path, os.O_RDWR)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _is_at(handle, path):  # not another process's, made after we opened an older one
                    path.unlink()
            finally:
                os.close(handle)


def _is_at(handle: int, path: Path) -> bool:
    """Whether the open file is the one at the path."""
    current, own = path.stat(), os.fstat(handle)
    return (current.st_dev, current.st_ino) == (own.st_dev, own.st_ino)


def is_lock(path: Path) -> bool:
    """Whether the path is a lock file of `claimed`."""
    return path.name == LOCK or path.name.startswith(f"{LOCK}-")


def _locked(path: Path, claim: Path) -> int:
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(handle, 300, 0).decode("utf-8", "replace").strip()
            os.close(handle)
            if error.errno in _NO_LOCKS:
                note(f"{claim}: its file system has no locks; make sure that no other process writes there")
                return os.open(os.devnull, os.O_RDONLY)
            by = f" by {holder}" if holder else ""
            otherwise = ", or choose another folder" if claim == path.parent else ""
            raise InputError(f"{claim}: in use{by}; wait until that is done or stop it{otherwise}") from None
        try:
            # The previous holder may have removed the file after we opened it and before we locked it.
            if _is_at(handle, path):
                os.ftruncate(handle, 0)
                os.pwrite(handle, _about_us().encode(), 0)
                return handle
        except FileNotFoundError:
            pass
        except OSError:  # a full disk: the lock holds even if the file does not say who holds it
            return handle
        os.close(handle)


def _about_us() -> str:
    command = " ".join(["saeforest", *sys.argv[1:2]])
    return f"process {os.getpid()} on {socket.gethostname()} ({command}, since {time.strftime('%Y-%m-%d %H:%M')})\n"
