"""Worlds whose tree is known, and how much of it an SAE finds in their activations."""

from .generators import GENERATORS
from .recovery import Absorption, EdgeScores, Recovery, recover
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
