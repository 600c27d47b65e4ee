"""The result of checking a file, and functions that check one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..files import CHECKSUM, listed_checksum, read_bytes, read_json, read_tensors


@dataclass(frozen=True)
class Finding:
    """The result of checking one file, or something that a killed process left behind.

    problem: what is wrong, in words; empty if the file is intact.
    remedy:  how to repair or recreate it, and what is lost.
    """

    path: Path
    problem: str = ""
    remedy: str = ""
    has_checksum: bool = False
    """Whether the file was compared with a checksum, rather than only checked for its format."""
    leftover: bool = False
    """Whether this is what a killed process was writing, rather than a complete file."""

    @property
    def sound(self) -> bool:
        """Whether the file is intact."""
        return not self.problem and not self.leftover

    def __str__(self) -> str:
        return f"{self.path}: {self.problem}; {self.remedy}"


def tried(
    path: Path, read: Callable[[], Any], remedy: str, *, has_checksum: bool = False
) -> tuple[Finding, Any]:
    """Read a file with `read`. Returns the finding, and what was read; None if it could not be read."""
    try:
        return Finding(path, has_checksum=has_checksum), read()
    except InputError as error:
        # The advice in the error message is for someone who needs the file now, so it is dropped.
        problem = str(error).removeprefix(f"{path}: ").split("; ")[0]
        return Finding(path, problem, remedy, has_checksum), None
    except OSError as error:
        return Finding(path, error.strerror or str(error), remedy), None


def checked_json(path: Path, remedy: str) -> tuple[Finding, Any]:
    """Check a JSON file that contains its own checksum. Returns the finding and the data; None if unreadable."""
    finding, data = tried(path, lambda: read_json(path), remedy)
    signed = finding.sound and b'"' + CHECKSUM.encode() + b'"' in read_bytes(path)
    return Finding(path, finding.problem, finding.remedy, signed), data


def checked_tensors(path: Path, manifest: Any, remedy: str) -> Finding:
    """Check a safetensors file whose checksum is in a manifest."""
    expected = listed_checksum(manifest, path.name)
    return tried(path, lambda: read_tensors(path, expected), remedy, has_checksum=expected is not None)[0]


def is_plain(name: object) -> bool:
    """Whether a name in a manifest is a plain file name, without folders."""
    return (
        isinstance(name, str) and name not in ("", ".", "..") and Path(name).name == name and "\0" not in name
    )
