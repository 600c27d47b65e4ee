"""Reading the result files of `saeforest synthetic`: system -> score -> its median and its value for each seed."""

from __future__ import annotations

from pathlib import Path

from pydantic import RootModel

from ..files import read_json
from ..schema import Name, Schema, checked
from .run import Found, KeptFile


class Score(Schema):
    """One score of one system: its median over seeds, and its value for each seed."""

    median: float | None
    values: list[float | None]


class Scores(RootModel[dict[Name, dict[Name, Score]]]):
    """All scores of all systems."""


def read_recovery(path: Path) -> Found:
    """Read recovery.json. Raises InputError if it is missing, damaged or of another kind.

    It has no checksum, since its only keys are the names of systems.
    """
    data = read_json(path)
    checked(Scores, data, path, "run `saeforest synthetic` again in another folder")
    return data


def read_scores(path: Path) -> KeptFile:
    """Read scores.json: the scores of every seed, and the settings. Raises InputError if it is missing or damaged."""
    return checked(KeptFile, read_json(path), path, "delete it and run `saeforest synthetic` again")
