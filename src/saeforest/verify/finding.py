"""What is found of a file, and the ways to look at one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..files import CHECKSUM, listed_checksum, read_bytes, read_json, read_tensors


@dataclass(frozen=True)
class Finding:
    """What was found of one file, or of what a killed process left behind.

    problem: in words; empty where the file is sound.
    remedy:  what makes it anew, and what is lost.
    """

    path: Path
    problem: str = ""
    remedy: str = ""
    has_checksum: bool = False
    """Whether its bytes or its values were held against a checksum, and not its form alone."""
    leftover: bool = False
    """It is no file of ours, but what a killed process was writing."""

    @property
    def sound(self) -> bool:
        return not self.problem and not self.leftover

    def __str__(self) -> str:
        return f"{self.path}: {self.problem}; {self.remedy}"


def tried(
    path: Path, read: Callable[[], Any], remedy: str, *, has_checksum: bool = False
) -> tuple[Finding, Any]:
    """The finding of a file that `read` reads, and what was read: None where it could not be."""
    try:
        return Finding(path, has_checksum=has_checksum), read()
    except InputError as error:
        # What an error says to do is for whoever needs the file now.
        problem = str(error).removeprefix(f"{path}: ").split("; ")[0]
        return Finding(path, problem, remedy, has_checksum), None
    except OSError as error:
        return Finding(path, error.strerror or str(error), remedy), None


def checked_json(path: Path, remedy: str) -> tuple[Finding, Any]:
    """Of a JSON file, whose checksum is in it."""
    finding, data = tried(path, lambda: read_json(path), remedy)
    signed = finding.sound and b'"' + CHECKSUM.encode() + b'"' in read_bytes(path)
    return Finding(path, finding.problem, finding.remedy, signed), data


def checked_tensors(path: Path, manifest: Any, remedy: str) -> Finding:
    """Of a safetensors file, whose checksum is in a manifest."""
    expected = listed_checksum(manifest, path.name)
    return tried(path, lambda: read_tensors(path, expected), remedy, has_checksum=expected is not None)[0]


def is_plain(name: object) -> bool:
    """Whether a name in a manifest is that of a file beside it."""
    return (
        isinstance(name, str) and name not in ("", ".", "..") and Path(name).name == name and "\0" not in name
    )
