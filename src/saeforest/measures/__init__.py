"""Measures: one file each. A measure takes an SAE, a forest and data, and returns one typed record."""

from .measure import EvalBatch, Measure, WindowLosses
from .record import EdgeScores, Record, Replicates
from .spec import MeasureSpec, Streaming, Study
from .subject import Subject

__all__ = [
    "EdgeScores",
    "EvalBatch",
    "Measure",
    "MeasureSpec",
    "Record",
    "Replicates",
    "Streaming",
    "Study",
    "Subject",
    "WindowLosses",
]
