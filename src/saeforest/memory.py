"""The memory of this process: current, peak and available; and forecasts of the memory of long work."""

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
# The root of the file system in which Linux reports memory; tests replace it.
_ROOT = Path("/")
# A limit above this means no limit: control groups of version 1 write a large number for it.
_NO_LIMIT = 1 << 60
# Memory freed in pieces of a few MB is not completely reused: over many parts, work takes a third more than in the
# first one (measured: docs/performance.md).
_SLACK = 1 / 3


def resident() -> int:
    """Bytes of memory that this process uses now, or its peak so far if the system does not report that."""
    return _status("VmRSS") or _most()


def peak() -> int:
    """The peak memory of this process since `reset_peak`, in bytes."""
    return _status("VmHWM") or _most()


def reset_peak() -> None:
    """Reset the value of `peak`. If the system does not support that, the peak remains that of the whole process."""
    with suppress(OSError):
        _CLEAR.write_text("5", encoding="ascii")


def give_back() -> None:
    """Return freed memory to the system, which the allocator would otherwise keep for later."""
    with suppress(OSError, AttributeError):  # the allocator is not glibc's
        ctypes.CDLL(None).malloc_trim(0)


def _most() -> int:
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def _status(key: str) -> int:
    """A size that Linux reports for this process, in bytes; 0 if it does not report it."""
    with suppress(OSError, ValueError):
        for line in _STATUS.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith(f"{key}:"):
                return int(line.split()[1]) * 1024
    return 0


def on_gpu() -> int:
    """The peak memory that PyTorch reserved on the GPU, in bytes; 0 if no GPU is in use."""
    return (
        torch.cuda.max_memory_reserved() if torch.cuda.is_available() and torch.cuda.is_initialized() else 0
    )


# Available memory


def available() -> int:
    """The bytes that this process can still allocate, within the limits of the machine, control groups and process.

    Memory of other processes counts as used; the system's cache of files does not.
    """
    return max(min(_of_machine(_ROOT), *_of_groups(_ROOT), _of_process()), 0)


def _of_machine(root: Path) -> int:
    with suppress(OSError, ValueError, IndexError):
        for line in (root / "proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")  # not Linux: all installed memory


def _of_groups(root: Path) -> Iterator[int]:
    """Yield the bytes left in each control group of this process (version 1 or 2), and first a very large number."""
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
            # In a container, the path may exist only on the host; the container's own group is then at the mount.
            folder = mount / path.lstrip("/")
            for group in (folder, *folder.parents):
                if (left := _left_in(group, *names)) is not None:
                    yield left
                if group == mount:
                    break


def _left_in(group: Path, limit: str, usage: str, cached: str) -> int | None:
    """The limit of a control group minus its usage, without pages that can be dropped; None if it has no limit."""
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
    """The bytes left within the limit of `ulimit -v`."""
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    used = _status("VmSize")
    return limit - used if limit != resource.RLIM_INFINITY and used else _NO_LIMIT


# In words


def size(n_bytes: float) -> str:
    """A size as text, such as `1.5 GiB`."""
    return f"{n_bytes / 2**30:.1f} GiB" if n_bytes >= 2**30 else f"{n_bytes / 2**20:.0f} MiB"


def too_much(expected: int, lower: str) -> str:
    """A warning if a process with the peak `expected` (in bytes) needs more memory than there is; otherwise empty.

    lower: the setting to lower.
    """
    left = available()
    if expected - resident() <= left:
        return ""
    return (
        f"this takes about {size(expected)}, but only {size(left + resident())} are available; lower {lower}, "
        "or use a machine with more memory"
    )


class Forecast:
    """Prints once, after the first part of long work, the peak memory that all of it will need.

    Create it before the first part, so that the growth during that part is known.
    """

    def __init__(self, what: str, lower: str) -> None:
        self._what, self._lower = what, lower
        self._held, self._highest = resident(), peak()
        self.expected: int | None = None
        """The expected peak in bytes; None before `tell`."""

    def tell(self, still_to_come: int, afterwards: int = 0) -> None:
        """Print the forecast, after the first part of the work.

        still_to_come: bytes that the remaining parts will add.
        afterwards: temporary memory, in bytes, of the work after the last part, when that of the parts is free again.
        """
        if self.expected is not None:
            return
        give_back()  # as is done before the work after the last part
        highest, now = peak(), resident()
        in_part = highest if highest > self._highest else now
        more = still_to_come + round(_SLACK * max(in_part - self._held, 0))
        self.expected = max(highest, in_part + more, now + more + afterwards)
        gpu = f"; on the GPU {size(used)} so far" if (used := on_gpu()) else ""
        left = size(available())
        note(f"{self._what}: peak memory about {size(self.expected)} ({left} more are available){gpu}")
        if warning := too_much(self.expected, self._lower):
            note(f"warning: {self._what}: {warning}")
