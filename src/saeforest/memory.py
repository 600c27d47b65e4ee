"""The memory this process holds, the most it held, what there is left to take; and what long work is going to take."""

from __future__ import annotations

import ctypes
import os
import resource
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import torch

from .output import note

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
# Where Linux tells of memory; tests look elsewhere.
_ROOT = Path("/")
# A limit beyond this stands for none: control groups of the first version write a number for it.
_NO_LIMIT = 1 << 60
# What is freed in pieces of a few MB is not all used again: over many parts, work comes to hold a third more than in
# the first (measured: docs/performance.md).
_SLACK = 1 / 3


def resident() -> int:
    """Bytes of memory that this process holds now; where the system doesn't tell, the most it held so far."""
    return _status("VmRSS") or _most()


def peak() -> int:
    """The most bytes of memory that this process held at any time since `reset_peak`."""
    return _status("VmHWM") or _most()


def reset_peak() -> None:
    """Lets `peak` begin anew. Does nothing where the system doesn't offer that: the peak is then that of all time."""
    with suppress(OSError):
        _CLEAR.write_text("5", encoding="ascii")


def give_back() -> None:
    """Hands memory that was used and is free again to the system, where its allocator would keep it for later."""
    with suppress(OSError, AttributeError):  # another allocator than that of glibc
        ctypes.CDLL(None).malloc_trim(0)


def _most() -> int:
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def _status(key: str) -> int:
    """A size that Linux tells of this process, in bytes; 0 where there is none."""
    with suppress(OSError, ValueError):
        for line in _STATUS.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith(f"{key}:"):
                return int(line.split()[1]) * 1024
    return 0


def on_gpu() -> int:
    """The most bytes that PyTorch held on the GPU; 0 where none is in use."""
    return (
        torch.cuda.max_memory_reserved() if torch.cuda.is_available() and torch.cuda.is_initialized() else 0
    )


# What there is left


def available() -> int:
    """Bytes that this process can still take: what the machine has left, within its control groups' and own limits.

    What others use counts as used; what the system keeps in memory only to save time (files that were read) does not.
    """
    return max(min(_of_machine(_ROOT), *_of_groups(_ROOT), _of_process()), 0)


def _of_machine(root: Path) -> int:
    with suppress(OSError, ValueError, IndexError):
        for line in (root / "proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")  # no Linux: all that is installed


def _of_groups(root: Path) -> Iterator[int]:
    """What is left in each control group around this process, of either version; a very large number at least."""
    yield _NO_LIMIT
    try:
        groups = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return
    for line in groups:
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        if not controllers:
            mounts = (root / "sys/fs/cgroup", root / "sys/fs/cgroup/unified")
            names = ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            mounts = (root / "sys/fs/cgroup/memory",)
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        for mount in mounts:
            # In a container the path may be one that only its host sees: the container's own group is the mount.
            folder = mount / path.lstrip("/")
            for group in (folder, *folder.parents):
                if (left := _left_in(group, *names)) is not None:
                    yield left
                if group == mount:
                    break


def _left_in(group: Path, limit: str, usage: str, cached: str) -> int | None:
    """Limit less usage of a control group, pages that can be dropped not counted; None where there is no limit."""
    try:
        most, used = int((group / limit).read_text()), int((group / usage).read_text())
    except (OSError, ValueError):  # no such file, or "max"
        return None
    if most >= _NO_LIMIT:
        return None
    with suppress(OSError, ValueError):
        for line in (group / "memory.stat").read_text(encoding="ascii").splitlines():
            key, _, value = line.partition(" ")
            if key == cached:
                used -= int(value)
    return most - used


def _of_process() -> int:
    """What `ulimit -v` leaves."""
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    used = _status("VmSize")
    return limit - used if limit != resource.RLIM_INFINITY and used else _NO_LIMIT


# In words


def size(n_bytes: float) -> str:
    """A size for people, such as `1.5 GiB`."""
    return f"{n_bytes / 2**30:.1f} GiB" if n_bytes >= 2**30 else f"{n_bytes / 2**20:.0f} MiB"


def too_much(expected: int, lower: str) -> str:
    """A warning where a process whose peak is `expected` wants more than there is; empty where it doesn't.

    lower: what to lower.
    """
    left = available()
    if expected - resident() <= left:
        return ""
    return (
        f"this takes about {size(expected)}, but the machine has {size(left + resident())} for it; lower {lower}, "
        "or use a machine with more"
    )


class Forecast:
    """Tells once, after the first part of long work, the peak memory of all of it.

    Make it before that part: how far the part's peak lies above what is held is then known.
    """

    def __init__(self, what: str, lower: str) -> None:
        self._what, self._lower = what, lower
        self._held, self._highest = resident(), peak()
        self.expected: int | None = None
        """The peak, in bytes, as it was told."""

    def tell(self, still_to_come: int, afterwards: int = 0) -> None:
        """After the first part.

        still_to_come: bytes that the other parts will have added when all are done.
        afterwards: bytes that the work after them takes for a while, when what the parts took to run is free again.
        """
        if self.expected is not None:
            return
        highest, now = peak(), resident()
        in_part = highest if highest > self._highest else now
        more = still_to_come + round(_SLACK * max(in_part - self._held, 0))
        self.expected = max(highest, in_part + more, now + more + afterwards)
        gpu = f"; on the GPU {size(used)} so far" if (used := on_gpu()) else ""
        left = size(available())
        note(f"{self._what}: peak memory about {size(self.expected)} ({left} more are available){gpu}")
        if warning := too_much(self.expected, self._lower):
            note(f"warning: {self._what}: {warning}")
