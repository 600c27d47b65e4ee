"""What `saeforest synthetic` found, in a file: system -> score -> its median and its value for each seed."""

from __future__ import annotations

from pathlib import Path

from pydantic import RootModel

from ..files import read_json
from ..schema import Name, Schema, checked
from .run import Found, KeptFile


class Score(Schema):
    """One score of one system."""

    median: float | None
    values: list[float | None]


class Scores(RootModel[dict[Name, dict[Name, Score]]]):
    """All scores of all systems."""


def read_recovery(path: Path) -> Found:
    """Raises InputError where the file is missing, damaged or of another kind.

    It has no checksum: its form is fixed, and its keys are the names of systems.
    """
    data = read_json(path)
    checked(Scores, data, path, "run `saeforest synthetic` again in another folder")
    return data


def read_scores(path: Path) -> KeptFile:
    """Every seed's scores, and what they are of. Raises InputError where the file is missing or damaged."""
    return checked(KeptFile, read_json(path), path, "delete it and run `saeforest synthetic` again")
