"""Who works in a folder: one process at a time."""

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
# What a file system without locks answers.
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}


@contextmanager
def claimed(folder: Path, part: str = "") -> Iterator[None]:
    """Within, no other process can claim the folder, which is made if it is missing, or the same part of it.

    The claim is a lock on a file in it, `.lock` or `.lock-PART`. It ends with the process, however that ends, and holds
    across machines wherever the file system passes locks on, as NFS does; where there are no locks at all, a line says
    so. A part is claimed apart from the whole.

    Raises InputError where another process has claimed it.
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


def is_lock(path: Path) -> bool:
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
            # Its former holder may have removed the file between our opening and our locking it.
            current = path.stat()
            if (current.st_dev, current.st_ino) == (os.fstat(handle).st_dev, os.fstat(handle).st_ino):
                os.ftruncate(handle, 0)
                os.pwrite(handle, _about_us().encode(), 0)
                return handle
        except FileNotFoundError:
            pass
        except OSError:  # a full disk: the lock holds without the words
            return handle
        os.close(handle)


def _about_us() -> str:
    command = " ".join(["saeforest", *sys.argv[1:2]])
    return f"process {os.getpid()} on {socket.gethostname()} ({command}, since {time.strftime('%Y-%m-%d %H:%M')})\n"
