"""Synthetic worlds whose feature tree is known, and scores for how much of it an SAE recovers."""

from .edges import EdgeScores
from .generators import GENERATORS
from .recovery import Absorption, Recovery, recover
from .trees import TreeSpec, sample_code
from .world import Sample, World

__all__ = [
    "GENERATORS",
    "Absorption",
    "EdgeScores",
    "Recovery",
    "Sample",
    "TreeSpec",
    "World",
    "recover",
    "sample_code",
]
